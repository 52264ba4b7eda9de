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
    return [_known(a) for a in leaves] if all(map(is_known, leaves)) else None


def _known(leaf: Any) -> np.ndarray:
    # By an explicit transfer, which no guard of implicit ones stops.
    return np.asarray(jax.device_get(leaf)).astype(np.float64)


def is_known(leaf: Any) -> bool:
    """Whether a leaf is of real numbers that this process can read."""
    if isinstance(leaf, jax.Array):
        if isinstance(leaf, Tracer) or leaf.is_deleted():
            return False
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return False
    elif not isinstance(leaf, np.ndarray | np.generic | bool | int | float):
        return False
    return any(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in REAL)


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
