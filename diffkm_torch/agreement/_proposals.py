"""A matching of parameters by order and shape, to be proposed where names fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffkm_torch.agreement._layouts import (
    Axes,
    Leaf,
    Shape,
    axes_of,
    fits,
    in_order,
    kernel_axes,
    names_of,
)

Shapes = Mapping[str, Shape]


def proposal(leaves: Sequence[Leaf], shapes: Shapes, buffers: Shapes) -> dict[str, Any]:
    """A `match` for leaves and names without a counterpart, {} if the shapes fit none.

    Args:
        leaves: Those of the tree.
        shapes: Those of the parameters, by name; each must get a leaf.
        buffers: Those of the buffers, by name; they need not.
    """
    return _by_module(leaves, shapes, buffers) or _by_leaf(leaves, shapes)


def _by_module(
    leaves: Sequence[Leaf], shapes: Shapes, buffers: Shapes
) -> dict[str, Any]:
    """Modules in torch's order, each with the first of JAX's that fits it."""
    groups: dict[str, list[Leaf]] = {}
    for leaf in sorted(leaves, key=lambda leaf: in_order(leaf.path)):
        groups.setdefault(leaf.module, []).append(leaf)
    found: dict[str, Any] = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in shapes):
        fitting = (m for m in groups if _fits(groups[m], module, shapes, buffers))
        first = next(fitting, None)
        if first is None:
            return {}
        found[first] = module
        del groups[first]
    return {} if groups else found


def _fits(leaves: list[Leaf], module: str, shapes: Shapes, buffers: Shapes) -> bool:
    """Whether the leaves of a module are those of one of torch's, by name and shape."""
    there = {**shapes, **buffers}
    taken = set()
    for leaf in leaves:
        name = next((n for n in names_of(leaf.key, module) if n in there), None)
        if name is None:
            return False
        axes = axes_of(leaf.key, name, len(leaf.shape))
        if name in taken or not fits(leaf.shape, axes, there[name]):
            return False
        taken.add(name)
    return taken >= {name for name in shapes if name.rpartition(".")[0] == module}


def _by_leaf(leaves: Sequence[Leaf], shapes: Shapes) -> dict[str, Any]:
    """Parameters in torch's order, each with the first leaf that fits it."""
    left = sorted(leaves, key=lambda leaf: in_order(leaf.path))
    found: dict[str, Any] = {}
    for name, there in shapes.items():
        for leaf in left:
            axes = _guessed(leaf, there)
            if fits(leaf.shape, axes, there):
                found[leaf.path] = name if axes is None else (name, axes)
                left.remove(leaf)
                break
        else:
            return {}
    return {} if left else found


def _guessed(leaf: Leaf, there: Shape) -> Axes:
    """JAX's layout of a weight, unless only torch's fits."""
    rank = len(leaf.shape)
    if rank < 2 or rank != len(there) or leaf.key.startswith("weight"):
        return None
    axes = kernel_axes(rank)
    return axes if fits(leaf.shape, axes, there) else None
