"""Over which axes of a mesh arrays differ, inside `jax.shard_map`."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax import lax

Tree = TypeVar("Tree")
# Else it is called pvary, as until jax 0.8.
HAS_PCAST = hasattr(lax, "pcast")


def varying_axes(tree: Any) -> frozenset:
    """The mesh axes over which any leaf differs from device to device."""
    return frozenset().union(*map(_varying_axes, jax.tree.leaves(tree)))


def _varying_axes(array: jax.Array) -> frozenset:
    kind: Any = jax.typeof(array)
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying


def vary_as(tree: Tree, *others: Any) -> Tree:
    """The tree, typed as different on every device over which the others are."""
    axes = varying_axes(others)

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - _varying_axes(leaf))
        if not missing:
            return leaf
        if HAS_PCAST:
            return lax.pcast(leaf, missing, to="varying")
        return lax.pvary(leaf, missing)  # type: ignore[attr-defined]

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
        cast = f"pcast(centroids, {axis}, to='varying')"
        cast = cast if HAS_PCAST else f"pvary(centroids, {axis})"
        raise ValueError(
            f"axis_name must be {axis}, over which the points are sharded, got "
            f"{axis_name!r}; for one fit per device, centroids is jax.lax.{cast}"
        )
    if axis_name in axes:
        raise ValueError(
            f"centroids must be the same on every device of axis_name={axis_name!r}"
        )
