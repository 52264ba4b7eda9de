"""Sums of divergences in x/y over the last axis, without cancellation near x = y.

With t = (x − y)/y and s = t/(2 + t) the logarithm of x/y is 2 artanh s = 2 (s + s³ R),
R = 1/3 + s²/5 + s⁴/7 + …: what the divergences take off it drops out before it is
rounded. Derivatives are rules, because that of a series is another series.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


@jax.jit
def sum_kullback_leibler(x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ x log(x/y) − x + y, over the last axis; y where x ≤ 0."""
    return jnp.sum(_kullback_leibler(x, y), axis=-1)


@jax.jit
def sum_itakura_saito(x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ x/y − log(x/y) − 1, over the last axis."""
    return jnp.sum(_itakura_saito(x, y), axis=-1)


def sums_of_steps(y: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ of both divergences of y + step from y, [] each, without a derivative.

    The step may be far below the rounding of y.
    """
    t = jnp.where(step == 0, 0, step / y)
    near, t, s, r = _series_of(t)
    x = y + step
    of_x = jnp.where(x > 0, x * _log_quotient(jnp.where(x > 0, x, 1), y), 0)
    far = of_x - step, t - _log_quotient(x, y)
    close = step * s * (1 + s * (1 + s) * r), s * (t - 2 * s**2 * r)
    leibler, saito = (
        jnp.sum(jnp.where(near, *v)) for v in zip(close, far, strict=True)
    )
    return leibler, saito


@jax.custom_jvp
def _kullback_leibler(x: jax.Array, y: jax.Array) -> jax.Array:
    near, _, s, r = _series(x, y)
    far = x * _log_quotient(x, y) - (x - y)
    # 2 (1 + s)(s + s³ R) − 2 s in units of (x + y)/2, of which x − y is 2 s.
    terms = jnp.where(near, (x - y) * s * (1 + s * (1 + s) * r), far)
    return jnp.where(x <= 0, y, terms)


@_kullback_leibler.defjvp
def _kullback_leibler_rule(primals: tuple, tangents: tuple):
    (x, y), (dx, dy) = primals, tangents
    tangent = log_ratio(x, y) * dx - _relative_difference(x, y) * dy
    return _kullback_leibler(x, y), tangent


@jax.custom_jvp
def _itakura_saito(x: jax.Array, y: jax.Array) -> jax.Array:
    near, t, s, r = _series(x, y)
    return jnp.where(near, s * (t - 2 * s**2 * r), t - _log_quotient(x, y))


@_itakura_saito.defjvp
def _itakura_saito_rule(primals: tuple, tangents: tuple):
    (x, y), (dx, dy) = primals, tangents
    tangent = _reciprocal_difference(x, y) * dx - _relative_difference(x, y) / y * dy
    return _itakura_saito(x, y), tangent


@jax.custom_jvp
def log_ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """The logarithm of x/y, and 0 where x ≤ 0."""
    near, _, s, r = _series(x, y)
    ratio = jnp.where(near, 2 * (s + s**3 * r), _log_quotient(x, y))
    return jnp.where(x <= 0, 0, ratio)


@log_ratio.defjvp
def log_ratio_rule(primals: tuple, tangents: tuple):
    (x, y), (dx, dy) = primals, tangents
    safe_x, safe_y = (jnp.where(x <= 0, 1, a) for a in primals)
    return log_ratio(x, y), jnp.where(x <= 0, 0, dx / safe_x - dy / safe_y)


@jax.custom_jvp
def _relative_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """The quotient (x − y)/y, and −1 where x ≤ 0."""
    # A division is by the reciprocal: in units of about y it is neither 0 nor infinite.
    unit = jnp.ldexp(jnp.ones_like(y), 2 - jnp.frexp(y)[1])
    unit = jnp.minimum(unit, 1 / jnp.finfo(y.dtype).tiny)
    return jnp.where(x <= 0, -1, (x * unit - y * unit) / (y * unit))


@_relative_difference.defjvp
def _relative_difference_rule(primals: tuple, tangents: tuple):
    (x, y), (dx, dy) = primals, tangents
    safe_x, safe_y = (jnp.where(x <= 0, 1, a) for a in primals)
    tangent = jnp.where(x <= 0, 0, (dx - safe_x / safe_y * dy) / safe_y)
    return _relative_difference(x, y), tangent


@jax.custom_jvp
def _reciprocal_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """The difference 1/y − 1/x."""
    return _relative_difference(x, y) / x


@_reciprocal_difference.defjvp
def _reciprocal_difference_rule(primals: tuple, tangents: tuple):
    (x, y), (dx, dy) = primals, tangents
    return _reciprocal_difference(x, y), dx / x / x - dy / y / y


def _series(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Where the series serves, which is near x = y > 0; there t, s and R."""
    return _series_of(_relative_difference(x, y))


def _series_of(t: jax.Array) -> tuple[jax.Array, ...]:
    s = t / (2 + t)
    # The next term is s³ s²ⁿ/(2 n + 3), which |s| ≤ 1/4 makes less than a rounding.
    n = 12 if t.dtype == jnp.float64 else 5
    r = jnp.full_like(s, 1 / (2 * n + 1))
    for q in reversed(range(n - 1)):
        r = r * s**2 + 1 / (2 * q + 3)
    return jnp.abs(s) <= 0.25, t, s, r


def _log_quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """The logarithm of x/y to a rounding of 1, of any x and y."""
    (log_x, exponent_x), (log_y, exponent_y) = map(_log, (x, y))
    # No large logarithms are subtracted, and no quotient overflows.
    return (exponent_x - exponent_y) * math.log(2) + (log_x - log_y)


def _log(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logarithm of m and the exponent e in x = m 2ᵉ."""
    # A subnormal number is 0 to arithmetic, but not to frexp.
    tiny = jnp.finfo(x.dtype).tiny
    mantissa, exponent = jnp.frexp(jnp.where(jnp.abs(x) < tiny, 0, x))
    return jnp.log(mantissa), exponent.astype(x.dtype)
