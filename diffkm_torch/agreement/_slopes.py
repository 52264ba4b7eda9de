"""Slopes of values by differences, with their error: they say whose gradient is wrong.

Of φ(s), s = 0, ±h, ±1.7 h, ±2.9 h, differences of the fourth and of the sixth order
are the slope, and what they differ by is its error. (The rounding of h, 2 h and 3 h may
be linear in h, and would not show.) Each is antisymmetric, so that a kink at 0 does not
show in them: it is the part of

    (φ(s) + φ(−s) − 2 φ(0)) / s = kink + φ'' s + φ'''' s³ / 12 + ...

that does not vanish with s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EPS = float(np.finfo(np.float64).eps)
# The first is as exact as most need; the larger one has less rounding; the last is for
# where a kink or a large curvature is near.
STEPS = EPS ** (1 / 5), EPS ** (1 / 7), EPS ** (1 / 3)
NODES = np.array([1.0, 1.7, 2.9])
# Of the difference of two orders, which is less than the error where steps are long.
SAFETY = 10.0


def _weights(nodes: np.ndarray, powers: list[int]) -> np.ndarray:
    """Of a sum that is 1 for the first power of the nodes and 0 for the others."""
    table = nodes[None, :] ** np.array(powers)[:, None]
    return np.linalg.solve(table, np.eye(len(powers))[0])


FOURTH = np.append(_weights(NODES[:2], [1, 3]), 0.0) / 2
SIXTH = _weights(NODES, [1, 3, 5]) / 2
KINK = _weights(NODES, [0, 1, 3])


class Slope(NamedTuple):
    """A slope by differences, what it may be off by, and the jump of the slope."""

    value: float
    error: float
    kink: float


def slope_of(function: Callable[[float], float], scale: float, enough: float) -> Slope:
    """The slope of a function of one number at 0, by the step that is most exact.

    Args:
        function: Of the distance along a line.
        scale: Of that distance: the spread of the inputs.
        enough: An error that is small enough.
    """
    best = Slope(np.nan, np.inf, 0.0)
    for step in STEPS:
        found = _by_step(function, step * scale)
        if found.error < best.error:
            best = found
        if best.error <= enough:
            break
    return best


def _by_step(function: Callable[[float], float], step: float) -> Slope:
    there, back = (
        np.array([function(sign * node * step) for node in NODES]) for sign in (1, -1)
    )
    odd, even = there - back, there + back - 2 * function(0.0)
    fourth, sixth = FOURTH @ odd / step, SIXTH @ odd / step
    rounding = EPS * np.abs([there, back]).max() / step
    error = SAFETY * abs(sixth - fourth) + rounding
    kink = abs(KINK @ (even / (step * NODES)))
    return Slope(float(sixth), float(error), float(kink))
