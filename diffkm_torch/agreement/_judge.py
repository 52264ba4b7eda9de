"""Is a difference more than rounding? Judged row by row, against each row's own noise.

The noise floor of a row is the largest change of it, on either side, when every input
is moved by one unit in the last place, and at least eps times its largest entry. Rows
that differ by at most 1000 floors, or by a tolerance times their largest entry, agree.

Where 1000 floors are more than 1 % of a row that says nothing, and there are two
reasons: rounding is all there is in the row, or moving the inputs broke a tie. So such
rows, and those that differ, are looked at once more, at inputs further away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffkm_torch.agreement._sides import Found, Key

AGREE, UNRESOLVED, KINK, DISAGREE = "agree", "unresolved", "kink", "disagree"
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
FLOORS = 1000.0
# Units roundoff of the natural size by which a saturated row may be wrong: so few say
# nothing, and more nothing where float32 loses the row. And how many times the largest
# row the natural size may be, unless all rows are noise.
TINY, SMALL, NATURAL = 20.0, 100.0, 1e5
# The share of a row that its rounding may be.
NOISY = 0.01
# A jump does not grow with the move that makes it; this much is chance.
GROWTH = 8.0


Both = tuple[Found, Found]


@dataclass(frozen=True)
class Further:
    """What both sides (JAX, torch) return further away, for a second look.

    Attributes:
        center: At the inputs. In float64, if the functions can be run in that.
        near: At inputs moved by one unit in the last place of the dtype looked at.
        far: At inputs that are rounded to fewer bits, if that is float64, and else
            moved by 64 units.
        other: At the inputs, in the other precision, if the functions can be run in it.
    """

    center: Both
    near: Sequence[Both]
    far: Sequence[Both]
    other: Both | None


@dataclass(frozen=True)
class Evidence:
    """What both sides return in a dtype.

    Attributes:
        dtype: Of the inputs.
        base: At the inputs.
        moved: At inputs moved by one unit in the last place, several times.
        further: Makes the rest.
        natural: Of an array the size that its entries have where nothing saturates,
            and whether all of it is noise.
    """

    dtype: str
    base: Both
    moved: Sequence[Both]
    further: Callable[[], Further]
    natural: Callable[[Key, bool], float]


def change(key: Key, center: Both, there: Sequence[Both]) -> np.ndarray:
    """The largest change of each row, on either side, [rows]."""
    changes = [
        row_max(difference(as_rows(found[key]), as_rows(at[key])))
        for both in there
        for found, at in zip(both, center, strict=True)
    ]
    return np.max(changes, axis=0)


@dataclass(frozen=True)
class Judgement:
    """Of one array, [rows, entries], the verdict of every row and why.

    Attributes:
        verdicts: Of the rows, [rows].
        off: The entries that differ by more than rounding explains.
        against_floor: The largest difference over the floor of its row.
        num_patterns: Entries that are NaN or infinite on one side only.
    """

    verdicts: np.ndarray
    off: np.ndarray
    against_floor: float
    num_patterns: int


@dataclass(frozen=True)
class _Rows:
    """Of every row its largest difference and entry, its floor, and what they say.

    `units` are the differences in units roundoff of the natural size.
    """

    delta: np.ndarray
    size: np.ndarray
    floor: np.ndarray
    is_off: np.ndarray
    units: np.ndarray
    tol: float

    @property
    def is_noisy(self) -> np.ndarray:
        return FLOORS * self.floor > NOISY * self.size


def judge(key: Key, evidence: Evidence, eps: float, tol: float) -> Judgement:
    """The verdicts on one array; with eps 0 it is compared exactly."""
    ours, theirs = (as_rows(found[key]) for found in evidence.base)
    patterns = (np.isfinite(ours) != np.isfinite(theirs)) | (
        ~np.isfinite(ours) & (np.nan_to_num(ours) != np.nan_to_num(theirs))
    )
    delta = np.abs(difference(ours, theirs))
    if eps == 0:
        # Exactly, where float64 would round.
        differ = evidence.base[0][key] != evidence.base[1][key]
        delta = np.where(np.reshape(differ, delta.shape), np.maximum(delta, 1), 0.0)
    size = np.maximum(row_max(ours), row_max(theirs))
    floor = eps * size
    if eps:
        floor = np.maximum(floor, change(key, evidence.base, evidence.moved))
    # What is denormal one side may flush to zero.
    least = FLOORS * np.finfo(evidence.dtype).tiny if eps else 0
    off = delta > np.maximum(np.maximum(FLOORS * floor, tol * size), least)[:, None]
    is_off = np.asarray(off.any(axis=1))
    largest, all_noise = size.max(initial=0), (FLOORS * floor > NOISY * size).all()
    natural = evidence.natural(key, bool(all_noise))
    if not all_noise:
        natural = min(natural, NATURAL * largest)
    # A difference of integers, or of zeros, is no rounding.
    unit = eps * max(natural, largest) or np.finfo(np.float64).tiny
    rows = _Rows(row_max(delta), size, floor, is_off, row_max(delta) / unit, tol)
    verdicts = np.full(len(ours), AGREE, dtype="<U10")
    if (rows.is_off | rows.is_noisy).any():
        look = _in_float64 if evidence.dtype == "float64" else _in_float32
        verdicts = look(key, evidence.further(), rows)
    verdicts[patterns.any(1)] = DISAGREE
    tiny = np.finfo(np.float64).tiny
    return Judgement(
        verdicts=verdicts,
        off=((delta > tol * size[:, None]) | patterns)
        & (verdicts == DISAGREE)[:, None],
        against_floor=float((rows.delta / np.maximum(floor, tiny)).max(initial=0)),
        num_patterns=int(patterns.sum()),
    )


def _in_float64(key: Key, further: Further, rows: _Rows) -> np.ndarray:
    """Looks again where inputs are rounded to fewer bits, and in float32.

    Exact ties stay ties there, and what rests on rounding changes: a noisy row that
    stays is judged as it is. A saturated row does not change, whatever its rounding:
    its difference is tiny, or small and of a row that float32 loses.
    """
    far = change(key, further.center, further.far)
    is_judged = ~rows.is_noisy | (far <= NOISY * rows.size)
    differs = np.where(rows.is_noisy, rows.delta > rows.tol * rows.size, rows.is_off)
    is_bad = is_judged & differs & (rows.delta > 10 * far)
    is_rounding = rows.units <= TINY
    if further.other is not None:
        narrow = change(key, further.center, [further.other])
        is_rounding |= (rows.units <= SMALL) & (narrow > NOISY * rows.size)
    is_kink = far <= GROWTH * np.maximum(rows.floor, rows.delta)
    return _verdicts(is_judged & ~differs, is_bad, is_rounding, is_kink)


def _in_float32(key: Key, further: Further, rows: _Rows) -> np.ndarray:
    """Looks again in float64, where inputs are moved by one and by 64 units of float32.

    What is smooth changes in proportion, what has a kink does not; a difference that
    such a move makes is not judged. A small one, where the two sides agree in float64,
    is rounding.
    """
    near = change(key, further.center, further.near)
    far = change(key, further.center, further.far)
    is_bad = rows.is_off & ~rows.is_noisy & (rows.delta > 2 * np.maximum(near, far))
    is_rounding = np.zeros_like(is_bad)
    if further.other is not None:
        ours, theirs = (as_rows(found[key]) for found in further.center)
        apart = row_max(difference(ours, theirs))
        is_rounding = (rows.units <= SMALL) & (apart < 0.1 * rows.delta)
    is_kink = (far < GROWTH * near) | (far > 64 * GROWTH**2 * near)
    return _verdicts(~rows.is_off & ~rows.is_noisy, is_bad, is_rounding, is_kink)


def _verdicts(
    is_good: np.ndarray,
    is_bad: np.ndarray,
    is_rounding: np.ndarray,
    is_kink: np.ndarray,
) -> np.ndarray:
    return np.select(
        [is_good, is_bad & ~is_rounding, is_kink & ~is_rounding],
        [AGREE, DISAGREE, KINK],
        UNRESOLVED,
    )


def as_rows(array: np.ndarray) -> np.ndarray:
    """The array in float64 as [rows, entries]: of one axis, each entry is a row."""
    array = np.asarray(array, np.float64)
    if array.size == 0:
        return np.zeros((0, 1))
    return array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def row_max(rows: np.ndarray) -> np.ndarray:
    """The largest finite entry of each row, without its sign."""
    finite = np.where(np.isfinite(rows), np.abs(rows), 0)
    return finite.max(axis=1, initial=0)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference, 0 where one of the two is not finite."""
    finite = np.isfinite(a) & np.isfinite(b)
    return np.subtract(a, b, out=np.zeros_like(a), where=finite)
