"""Is a difference more than rounding? Judged row by row, by float64.

Of a row let

    Δ  the largest |difference| of both sides
    s  its largest entry, on either side
    φ  its floor: its largest change, on either side, when every input is moved by one
       unit in the last place, and at least eps · s
    ρ  its rounding: the largest |float32 − float64| of one side by itself, over the
       ratio of the two eps
    u  eps · size of the output · size of the input / (spread of the input)²: the unit
       roundoff of a row that is not saturated

Rounding shrinks with eps, so that what a side loses in float32 says what it loses in
float64: ρ sees a cancellation inside one side, which no move of the inputs shows. φ
sees ties that a move breaks, which ρ does not. Neither sees what is left of a softmax
that is saturated in float32, and not quite in float64: that is a few u.

In float64 a row is

    agree       if Δ ≤ max(tol · s, 1000 ρ) and 1000 ρ ≤ 0.01 s, or Δ ≤ 1000 φ ≤ 0.01 s
    unresolved  else, if 1000 ρ > 0.01 s and Δ ≤ 1000 max(ρ, φ), or Δ ≤ 100 u where
                float32, or inputs rounded to it, are off by more than 0.01 s
    kink        if 1000 φ > 0.01 s ≥ 1000 ρ, and inputs with fewer bits change it by
                more than 0.1 φ
    disagree    else: at an exact tie, whose rule both must share, by tol alone

In float32 a row disagrees where both sides differ as much in float64 on the same
inputs, or where one is off its own float64 by an error that no last bit changes. What
is left is rounding, and said so where it is more than 1 % of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffkm_torch.agreement._evaluations import Evaluator, Nearby, Results
from diffkm_torch.agreement._rows import (
    as_rows,
    difference,
    non_finite_differ,
    row_max,
)
from diffkm_torch.agreement._task import Key

AGREE, UNRESOLVED, KINK, DISAGREE = "agree", "unresolved", "kink", "disagree"
# Where a tolerance is not given: of the largest entry of a row.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
DTYPES = tuple(TOLERANCE)
# The rounding of a sum of n terms grows as n, φ and ρ are samples of it.
NUM_FLOORS = 1000.0
# Of u, in a row that is saturated.
NUM_UNITS = 100.0
# A row is noise where rounding is more than this share of it.
NOISE = 0.01
# An error that stays, but for this share of it, when last bits change, is no rounding,
# and a jump that does not come, but for this share, with fewer bits, an exact tie.
STEADY = 0.1
RATIO = float(np.finfo(np.float64).eps) / float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Judgement:
    """Of one array, [rows, entries], the verdict of every row and why.

    Attributes:
        verdicts: Of the rows, [rows].
        off: The entries that differ by more than rounding explains.
        against_floor: The largest difference over the floor of its row.
        rounding: Of either side the largest share of a row without a verdict that
            may be rounding.
        num_patterns: Entries that are NaN or infinite on one side only.
        num_hidden: Those that are on both, where nothing is compared.
    """

    verdicts: np.ndarray
    off: np.ndarray
    against_floor: float
    rounding: tuple[float, float]
    num_patterns: int
    num_hidden: int


def judge(
    key: Key,
    base: Results,
    evaluator: Evaluator,
    dtype: str,
    precision: tuple[float, float],
    scale: Callable[[], float],
) -> Judgement:
    """The verdicts on one array.

    Args:
        key: Of the array.
        base: What is judged, at the inputs.
        evaluator: Knows what both sides return elsewhere.
        dtype: Of the inputs.
        precision: eps and tol; with eps 0 the array is compared exactly.
        scale: Finds the size of a derivative of its output in its inputs.
    """
    eps, tol = precision
    ours, theirs = (as_rows(result[key]) for result in base)
    delta = np.abs(difference(ours, theirs))
    size = np.maximum(row_max(ours), row_max(theirs))
    if eps == 0:
        # Exactly, where float64 would round.
        differ = np.reshape(base[0][key] != base[1][key], delta.shape)
        delta = np.where(differ, np.maximum(delta, 1), 0.0)
        verdicts = np.where(differ.any(axis=1), DISAGREE, AGREE).astype("<U10")
        noise, floor = np.zeros((2, len(size))), np.zeros_like(size)
    else:
        # What is denormal one side may flush to zero.
        limit = np.maximum(tol * size, NUM_FLOORS * np.finfo(dtype).tiny)
        rows = Rows(row_max(delta), size, limit, scale)
        wide = dtype == "float64" or evaluator.nearby is None
        look = _in_float64 if wide else _in_float32
        verdicts, noise, floor = look(key, rows, evaluator, dtype, eps)
    # NaN that meets NaN, or infinity infinity, says nothing of the formula behind it.
    is_number = np.isfinite(ours) & np.isfinite(theirs)
    verdicts[~is_number.any(axis=1)] = UNRESOLVED
    patterns = non_finite_differ(ours, theirs)
    verdicts[patterns.any(axis=1)] = DISAGREE
    is_off = (delta > tol * size[:, None]) | patterns
    tiny = np.finfo(np.float64).tiny
    share = noise / np.maximum(size, tiny)
    share[:, (verdicts != UNRESOLVED) | (share.max(axis=0) < NOISE / NUM_FLOORS)] = 0
    largest = share.max(axis=1, initial=0)
    return Judgement(
        verdicts=verdicts,
        off=is_off & (verdicts == DISAGREE)[:, None],
        against_floor=float((row_max(delta) / np.maximum(floor, tiny)).max(initial=0)),
        rounding=(float(largest[0]), float(largest[1])),
        num_patterns=int(patterns.sum()),
        num_hidden=int((~np.isfinite(ours) & ~np.isfinite(theirs)).sum()),
    )


@dataclass(frozen=True)
class Rows:
    """What is known of every row, each [rows].

    Attributes:
        delta: Δ.
        size: s.
        limit: tol · s, and at least what is denormal.
        scale: Finds the size of a derivative.
    """

    delta: np.ndarray
    size: np.ndarray
    limit: np.ndarray
    scale: Callable[[], float]

    def units(self, eps: float) -> float:
        """100 u."""
        return NUM_UNITS * eps * max(self.scale(), self.size.max(initial=0))


def _in_float64(
    key: Key, rows: Rows, evaluator: Evaluator, dtype: str, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdicts [rows], the rounding of either side [2, rows], and floors φ [rows].

    Also of float32, where nothing can be run in float64.
    """
    delta, noise = rows.delta, NOISE * rows.size
    moves = _changes(key, evaluator.base(dtype), evaluator.moved(dtype))
    moves = np.maximum(eps * rows.size, moves)
    floor = moves.max(axis=0)
    both, is_lost = np.zeros_like(moves), np.ones(len(delta), bool)
    is_suspect = (delta > rows.limit) | (NUM_FLOORS * floor > noise)
    if not is_suspect.any():
        return np.full(len(delta), AGREE, dtype="<U10"), moves, floor
    if dtype == "float64" and evaluator.nearby is not None:
        errors = errors_of(key, evaluator.nearby).max(axis=0)
        both = RATIO * errors
        # By float32's errors, or by the inputs that it rounds.
        rounded = _changes(key, evaluator.base(dtype), evaluator.nearby.wide)
        is_lost = np.maximum(errors, rounded).max(axis=0) > noise
    rounding = both.max(axis=0)
    is_rounding = is_suspect & (NUM_FLOORS * rounding > noise) & (noise > 0)
    is_jump = ~is_rounding & (NUM_FLOORS * floor > noise)
    change = np.full_like(floor, np.inf)
    if is_jump.any() and dtype == "float64":
        center = evaluator.base(dtype)
        change = _changes(key, center, evaluator.rounded).max(axis=0)
    units = rows.units(eps)
    limit = np.maximum(rows.limit, NUM_FLOORS * rounding)
    explained = delta <= np.maximum(limit, NUM_FLOORS * floor)
    verdicts = np.select(
        [
            is_rounding & explained,
            ~is_rounding & (delta <= limit),
            ~is_rounding & ~is_jump & explained,
            is_jump & (change > STEADY * floor) & explained,
            is_lost & (delta <= units),
        ],
        [UNRESOLVED, AGREE, AGREE, KINK, UNRESOLVED],
        DISAGREE,
    )
    least = np.where(explained, 0, units)
    return verdicts, np.maximum(np.maximum(both, moves), least), floor


