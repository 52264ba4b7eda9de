"""What a disagreement looks like, and whose fault it is if that shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffkm_torch._leaves import combine
from diffkm_torch.agreement._seeds import Arrays

# Of |slope of the values − gradient along it| / ‖difference of both gradients‖: below,
# one side's gradient explains the slope of its values; above, it does not.
RIGHT, WRONG = 0.1, 0.5


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
    values: Sequence[Callable[[Arrays], Arrays]],
    gradients: Sequence[np.ndarray],
    arrays: Arrays,
    which: int,
    output: int,
    cotangent: np.ndarray,
) -> str:
    """Holds both gradients against differences of their own values, "" if unclear.

    Args:
        names: Of both sides.
        values: The floating outputs of either as functions of the arrays.
        gradients: Of an output in an input, in float64, of either.
        arrays: The inputs.
        which: Index of the input among them.
        output: Index of the output.
        cotangent: What the output is contracted with.
    """
    x = arrays[which]
    direction = gradients[0] - gradients[1]
    length = np.linalg.norm(direction)
    if not np.isfinite(length) or length == 0:
        return ""
    direction = direction / length
    # Central differences: error h² from the third derivative, eps/h from rounding.
    step = np.finfo(x.dtype).eps ** (1 / 3) * max(1.0, np.abs(x).max(initial=0))

    def slope(function: Callable[[Arrays], Arrays]) -> float:
        ends = [
            function(combine(arrays, [which], [x + s * direction]))
            for s in (step, -step)
        ]
        above, below = (np.sum(cotangent * end[output]) for end in ends)
        return float((above - below) / (2 * step))

    errors = {}
    for name, function, gradient in zip(names, values, gradients, strict=True):
        along = np.sum(gradient * direction)
        errors[name] = abs(slope(function) - along) / length
    for right, wrong in (names, names[::-1]):
        if errors[right] < RIGHT and errors[wrong] > WRONG:
            return f"{wrong}'s is not the slope of its own values, {right}'s is"
    if all(error < RIGHT for error in errors.values()):
        return "each is the slope of its own values: the values differ"
    return ""
