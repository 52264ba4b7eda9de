"""The verdicts on one array, from what both sides return at and near the inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffkm_torch.agreement._evaluate import Key, Result
from diffkm_torch.agreement._rows import (
    as_rows,
    difference,
    non_finite_differ,
    row_max,
)
from diffkm_torch.agreement._verdicts import (
    AGREE,
    DISAGREE,
    MAX_SATURATION,
    NOISE,
    NUM_FLOORS,
    UNRESOLVED,
    Rows,
    verdicts_in_float32,
    verdicts_in_float64,
)

# Where a tolerance is not given: of the largest entry of a row.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}

# JAX's and torch's.
Results = tuple[Result, Result]


@dataclass(frozen=True)
class SecondLook:
    """What both sides return further away, and in the other precision.

    Attributes:
        center: At the inputs. In float64, if the functions can be run in that.
        near: At inputs moved by one unit in the last place of the dtype looked at.
        far: In float64 at inputs rounded to fewer bits, in float32 at inputs moved by
            64 units.
        other: At the inputs, in the other precision, if the functions can be run in it.
    """

    center: Results
    near: Sequence[Results]
    far: Sequence[Results]
    other: Results | None


@dataclass(frozen=True)
class Evaluations:
    """What both sides return in a dtype.

    Attributes:
        dtype: Of the inputs.
        base: At the inputs.
        moved: At inputs moved by one unit in the last place, several times.
        second_look: Makes the rest.
        scale: Of an array the size of its output over the spread of its inputs; the
            flag is whether all its rows are noise.
    """

    dtype: str
    base: Results
    moved: Sequence[Results]
    second_look: Callable[[], SecondLook]
    scale: Callable[[Key, bool], float]


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


def judge(key: Key, evaluations: Evaluations, eps: float, tol: float) -> Judgement:
    """The verdicts on one array; with eps 0 it is compared exactly."""
    ours, theirs = (as_rows(result[key]) for result in evaluations.base)
    delta = np.abs(difference(ours, theirs))
    if eps == 0:
        # Exactly, where float64 would round.
        differ = evaluations.base[0][key] != evaluations.base[1][key]
        delta = np.where(np.reshape(differ, delta.shape), np.maximum(delta, 1), 0.0)
    rows = _rows(key, evaluations, delta, eps, tol)
    verdicts = np.full(len(ours), AGREE, dtype="<U10")
    if (rows.differs | rows.is_noise).any():
        is_wide = evaluations.dtype == "float64"
        look_again = _again_in_float64 if is_wide else _again_in_float32
        verdicts = look_again(key, rows, evaluations.second_look())
    # NaN that meets NaN, or infinity infinity, says nothing of the formula behind it.
    is_number = np.isfinite(ours) & np.isfinite(theirs)
    verdicts[~is_number.any(axis=1)] = UNRESOLVED
    patterns = non_finite_differ(ours, theirs)
    verdicts[patterns.any(axis=1)] = DISAGREE
    is_off = (delta > tol * rows.size[:, None]) | patterns
    tiny = np.finfo(np.float64).tiny
    return Judgement(
        verdicts=verdicts,
        off=is_off & (verdicts == DISAGREE)[:, None],
        against_floor=float((rows.delta / np.maximum(rows.floor, tiny)).max(initial=0)),
        num_patterns=int(patterns.sum()),
    )


def _rows(
    key: Key, evaluations: Evaluations, delta: np.ndarray, eps: float, tol: float
) -> Rows:
    ours, theirs = (as_rows(result[key]) for result in evaluations.base)
    size = np.maximum(row_max(ours), row_max(theirs))
    floor, least = eps * size, 0.0
    if eps:
        floor = np.maximum(floor, change(key, evaluations.base, evaluations.moved))
        # What is denormal one side may flush to zero.
        least = NUM_FLOORS * float(np.finfo(evaluations.dtype).tiny)
    limit = np.maximum(np.maximum(NUM_FLOORS * floor, tol * size), least)
    unit = _unit(key, evaluations, size, floor, eps)
    return Rows(
        delta=row_max(delta),
        size=size,
        floor=floor,
        differs=np.asarray((delta > limit[:, None]).any(axis=1)),
        exceeds_tol=row_max(delta) > tol * size,
        units=row_max(delta) / unit,
    )


def _unit(
    key: Key, evaluations: Evaluations, size: np.ndarray, floor: np.ndarray, eps: float
) -> float:
    """The unit u = eps · max(scale, largest row), the scale within bounds."""
    largest = size.max(initial=0)
    all_noise = bool((NUM_FLOORS * floor > NOISE * size).all())
    scale = evaluations.scale(key, all_noise)
    if not all_noise:
        scale = min(scale, MAX_SATURATION * largest)
    # A difference of integers, or of zeros, is no rounding.
    return eps * max(scale, largest) or float(np.finfo(np.float64).tiny)


def change(key: Key, center: Results, there: Sequence[Results]) -> np.ndarray:
    """The largest change of each row, on either side, [rows]."""
    changes = [
        row_max(difference(as_rows(result[key]), as_rows(at[key])))
        for results in there
        for result, at in zip(results, center, strict=True)
    ]
    return np.max(changes, axis=0)


def _again_in_float64(key: Key, rows: Rows, look: SecondLook) -> np.ndarray:
    far = change(key, look.center, look.far)
    in_float32 = np.zeros_like(far)
    if look.other is not None:
        in_float32 = change(key, look.center, [look.other])
    return verdicts_in_float64(rows, far, in_float32)


def _again_in_float32(key: Key, rows: Rows, look: SecondLook) -> np.ndarray:
    near = change(key, look.center, look.near)
    far = change(key, look.center, look.far)
    in_float64 = np.full_like(rows.delta, np.inf)
    if look.other is not None:
        ours, theirs = (as_rows(result[key]) for result in look.center)
        in_float64 = row_max(difference(ours, theirs))
    return verdicts_in_float32(rows, near, far, in_float64)
