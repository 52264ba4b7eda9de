"""Over which axes of a mesh arrays differ, inside `jax.shard_map`."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
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


def vary_as(tree: Tree, *others: Any, but: Any = None) -> Tree:
    """The tree, typed as different on every device over which the others are.

    But for an axis over which sums are taken.
    """
    axes = varying_axes(others) - axes_of(but)

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - _varying_axes(leaf))
        if not missing:
            return leaf
        if HAS_PCAST:
            return lax.pcast(leaf, missing, to="varying")
        return lax.pvary(leaf, missing)  # type: ignore[attr-defined]

    return jax.tree.map(cast, tree)


def axes_of(axis_name: Any) -> frozenset:
    """The names in an axis, which is one, several, or None."""
    if axis_name is None:
        return frozenset()
    return frozenset([axis_name] if isinstance(axis_name, str) else axis_name)


def is_axis(axis: Any) -> bool:
    """Whether it is the name of a mesh axis, or a tuple of names."""
    names = axis if isinstance(axis, tuple) else (axis,)
    return bool(names) and all(isinstance(name, str) for name in names)


def check_axis(axis_name: Any) -> None:
    """Raises ValueError unless a mesh axis is None or bound by what is around."""
    if axis_name is None:
        return
    try:
        if not is_axis(axis_name):
            raise NameError  # JAX takes a number for an axis of the array.
        lax.axis_size(axis_name)
    except NameError:
        bound = list(jax.sharding.get_abstract_mesh().manual_axes)
        where = (
            f"among {bound}"
            if bound
            else "but this call is inside none: there it is read from the points, or "
            "is their NamedSharding"
        )
        raise ValueError(
            f"axis_name must be an axis of the jax.shard_map around the call, {where}; "
            f"got {axis_name!r}"
        ) from None


def size_of(axis_name: Any) -> int:
    """The number of devices along a mesh axis, 1 if there is none."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


def index_on(axis_name: Any) -> jax.Array:
    """Which of them this device is, [], int32, 0 if there is none."""
    return jnp.zeros((), jnp.int32) if axis_name is None else lax.axis_index(axis_name)
