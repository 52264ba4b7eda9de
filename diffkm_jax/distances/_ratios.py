"""Sums of divergences in x/y over the last axis, without cancellation near x = y.

With t = (x − y)/y and s = t/(2 + t) the logarithm of x/y is 2 artanh s = 2 (s + s³ R),
R = 1/3 + s²/5 + s⁴/7 + …: what the divergences take off it drops out before it is
rounded. Derivatives are rules, because that of a series is another series.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax


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
    x, t = y + step, jnp.where(step == 0, 0, step / y)
    q, s, r = _decomposed(x, y)
    s = jnp.where(q == 0, t / (2 + t), s)
    log = q * math.log(2) + 2 * (s + s**3 * r)
    of_x = jnp.where(x > 0, x * log, 0)
    near = step * s * (1 + s * (1 + s) * r), s * (t - 2 * s**2 * r)
    leibler = jnp.where(q == 0, near[0], of_x - step)
    saito = jnp.where(q == 0, near[1], t - log)
    return jnp.sum(leibler), jnp.sum(saito)


@jax.custom_jvp
def _kullback_leibler(x: jax.Array, y: jax.Array) -> jax.Array:
    q, s, r = _decomposed(x, y)
    # 2 (1 + s)(s + s³ R) − 2 s in units of (x + y)/2, of which x − y is 2 s.
    near = (x - y) * s * (1 + s * (1 + s) * r)
    far = x * (q * math.log(2) + 2 * (s + s**3 * r)) - (x - y)
    return jnp.where(x <= 0, y, jnp.where(q == 0, near, far))


@_kullback_leibler.defjvp
def _kullback_leibler_rule(primals: tuple, tangents: tuple):
    (x, y), (dx, dy) = primals, tangents
    tangent = log_ratio(x, y) * dx - _relative_difference(x, y) * dy
    return _kullback_leibler(x, y), tangent


@jax.custom_jvp
def _itakura_saito(x: jax.Array, y: jax.Array) -> jax.Array:
    q, s, r = _decomposed(x, y)
    # x/y = 2^q (1 + s)/(1 − s)
    ratio = (1 + s) / (1 - s) * _power_of_two(q)
    far = ratio - 1 - (q * math.log(2) + 2 * (s + s**3 * r))
    return jnp.where(q == 0, 2 * s**2 * (1 / (1 - s) - s * r), far)


@_itakura_saito.defjvp
def _itakura_saito_rule(primals: tuple, tangents: tuple):
    (x, y), (dx, dy) = primals, tangents
    tangent = _reciprocal_difference(x, y) * dx - _relative_difference(x, y) / y * dy
    return _itakura_saito(x, y), tangent


@jax.custom_jvp
def log_ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """The logarithm of x/y, and 0 where x ≤ 0."""
    q, s, r = _decomposed(x, y)
    return jnp.where(x <= 0, 0, q * math.log(2) + 2 * (s + s**3 * r))


@log_ratio.defjvp
def _log_ratio_rule(primals: tuple, tangents: tuple):
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
    tangent = dx / x * (1 / x) - dy / y * (1 / y)
    return _reciprocal_difference(x, y), tangent


def _decomposed(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """The numbers q, s and R in log(x/y) = q log 2 + 2 (s + s³ R), |s| < 0.172.

    Where q = 0, that is near x = y > 0, s is (x − y)/(x + y). Of x = 0, q is −∞.
    """
    (a, of_x), (b, of_y) = map(_binary, (x, y))
    root = math.sqrt(2)
    up, down = a > root * b, b > root * a
    a = jnp.where(up, 0.5 * a, jnp.where(down, 2 * a, a))
    s = (a - b) / (a + b)
    q = of_x - of_y + up.astype(x.dtype) - down.astype(x.dtype)
    # The next term of s² R is s²ⁿ⁺²/(2 n + 3), below a rounding of 1.
    n = 9 if x.dtype == jnp.float64 else 4
    r = jnp.full_like(s, 1 / (2 * n + 1))
    for i in reversed(range(n - 1)):
        r = r * s**2 + 1 / (2 * i + 3)
    return q, s, r


def _binary(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The numbers m in [1, 2) and e with x = m 2ᵉ, by its bits; e is NaN of x < 0.

    Of 0 and subnormal numbers, which are 0 to arithmetic, e is −∞.
    """
    # Not frexp, which takes four times as long.
    info = jnp.finfo(x.dtype)
    kind = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits, one = lax.bitcast_convert_type(x, kind), 2 ** (info.bits - 1 - info.nexp)
    bias = info.maxexp - 1
    mantissa = lax.bitcast_convert_type((bits & (one - 1)) | (bias * one), x.dtype)
    exponent = ((bits >> (info.bits - 1 - info.nexp)) - bias).astype(x.dtype)
    usual = (x >= info.tiny) & (x <= info.max)
    other = jnp.where(jnp.abs(x) < info.tiny, -jnp.inf, jnp.where(x > 0, x, jnp.nan))
    return mantissa, jnp.where(usual, exponent, other)


def _power_of_two(q: jax.Array) -> jax.Array:
    """2^q of whole numbers, infinite ones included."""
    info = jnp.finfo(q.dtype)
    kind = jnp.int64 if q.dtype == jnp.float64 else jnp.int32
    top = info.maxexp - 1
    exponent = jnp.clip(jnp.nan_to_num(q), 1 - top, top).astype(kind)
    one = 2 ** (info.bits - 1 - info.nexp)
    power = lax.bitcast_convert_type((exponent + top) * one, q.dtype)
    return jnp.where(q <= top, power, jnp.where(q > top, jnp.inf, q))