def _in_float32(
    key: Key, rows: Rows, evaluator: Evaluator, dtype: str, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdicts [rows], the error of either side [2, rows], and floors φ [rows]."""
    nearby = evaluator.nearby
    assert nearby is not None
    center, *there = nearby.wide
    floor = np.maximum(eps * rows.size, _changes(key, center, there).max(axis=0))
    errors = errors_of(key, nearby)
    ours, theirs = (as_rows(result[key]) for result in center)
    size = np.maximum(row_max(ours), row_max(theirs))
    explained = NUM_FLOORS * np.maximum(floor, errors.max(axis=(0, 1)))
    units = rows.units(eps)
    explained = RATIO * np.maximum(explained, units)
    limit = np.maximum(TOLERANCE["float64"] * size, explained)
    differs = row_max(difference(ours, theirs)) > limit
    largest = max(rows.limit.max(initial=0), units)
    limit = np.maximum(NUM_FLOORS * floor, largest)
    # Both are off where float32 is too narrow; one alone is another function there.
    is_alone = errors[0][::-1] <= STEADY * errors[0]
    is_steady = _spread(key, nearby) <= STEADY * errors[0]
    is_steady &= is_alone & (errors[0] > limit)
    is_bad = (rows.delta > rows.limit) & (differs | is_steady.any(axis=0))
    is_noise = floor > NOISE * rows.size
    verdicts = np.select(
        [
            is_bad,
            is_noise & (_bend(key, nearby) > STEADY * floor),
            is_noise | (rows.delta > NOISE * rows.size),
        ],
        [DISAGREE, KINK, UNRESOLVED],
        AGREE,
    )
    return verdicts, errors.max(axis=0), floor


def _spread(key: Key, nearby: Nearby) -> np.ndarray:
    """The largest change of each side's error when last bits change, [2, rows]."""
    here, *there = [_signed(key, nearby, i) for i in range(len(nearby.wide))]
    changes = [
        [row_max(a - b) for a, b in zip(both, here, strict=True)] for both in there
    ]
    return np.max(changes, axis=0)


def _bend(key: Key, nearby: Nearby) -> np.ndarray:
    """|f(x + h) + f(x − h) − 2 f(x)| of each row: as large as the change at a jump."""
    found = []
    for center, there, back in zip(*nearby.wide, strict=True):
        x, a, b = (as_rows(result[key]) for result in (center, there, back))
        found.append(row_max(difference(a, x) + difference(b, x)))
    return np.max(found, axis=0)


def _changes(key: Key, center: Results, there: Sequence[Results]) -> np.ndarray:
    """The largest change of each row, of either side: [2, rows]."""
    changes = [
        [
            row_max(difference(as_rows(result[key]), as_rows(at[key])))
            for result, at in zip(results, center, strict=True)
        ]
        for results in there
    ]
    return np.max(changes, axis=0)


def _signed(key: Key, nearby: Nearby, i: int) -> list[np.ndarray]:
    """float32 − float64 of either side at the i-th inputs."""
    return [
        difference(as_rows(narrow[key]), as_rows(wide[key]))
        for narrow, wide in zip(nearby.narrow[i], nearby.wide[i], strict=True)
    ]


def errors_of(key: Key, nearby: Nearby) -> np.ndarray:
    """The largest |float32 − float64| of each row, [inputs, 2, rows]."""
    found = [_signed(key, nearby, i) for i in range(len(nearby.wide))]
    return np.array([[row_max(error) for error in both] for both in found])
