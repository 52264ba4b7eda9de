"""Over which axes of a mesh arrays differ, inside `jax.shard_map`."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax import lax

Tree = TypeVar("Tree")


def varying_axes(tree: Any) -> frozenset:
    """The mesh axes over which any leaf differs from device to device."""
    return frozenset().union(*map(_varying_axes, jax.tree.leaves(tree)))


def _varying_axes(array: jax.Array) -> frozenset:
    kind: Any = jax.typeof(array)
    # The name before jax 0.10.
    axes = getattr(kind, "vma", None)
    return kind.mat.varying if axes is None else axes


def vary_as(tree: Tree, *others: Any) -> Tree:
    """The tree, typed as different on every device over which the others are."""
    axes = varying_axes(others)

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - _varying_axes(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def check_axis(axis_name: Any) -> None:
    """Raises ValueError unless a mesh axis is None or bound by what is around."""
    if axis_name is None:
        return
    try:
        lax.axis_size(axis_name)
    except NameError:
        bound = list(jax.sharding.get_abstract_mesh().manual_axes)
        where = f"among {bound}" if bound else "but this call is inside none"
        raise ValueError(
            f"axis_name must be an axis of the jax.shard_map around the call, {where}; "
            f"got {axis_name!r}"
        ) from None


def check_replicated(problem: Any, start: Any, axis_name: str | None) -> None:
    """Raises ValueError where points differ over devices and a start does not."""
    axes = varying_axes(start)
    missing = sorted(varying_axes(problem) - axes - {axis_name})
    if missing:
        axis = repr(missing[0])
        raise ValueError(
            f"axis_name must be {axis}, over which the points are sharded, got "
            f"{axis_name!r}; or for one fit per device pass as centroids "
            f"jax.lax.pcast(centroids, {axis}, to='varying')"
        )
    if axis_name in axes:
        raise ValueError(
            f"centroids must be the same on every device of axis_name={axis_name!r}"
        )
