"""One line of the report: the numbers of an array of both sides."""

from __future__ import annotations

import numpy as np

from diffkm_torch.agreement._evaluations import Results
from diffkm_torch.agreement._report import Pair
from diffkm_torch.agreement._rows import as_rows, difference, row_max
from diffkm_torch.agreement._task import Key
from diffkm_torch.agreement._verdicts import (
    AGREE,
    DISAGREE,
    KINK,
    UNRESOLVED,
    Judgement,
)


def pair_of(
    dtype: str,
    key: Key,
    base: Results,
    wide: Results | None,
    judgement: Judgement,
    note: str,
) -> Pair:
    """The pair of a key; `wide` is what both return in float64, if dtype is less."""
    kind, output, name = key
    ours, theirs = (as_rows(result[key]) for result in base)
    delta = np.abs(difference(ours, theirs))
    scale = max(
        row_max(as_rows(array)).max(initial=0)
        for result in base
        for other, array in result.items()
        if other[:2] == key[:2]
    )
    errors = None
    if wide is not None:
        first, second = (
            _over(_largest(as_rows(narrow[key]), as_rows(exact[key])), scale)
            for narrow, exact in zip(base, wide, strict=True)
        )
        errors = first, second
    worst = _worst(ours, theirs, judgement, base[0][key].shape)
    # Of an array without entries nothing is known.
    verdicts = list(judgement.verdicts) or [UNRESOLVED]
    order = DISAGREE, KINK, UNRESOLVED
    return Pair(
        dtype=dtype,
        kind=kind,
        output=output,
        input=name,
        shape=base[0][key].shape,
        difference=float(delta.max(initial=0)),
        scaled=_over(float(delta.max(initial=0)), scale),
        against_floor=judgement.against_floor,
        cosine=_cosine(ours, theirs),
        num_off=int(judgement.off.sum()),
        num_entries=delta.size,
        num_rows=len(ours),
        num_unresolved=verdicts.count(UNRESOLVED) if len(ours) else 0,
        num_kinks=verdicts.count(KINK),
        worst=worst,
        values=None
        if worst is None
        else (float(base[0][key][worst]), float(base[1][key][worst])),
        errors=errors,
        verdict=next((v for v in order if v in verdicts), AGREE),
        note=note,
    )


def _worst(
    ours: np.ndarray,
    theirs: np.ndarray,
    judgement: Judgement,
    shape: tuple[int, ...],
) -> tuple[int, ...] | None:
    """Index of the largest difference, where there is one among those that are off."""
    delta = np.abs(difference(ours, theirs))
    if not (delta.any() or judgement.off.any()):
        return None
    # Where one side alone is finite the difference is larger than any.
    is_lone = np.isfinite(ours) != np.isfinite(theirs)
    size = np.where(is_lone, np.inf, delta)
    if DISAGREE in judgement.verdicts:
        size = np.where(judgement.off, size, -1)
    return tuple(int(i) for i in np.unravel_index(int(size.argmax()), shape))


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    a, b = np.nan_to_num(ours), np.nan_to_num(theirs)
    norms = [float(np.linalg.norm(rows)) for rows in (a, b)]
    if not all(norms) or not np.isfinite(norms).all():
        return None
    return float(np.vdot(a, b) / norms[0] / norms[1])


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(difference(a, b)).max(initial=0))


def _over(error: float, scale: float) -> float:
    return float(error / scale) if scale else error
