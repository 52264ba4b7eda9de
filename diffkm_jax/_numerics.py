"""Square roots, quotients and norms that are safe at zero, with their derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def nonzero(x: jax.Array) -> jax.Array:
    """The array with 1 for 0, to divide by."""
    return jnp.where(x == 0, 1, x)


@jax.custom_jvp
def quotient(x: jax.Array, t: jax.Array) -> jax.Array:
    """The quotient x / t, t > 0, with derivative 0 where that is infinite.

    Else −(x/t)/t in t: JAX multiplies by t⁻², which overflows where x/t does not.
    """
    return x / t


@quotient.defjvp
def _quotient_rule(primals: tuple, tangents: tuple):
    (x, t), (dx, dt) = primals, tangents
    value = quotient(x, t)
    infinite = jnp.isinf(value)
    # Replaced and not masked, or the derivative in t would be 0 · ∞.
    finite = jnp.where(infinite, 0, value)
    return value, jnp.where(infinite, 0, dx / t) - finite * (dt / t)


def per_count(sums: jax.Array, counts: jax.Array) -> jax.Array:
    """sums_j / counts_j, [k, d]; zero for clusters without weight."""
    counts = counts[:, None]
    positive = counts > 0
    return jnp.where(positive, quotient(sums, jnp.where(positive, counts, 1)), 0)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """√max(x, 0), with derivative 0 where x is not positive."""
    positive = x > 0
    root = jnp.sqrt(jnp.where(positive, x, 1))
    # NaN is not positive either, and must not become 0.
    return jnp.where(positive, root, lax.stop_gradient(jnp.where(x < 0, 0, x)))


def polar(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The norm of x as a product of two, [..., 1], and its direction, [..., d].

    The first is about the largest entry, in whose units squares neither overflow nor
    underflow. Norm, direction and their gradients are zero at zero.
    """
    tiny = float(jnp.finfo(x.dtype).tiny)
    scale = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    zero = scale < tiny
    # A division is by the reciprocal, which must not underflow either.
    scale = jnp.minimum(scale, 0.25 / tiny)
    # Not 0 where zero, but 0 · x: on CPUs the largest of NaN and 0 may be 0.
    x = jnp.where(zero, 0 * x, x / jnp.where(zero, 1, scale))
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(zero, 1, squared))
    return jnp.where(zero, squared, scale), length, x / length


def unit_of(largest: jax.Array, limit: int | None = None) -> jax.Array:
    """The unit for positive numbers up to the largest in which products are normal.

    A power of two, so that to divide by it does not round. It is 1, unless the largest
    is beyond 2 to the plus or minus `limit`, half of the range; then as near to 1 as
    will do, because derivatives in those numbers are divided by it.
    """
    usable = (largest > 0) & jnp.isfinite(largest)
    exponent = jnp.frexp(jnp.where(usable, largest, 1))[1]
    # 2⁶⁴ is half of float32's range.
    half = jnp.finfo(largest.dtype).maxexp // 2
    bound = half if limit is None else limit
    excess = exponent - jnp.clip(exponent, -bound, bound)
    return jnp.ldexp(jnp.ones_like(largest), excess)


def log_sum(logs: jax.Array, axis: int) -> jax.Array:
    """The logarithm of a sum of exponentials, −∞ with derivative zero of none."""
    largest = lax.stop_gradient(jnp.max(logs, axis=axis, keepdims=True))
    nothing = jnp.isneginf(largest)
    largest = jnp.where(nothing, 0, largest)
    total = jnp.sum(jnp.exp(logs - largest), axis=axis, keepdims=True)
    found = largest + jnp.log(jnp.where(nothing, 1, total))
    return jnp.squeeze(jnp.where(nothing, -jnp.inf, found), axis)
