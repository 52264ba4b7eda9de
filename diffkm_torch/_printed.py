"""Results as a few lines, of the numbers that tensors hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def known(*leaves: Any) -> list[Tensor] | None:
    """The real numbers of leaves in float64, or None if not all are there to read."""
    try:
        return [_known(leaf) for leaf in leaves]
    except (TypeError, ValueError, RuntimeError):
        return None


def _known(leaf: Any) -> Tensor:
    tensor = torch.as_tensor(leaf).detach()
    if tensor.is_complex():
        raise TypeError("leaf must be real")
    tensor = tensor.to("cpu", torch.float64)
    # Raises of what is mapped over, or of a device without numbers.
    tensor.flatten()[:1].tolist()
    return tensor


def lines_of(value: Any, rows: Iterable[tuple[str, str]] | None) -> str:
    """Rows of a name and what there is to say; None is how a tuple prints by itself."""
    if rows is None:
        return plain(value)
    rows = [*rows]
    width = 2 + max(len(name) for name, _ in rows)
    return "\n".join(name.ljust(width) + text for name, text in rows)


def plain(value: Any) -> str:
    """How a named tuple prints by itself."""
    fields = zip(value._fields, value, strict=True)
    text = ", ".join(f"{name}={field!r}" for name, field in fields)
    return f"{type(value).__name__}({text})"


def shape(leaf: Any) -> str:
    """The shape of a tensor, as [20, 8]."""
    return str([*leaf.shape])


def has_rank(leaf: Any, rank: int) -> bool:
    """Whether something has a shape, and one of that many axes."""
    return len(getattr(leaf, "shape", None) or ()) == rank


def number(value: Any, digits: int = 7) -> str:
    """A number in few digits, a whole one in all of its own."""
    value = float(value)
    is_whole = value.is_integer() and abs(value) < 1e15
    return f"{value:.0f}" if is_whole else f"{value:.{digits}g}"


def span(values: Tensor) -> str:
    """The least and the largest of some numbers, as 315 to 702; NaN if one is."""
    least, most = number(values.min(), 4), number(values.max(), 4)
    return least if least == most else f"{least} to {most}"
