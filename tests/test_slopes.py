"""Slopes of values by differences: exact to rounding, with their error and a kink."""

import numpy as np
import pytest

from diffkm_torch.agreement._diagnosis import who_is_not_finite, who_is_wrong
from diffkm_torch.agreement._slopes import slope_of

NAMES = "jax", "torch"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_slope_of_a_smooth_function_is_exact_to_rounding(scale):
    def function(s):
        return np.exp(np.sin(s / scale + 0.3))

    exact = np.cos(0.3) * function(0.0) / scale
    found = slope_of(function, scale, 0.0)
    assert abs(found.value - exact) < found.error < 1e-11 * abs(exact)


def test_where_a_kink_is_near_the_slope_is_that_on_this_side_of_it():
    found = slope_of(lambda s: abs(s - 1e-4) + s**2, 1.0, 1e-6)
    np.testing.assert_allclose(found.value, -1, atol=1e-9)
    assert found.kink < 1e-4


def test_a_kink_at_the_point_itself_is_the_jump_of_the_slope():
    found = slope_of(lambda s: 3 * abs(s) + np.exp(s), 1.0, 1e-6)
    np.testing.assert_allclose(found.value, 1, atol=1e-6)
    np.testing.assert_allclose(found.kink, 6, rtol=1e-9)


def cube(s):
    return (1 + s) ** 3


def narrow(s):
    return float(np.float32(1 + s)) ** 3


def kinked(s):
    return cube(s) + abs(s)


@pytest.mark.parametrize(
    ("lines", "expected", "says"),
    [
        ((cube, cube), (3, 3.00001), "torch's is not the slope of its own values"),
        ((cube, cube), (2.0, 3.0), "jax's is not the slope of its own values"),
        ((cube, lambda s: 2 * cube(s)), (3, 6), "the values differ"),
        ((kinked, kinked), (3, 4), "the values have a kink there"),
        ((cube, narrow), (3, 3 + 1e-7), "torch's values jump"),
        ((narrow, cube), (3 + 1e-7, 3), "jax's values jump"),
        ((cube, cube), (4, 5), "neither is the slope of its own values"),
        # Nothing is certain where both are rough, or equal.
        ((narrow, narrow), (3, 3 + 1e-7), ""),
        ((cube, cube), (3, 3), ""),
        ((cube, cube), (3, np.nan), ""),
    ],
)
def test_the_side_is_named_where_the_slopes_tell_it(lines, expected, says):
    length = abs(expected[0] - expected[1])
    found = who_is_wrong(NAMES, lines, expected, length, 1.0)
    assert says in found
    assert bool(says) == bool(found)


def test_a_derivative_that_is_not_finite_is_at_fault_where_the_slope_is():
    gradients = [np.array([3.0, 1.0]), np.array([np.nan, 1.0])]
    found = who_is_not_finite(NAMES, [cube, cube], gradients, 1.0)
    assert found.startswith("torch's is not finite")
    found = who_is_not_finite(NAMES, [cube, cube], gradients[::-1], 1.0)
    assert found.startswith("jax's is not finite")
    wrong = [np.array([7.0, 1.0]), gradients[1]]
    assert who_is_not_finite(NAMES, [cube, cube], wrong, 1.0) == ""
    root = [lambda s: np.sqrt(np.float64(s)) if s >= 0 else np.nan] * 2
    assert who_is_not_finite(NAMES, root, gradients, 1.0) == ""
