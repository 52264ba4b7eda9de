"""What a disagreement looks like, and whose fault it is if that shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffkm_torch.agreement._slopes import slope_of

# Of |slope of the values − gradient along it| / ‖difference of both gradients‖: below,
# one side's gradient explains the slope of its values; above, it does not.
RIGHT, WRONG = 0.1, 0.5
# The error of a slope, over the same, that no smaller step need improve.
CERTAIN = 0.01
# One side's values are rough if the error of their slope is so much the other's.
ROUGH = 100.0


def likeness(
    names: tuple[str, str], ours: np.ndarray, theirs: np.ndarray, num_patterns: int
) -> str:
    """A word on two arrays that disagree, "" if none fits."""
    if num_patterns:
        return f"NaN or infinities that differ: {num_patterns} entries"
    for name, a, b in ((names[0], ours, theirs), (names[1], theirs, ours)):
        if not a.any() and b.any():
            return f"{name}'s is zero: is something detached or stopped?"
    if _is_close(ours, -theirs):
        return "the signs are opposite"
    scale = np.vdot(ours, ours)
    factor = float(np.vdot(ours, theirs) / scale) if scale else 0.0
    if abs(factor - 1) > 1e-3 and _is_close(factor * ours, theirs):
        return f"{names[1]}'s is {factor:.6g} times {names[0]}'s"
    is_square = ours.ndim > 1 and ours.shape[-1] == ours.shape[-2]
    if is_square and _is_close(np.swapaxes(ours, -1, -2), theirs):
        return "one is the transpose of the other"
    return ""


def _is_close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max(initial=0)))


def who_rounds(names: tuple[str, str], shares: tuple[float, float]) -> str:
    """Whose rounding hides a row, "" if there is none to speak of."""
    low, high = sorted(range(2), key=lambda i: shares[i])
    if not shares[high]:
        return ""
    much, less = (f"{s:.1g}" if s < 1 else "all" for s in (shares[high], shares[low]))
    if shares[high] < 10 * shares[low]:
        return f"rounding may be {much} of a row, on both sides"
    return (
        f"{names[high]}'s rounding may be {much} of a row, {names[low]}'s {less} of it"
    )


def who_is_wrong(
    names: tuple[str, str],
    lines: Sequence[Callable[[float], float]],
    expected: Sequence[float],
    length: float,
    scale: float,
) -> str:
    """Holds both derivatives against differences of their own values, "" if unclear.

    Args:
        names: Of both sides.
        lines: What either returns along a line through the inputs, as one number.
        expected: The slope of that, if the derivative of either side is right.
        length: The difference of both derivatives along the line.
        scale: The spread of the input.
    """
    if not np.isfinite(length) or length == 0:
        return ""
    slopes = [slope_of(line, scale, CERTAIN * length) for line in lines]
    errors = [
        abs(slope.value - along) / length
        for slope, along in zip(slopes, expected, strict=True)
    ]
    is_known = [slope.error < RIGHT * length for slope in slopes]
    is_right = [k and e < RIGHT for k, e in zip(is_known, errors, strict=True)]
    is_wrong = [k and e > WRONG for k, e in zip(is_known, errors, strict=True)]
    if all(is_right):
        return "each is the slope of its own values: the values differ"
    if all(is_known) and all(slope.kink > RIGHT * length for slope in slopes):
        return "the values have a kink there, and each side its rule for it"
    if all(is_wrong):
        return "neither is the slope of its own values: are they declared?"
    for right, wrong in ((0, 1), (1, 0)):
        if is_right[right] and is_wrong[wrong]:
            return (
                f"{names[wrong]}'s is not the slope of its own values, "
                f"{names[right]}'s is"
            )
        is_rough = slopes[wrong].error > ROUGH * slopes[right].error
        if is_right[right] and not is_known[wrong] and is_rough:
            return (
                f"{names[wrong]}'s values jump where its inputs hardly move, "
                f"{names[right]}'s do not: is something narrower in between?"
            )
    return ""


def who_is_not_finite(
    names: tuple[str, str],
    lines: Sequence[Callable[[float], float]],
    gradients: Sequence[np.ndarray],
    scale: float,
) -> str:
    """Whose derivative is not finite where the slope of its values is, "" if unclear.

    Args:
        names: Of both sides.
        lines: What either returns along the direction of `lone_entries`.
        gradients: Of either.
        scale: The spread of the input.
    """
    direction = lone_entries(gradients)
    for right, wrong in ((0, 1), (1, 0)):
        at = direction != 0
        if not np.isfinite(gradients[right][at]).all():
            continue
        along = float(gradients[right][at] @ direction[at])
        found = [slope_of(line, scale, CERTAIN) for line in lines]
        limit = RIGHT * max(1.0, abs(along))
        if all(s.error < limit and abs(s.value - along) < limit for s in found):
            return (
                f"{names[wrong]}'s is not finite where the slope of its values is, "
                f"and {names[right]}'s is that slope"
            )
    return ""


def lone_entries(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """The direction, of length 1, of the entries that are finite on one side only."""
    ours, theirs = map(np.isfinite, gradients)
    lone = (ours != theirs).astype(np.float64)
    return lone / max(1.0, float(np.linalg.norm(lone)))
