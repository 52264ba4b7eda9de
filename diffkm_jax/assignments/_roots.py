"""The root that makes rows sum to a number: found by bisection, derived exactly."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Excess = Callable[[jax.Array], jax.Array]


def root_between(excess: Excess, low: jax.Array, high: jax.Array) -> jax.Array:
    """The zero of a decreasing function of every row, [..., 1], with its derivatives.

    The derivative in what the function closes over is exact, in both modes and at every
    order; zero where the function is constant. Those in the two ends are zero.
    """
    low, high = lax.stop_gradient((low, high))

    def solve(excess: Excess, start: jax.Array) -> jax.Array:
        return _bisected(excess, start, start + (high - low))

    return lax.custom_root(excess, low, solve, _divided)


def _bisected(excess: Excess, low: jax.Array, high: jax.Array) -> jax.Array:
    """By bisection; two steps of Newton's method after it find the last bits."""

    def halve(_: int, bracket: tuple) -> tuple:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = excess(middle) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    num = jnp.finfo(low.dtype).nmant + 3
    low, high = lax.fori_loop(0, num, halve, (low, high))
    s = 0.5 * (low + high)
    for _ in range(2):
        value, slope = jax.jvp(excess, (s,), (jnp.ones_like(s),))
        moved = s - value / jnp.where(slope < 0, slope, -1)
        s = jnp.where(slope < 0, moved, s)
    return s


def _divided(slope: Excess, right: jax.Array) -> jax.Array:
    """The solution of a linear equation in every row alone."""
    slopes = slope(jnp.ones_like(right))
    flat = slopes == 0
    return jnp.where(flat, 0, right / jnp.where(flat, 1, slopes))
