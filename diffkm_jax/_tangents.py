"""The tangents of a custom rule: which vanish, and what of a tree they move."""

from __future__ import annotations

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


def is_zero(tangent: Any) -> bool:
    """Whether a tangent is known to vanish, so that its work can be left out."""
    return tangent is None or isinstance(tangent, SymbolicZero)


def partition(primals: Any, tangents: Any) -> tuple[Any, Any, Any]:
    """What moves, what does not, and the tangents of what moves, None elsewhere."""
    moving = jax.tree.map(lambda p, t: None if is_zero(t) else p, primals, tangents)
    fixed = jax.tree.map(lambda p, t: p if is_zero(t) else None, primals, tangents)
    return moving, fixed, jax.tree.map(lambda t: None if is_zero(t) else t, tangents)


def combine(moving: Any, fixed: Any) -> Any:
    """The tree that `partition` took apart."""
    return jax.tree.map(
        lambda m, f: f if m is None else m, moving, fixed, is_leaf=lambda a: a is None
    )
