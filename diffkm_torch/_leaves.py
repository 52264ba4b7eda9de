"""Leaves of a tree as a flat list, of which some are exchanged: equinox's combine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def combine(
    leaves: Sequence[Any], indices: Iterable[int], chosen: Iterable[Any]
) -> list[Any]:
    """The leaves, with those of `chosen` at the indices."""
    combined = list(leaves)
    for i, leaf in zip(indices, chosen, strict=True):
        combined[i] = leaf
    return combined
