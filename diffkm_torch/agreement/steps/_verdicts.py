"""Do both sides leave the same after a step? Row by row, against rounding.

Of a row (along the last axis) let

    Δ  the largest |jax − torch|
    s  its largest entry, on either side; of a parameter that of its change from the
       start, because a step is small beside the parameter
    φ  its noise floor: its largest change, on either side, when the start and the
       batches are moved by one unit in the last place, and at least eps times its
       largest entry. It is followed through the steps, in which training enlarges it.

Rows with Δ ≤ max(1000 φ, tol · s) agree. Those where 1000 φ > 0.01 s say nothing. Nor
do gradients with Δ ≤ 20 eps · |loss| / max|start|: of a saturated tanh no move
shows the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffkm_torch.agreement._rows import difference, non_finite_differ, row_max
from diffkm_torch.agreement._verdicts import NOISE, NUM_FLOORS
from diffkm_torch.agreement.steps._sides import Key, Result

FEW_UNITS = 20.0

Results = tuple[Result, Result]


@dataclass(frozen=True)
class Verdicts:
    """Of one array after one step.

    Attributes:
        parts: Rows that differ by more than rounding explains, [rows].
        unresolved: Rows of which rounding may be more than 1 %, [rows].
        saturated: Those of them that differ by few units roundoff of the loss, [rows].
        scaled: The largest Δ / s of the rows that are judged.
        floor: The largest φ / s of them.
        parted: The largest Δ / s of the rows that part.
    """

    parts: np.ndarray
    unresolved: np.ndarray
    saturated: np.ndarray
    scaled: float
    floor: float
    parted: float

    def without_parts(self) -> Verdicts:
        """The same, with what parts unresolved."""
        nothing = np.zeros_like(self.parts)
        return replace(self, parts=nothing, unresolved=self.unresolved | self.parts)


def judge(
    key: Key,
    base: Results,
    start: np.ndarray | None,
    moved: Sequence[Results],
    eps: float,
    tol: float,
    unit: float = 0.0,
) -> Verdicts:
    """The verdicts on the rows of one array.

    Args:
        key: Of the array.
        base: What both sides left.
        start: The array before the first step, if it is a parameter.
        moved: What they left from starts moved by one unit in the last place.
        eps: The unit roundoff.
        tol: Of the largest entry of a row.
        unit: Below 20 of which a difference says nothing.
    """
    ours, theirs = (rows_of(result[key]) for result in base)
    delta = row_max(difference(ours, theirs))
    largest = size = np.maximum(row_max(ours), row_max(theirs))
    if start is not None:
        at = rows_of(start)
        size = np.maximum(row_max(ours - at), row_max(theirs - at))
    floor = eps * largest
    for results in moved:
        for here, there in zip(base, results, strict=True):
            change = row_max(difference(rows_of(here[key]), rows_of(there[key])))
            floor = np.maximum(floor, change)
    patterns = non_finite_differ(ours, theirs).any(axis=1)
    has_number = (np.isfinite(ours) & np.isfinite(theirs)).any(axis=1)
    is_noise = (NUM_FLOORS * floor > NOISE * size) & (largest > 0)
    # Where neither side moved there is nothing that rounding could hide.
    is_noise &= (size > 0) | (delta > 0)
    unresolved = (is_noise | ~has_number) & ~patterns
    differs = delta > np.maximum(NUM_FLOORS * floor, tol * size)
    saturated = differs & ~unresolved & ~patterns & (delta <= FEW_UNITS * unit)
    unresolved |= saturated
    parts = (differs & ~unresolved) | patterns
    return Verdicts(
        parts=parts,
        unresolved=unresolved,
        saturated=saturated,
        scaled=_largest(delta, size, ~unresolved),
        floor=_largest(floor, size, ~unresolved & (size > 0)),
        parted=_largest(delta, size, parts),
    )


def rows_of(array: np.ndarray) -> np.ndarray:
    """The array in float64 as [rows, entries]; a vector, as a bias, is one row."""
    array = np.asarray(array, np.float64)
    return array.reshape(-1, array.shape[-1] if array.ndim and array.size else 1)


def _largest(a: np.ndarray, b: np.ndarray, which: np.ndarray) -> float:
    """The largest a / b, 0 where a is."""
    a, b = a[which], b[which]
    ratio = np.divide(a, b, out=np.full_like(a, np.inf), where=b > 0)
    return float(np.where(a == 0, 0.0, ratio).max(initial=0))


def worst_entry(key: Key, base: Results, parts: np.ndarray) -> tuple[int, ...]:
    """The index of the entry that differs most among the rows that part."""
    ours, theirs = (rows_of(result[key]) for result in base)
    gap = np.abs(difference(ours, theirs))
    gap[non_finite_differ(ours, theirs)] = np.inf
    gap[~parts] = -1
    flat = int(gap.argmax())
    return tuple(int(i) for i in np.unravel_index(flat, np.shape(base[0][key])))
