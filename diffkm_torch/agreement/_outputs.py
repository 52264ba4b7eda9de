"""What a function returns, leaf by leaf: names, shapes and dtypes, the same on both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Outputs:
    """Shapes and dtypes of what a function returns, each kind by name."""

    floating: Shapes
    other: Shapes


def outputs_of(
    floating: Mapping[str, Any],
    other: Mapping[str, Any],
    dtype_name: Callable[[Any], str],
) -> Outputs:
    """Shapes and dtypes of leaves by name."""
    shapes = (
        {name: (tuple(a.shape), dtype_name(a.dtype)) for name, a in leaves.items()}
        for leaves in (floating, other)
    )
    return Outputs(*shapes)


def named_leaves(
    output: Any, kind: Any, whose: str, wrap: str, is_floating: Callable[[Any], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The floating leaves of what a function returned, and the others, by name."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(output):
        name = f"output{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, kind):
            raise TypeError(
                f"{whose} must return arrays or trees of them, got "
                f"{type(leaf).__name__} as {name}: wrap a number in {wrap}, and leave "
                "out what is no number"
            )
        if "complex" in str(leaf.dtype):
            raise TypeError(f"{whose} must return real arrays, {name} is {leaf.dtype}")
        leaves[name] = leaf
    # By name: the two frameworks may order a tree differently.
    names = sorted(leaves)
    floating = {name: leaves[name] for name in names if is_floating(leaves[name])}
    return floating, {name: leaves[name] for name in names if name not in floating}


def check_same_outputs(ours: Outputs, theirs: Outputs) -> None:
    """Raises unless both functions return the same tree of shapes and dtypes."""
    mine, other = ({**o.floating, **o.other} for o in (ours, theirs))
    if mine.keys() != other.keys():
        only = [
            f"only {whose} returns {', '.join(sorted(a.keys() - b.keys()))}"
            for whose, a, b in (("jax_fn", mine, other), ("torch_fn", other, mine))
            if a.keys() - b.keys()
        ]
        trees = "; ".join(only)
        raise ValueError(f"jax_fn and torch_fn must return the same tree: {trees}")
    if not mine:
        raise ValueError("jax_fn and torch_fn must return at least one array, got none")
    for name, (shape, dtype) in mine.items():
        shape_there, dtype_there = other[name]
        if shape != shape_there:
            shapes = f"jax_fn {shape}, torch_fn {shape_there}"
            raise ValueError(f"{name} must have the same shape in both: {shapes}")
        if _kind(dtype) != _kind(dtype_there):
            dtypes = f"jax_fn {dtype}, torch_fn {dtype_there}"
            raise TypeError(f"{name} must have the same dtype in both: {dtypes}")


def _kind(dtype: str) -> str:
    """The dtype, but for the width of an integer: torch's labels have 64 bits."""
    return dtype.rstrip("0123456789") if "int" in dtype else dtype
