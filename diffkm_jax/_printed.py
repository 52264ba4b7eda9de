"""Results as a few lines, of arrays that there are: nothing is compiled for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

REAL = jnp.floating, jnp.integer, jnp.bool_


def known(*leaves: Any) -> list[np.ndarray] | None:
    """The real numbers of leaves in float64, or None if not all are on this machine."""
    found = [numbers_of(leaf) for leaf in leaves]
    return None if any(a is None for a in found) else found


def numbers_of(leaf: Any) -> Any:
    """The real numbers of a leaf in float64, or None if this process has none."""
    if hasattr(leaf, "detach"):
        return _numbers_of_tensor(leaf)
    if isinstance(leaf, jax.Array):
        if isinstance(leaf, Tracer) or leaf.is_deleted():
            return None
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
    elif not isinstance(leaf, np.ndarray | np.generic | bool | int | float):
        return None
    if not any(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in REAL):
        return None
    # By an explicit transfer, which no guard of implicit ones stops.
    return np.asarray(jax.device_get(leaf)).astype(np.float64)


def _numbers_of_tensor(leaf: Any) -> Any:
    """Of a torch tensor, as a bridge returns it: without gradient, on the host."""
    try:
        return None if leaf.is_complex() else leaf.detach().double().cpu().numpy()
    except (RuntimeError, TypeError):
        return None


def lines_of(value: Any, rows: Iterable[tuple[str, str]] | None) -> str:
    """Rows of a name and what there is to say; None is how a tuple prints by itself."""
    if rows is None:
        return plain(value)
    rows = [*rows]
    width = 2 + max(len(name) for name, _ in rows)
    return "\n".join(name.ljust(width) + text for name, text in rows)


def plain(value: Any) -> str:
    """How a named tuple prints by itself, with shapes for arrays that are deleted."""

    def there(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
        if is_array and leaf.is_deleted():
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return leaf

    fields = zip(value._fields, (jax.tree.map(there, a) for a in value), strict=True)
    text = ", ".join(f"{name}={field!r}" for name, field in fields)
    return f"{type(value).__name__}({text})"


def shape(leaf: Any) -> str:
    """The shape of an array, as [20, 8]."""
    return str([*leaf.shape])


def has_rank(leaf: Any, rank: int) -> bool:
    """Whether something has a shape, and one of that many axes."""
    return len(getattr(leaf, "shape", None) or ()) == rank


def number(value: Any, digits: int = 7) -> str:
    """A number in few digits, a whole one in all of its own."""
    value = float(value)
    is_whole = value.is_integer() and abs(value) < 1e15
    return f"{value:.0f}" if is_whole else f"{value:.{digits}g}"


def span(values: np.ndarray) -> str:
    """The least and the largest of some numbers, as 315 to 702; NaN if one is."""
    least, most = (number(f(values), 4) for f in (np.min, np.max))
    return least if least == most else f"{least} to {most}"
