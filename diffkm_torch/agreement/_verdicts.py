"""Is a difference more than rounding? Judged row by row, against each row's own noise.

Of a row let

    Δ  the largest |jax − torch|
    s  its largest entry, on either side
    φ  its noise floor: its largest change, on either side, when every input is moved by
       one unit in the last place, and at least eps · s
    u  eps · (size of the output / spread of the input): the unit roundoff of a row that
       is not saturated

Rows with Δ ≤ max(1000 φ, tol · s) agree. Where 1000 φ > 0.01 s that says nothing, and
there are two reasons: rounding is all there is in the row, or moving the inputs broke a
tie. So such rows, and those that differ, are looked at once more, at inputs further
away and in the other precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AGREE, UNRESOLVED, KINK, DISAGREE = "agree", "unresolved", "kink", "disagree"
# The rounding of a sum of n terms grows as n, φ is a sample of it.
NUM_FLOORS = 1000.0
# A row is noise where rounding is more than this share of it.
NOISE = 0.01
# No move shows the rounding of a saturated softmax, whose 1 stays 1. Its size is a few
# units roundoff of what the row would be unsaturated: so few say nothing at all, and
# more say nothing where float32 loses the row, or where float64 has no difference.
FEW_UNITS, MANY_UNITS = 20.0, 100.0
# A row unsaturated is at most so many times the largest row, unless all are noise.
MAX_SATURATION = 1e5
# Moves by 1 and by 64 units: what is smooth changes 64 times as much, what jumps does
# not. A factor of 8 in that, and of 64 on its other side, is chance.
FAR_MOVE = 64
GROWTH = 8.0
# A difference that a change of the inputs explains: twice the change by whole units of
# float32, ten times the one by rounding to fewer bits, which may happen to be small.
BY_MOVE, BY_ROUNDING = 2.0, 10.0
# A difference in float32 is its rounding where float64 has at most this share of it.
LEFT_IN_FLOAT64 = 0.1


@dataclass(frozen=True)
class Rows:
    """What is known of every row, each [rows].

    Attributes:
        delta: Δ.
        size: s.
        floor: φ.
        differs: Δ > max(1000 φ, tol · s).
        exceeds_tol: Δ > tol · s.
        units: Δ / u.
    """

    delta: np.ndarray
    size: np.ndarray
    floor: np.ndarray
    differs: np.ndarray
    exceeds_tol: np.ndarray
    units: np.ndarray

    @property
    def is_noise(self) -> np.ndarray:
        """1000 φ > 0.01 s."""
        return NUM_FLOORS * self.floor > NOISE * self.size


def verdicts_in_float64(
    rows: Rows, far: np.ndarray, in_float32: np.ndarray
) -> np.ndarray:
    """The verdicts of rows that differ or are noise, each [rows].

    Rounded to fewer bits exact ties stay ties, and what rests on rounding changes: so
    noise that stays is no noise, and is judged by the tolerance alone.

    Args:
        rows: In float64.
        far: The change when the inputs are rounded to fewer bits.
        in_float32: The change from float64 to float32, 0 if not known.
    """
    # is_judged = 1000 φ ≤ 0.01 s  or  far ≤ 0.01 s
    is_judged = ~rows.is_noise | (far <= NOISE * rows.size)
    differs = np.where(rows.is_noise, rows.exceeds_tol, rows.differs)
    # Saturated: Δ ≤ 20 u,  or  Δ ≤ 100 u and float32 is off by more than 0.01 s
    is_lost = in_float32 > NOISE * rows.size
    is_rounding = rows.units <= np.where(is_lost, MANY_UNITS, FEW_UNITS)
    return _verdicts(
        is_good=is_judged & ~differs,
        is_bad=is_judged & differs & (rows.delta > BY_ROUNDING * far),
        # far ≤ 8 max(φ, Δ): a larger move makes no larger change
        is_kink=far <= GROWTH * np.maximum(rows.floor, rows.delta),
        is_rounding=is_rounding,
    )


def verdicts_in_float32(
    rows: Rows, near: np.ndarray, far: np.ndarray, in_float64: np.ndarray
) -> np.ndarray:
    """The verdicts of rows that differ or are noise, each [rows].

    Args:
        rows: In float32.
        near: The change, in float64, when inputs move by one unit of float32.
        far: The same by 64 units.
        in_float64: Δ in float64, infinite if not known.
    """
    return _verdicts(
        is_good=~rows.differs & ~rows.is_noise,
        is_bad=rows.differs
        & ~rows.is_noise
        & (rows.delta > BY_MOVE * np.maximum(near, far)),
        # Smooth: far ≈ 64 near
        is_kink=(far < FAR_MOVE / GROWTH * near) | (far > FAR_MOVE * GROWTH**2 * near),
        # Saturated: Δ ≤ 100 u, and Δ in float64 < 0.1 Δ
        is_rounding=(rows.units <= MANY_UNITS)
        & (in_float64 < LEFT_IN_FLOAT64 * rows.delta),
    )


def _verdicts(
    is_good: np.ndarray,
    is_bad: np.ndarray,
    is_kink: np.ndarray,
    is_rounding: np.ndarray,
) -> np.ndarray:
    return np.select(
        [is_good, is_bad & ~is_rounding, is_kink & ~is_rounding],
        [AGREE, DISAGREE, KINK],
        UNRESOLVED,
    )
