"""Entmax of any alpha: from softmax over sparsemax to ever fewer clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._checks import as_logits, as_scalar
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import nonzero
from diffkm_jax.assignments._roots import root_between
from diffkm_jax.assignments._softmax import below_largest, nothing_left

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


@hinted
def entmax(
    logits: Float[ArrayLike, "*batch k"],
    *,
    alpha: ArrayLike = 1.5,
    tau: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """The alpha-entmax of logits / tau: softmax at alpha = 1, sparsemax at 2.

    With z = logits/tau and a = alpha − 1 the value is (1 + a (z − s))^(1/a), or 0 where
    that is of a negative number, for the s that makes it sum to one; it maximizes
    p·z + Σ (p − p^alpha)/(alpha (alpha − 1)). The gradient is exact between changes of
    the support, in logits, alpha and tau, in both modes and at every order: with
    w = p^(2 − alpha) on the support it is, for a cotangent g, w (g − w·g / Σw)/tau in
    the logits. Alpha may be learned, from 1 on.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf excludes a cluster.
        alpha: Scalar, at least 1, no unit; may be traced.
        tau: Positive scalar, in the unit of `logits`; may be traced.

    Returns:
        Rows that sum to one, with exact zeros if alpha is above 1, [..., k], in the
        dtype of `logits`. A row of −inf alone is NaN, with gradient zero; all of it is
        NaN if a traced alpha is below 1.

    Raises:
        TypeError: `logits` is not floating, or `alpha` or `tau` not real.
        ValueError: `logits` is a scalar or has no cluster; `alpha` or `tau` is not a
            scalar, or a number and out of range.

    Example:
        >>> logits = jnp.array([1.0, 0.0, -1.0])
        >>> for alpha in (1.0, 1.5, 2.0):
        ...     print([f"{p:.2f}" for p in dk.entmax(logits, alpha=alpha)])
        ['0.67', '0.24', '0.09']
        ['0.83', '0.17', '0.00']
        ['1.00', '0.00', '0.00']

    Source: Peters, Niculae & Martins 2019, https://arxiv.org/abs/1905.05702; Correia,
        Niculae & Martins 2019 (the gradient in alpha),
        https://arxiv.org/abs/1909.00015
    """
    logits = as_logits(logits)
    alpha, tau = as_alpha(alpha, logits), as_scalar("tau", tau, logits)
    rows = _rows(logits.astype(tau.dtype), alpha, tau)
    return rows.astype(logits.dtype)


def as_alpha(alpha: ArrayLike, *arrays: jax.Array) -> jax.Array:
    """A checked alpha: a real scalar and, if a plain number, at least 1."""
    checked = as_scalar("alpha", alpha, *arrays)
    if isinstance(alpha, int | float) and alpha < 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    return checked


@jax.jit
def _rows(logits: jax.Array, alpha: jax.Array, tau: jax.Array) -> jax.Array:
    # What is lower has no share in any alpha, nor a softmax that is not 0.
    z, out = below_largest(logits, tau, -1000)
    a = alpha - 1

    def excess(s: jax.Array) -> jax.Array:
        share = jnp.where(out, 0, power(z - s, a))
        return jnp.sum(share, axis=-1, keepdims=True) - 1

    # s is 0 if one cluster has all, and this if all have as much.
    log_n = float(np.log(z.shape[-1]))
    top = jnp.where(a * log_n < 1e-3, log_n, -jnp.expm1(-a * log_n) / nonzero(a))
    top = jnp.broadcast_to(top, (*z.shape[:-1], 1))
    s = root_between(excess, jnp.zeros_like(top), top)
    rows = jnp.where(out, 0, power(z - s, a))
    undefined = nothing_left(logits) | jnp.isnan(logits).any(-1, keepdims=True)
    return jnp.where(undefined | (a < 0), jnp.nan, rows)


def power(u: jax.Array, a: jax.Array) -> jax.Array:
    """(1 + a u)^(1/a), exp(u) where a = 0, 0 where 1 + a u is negative."""
    base = 1 + a * u
    positive = base > 0
    return jnp.where(positive, jnp.exp(_log_power(jnp.where(positive, u, 0), a)), 0)


def _log_power(u: jax.Array, a: jax.Array) -> jax.Array:
    """log(1 + a u)/a, by its series in a u where that is small."""
    small = jnp.abs(a * u) < 0.05
    x = jnp.where(small, a * u, 0)
    # Of log(1 + x)/x = 1 − x/2 + x²/3 − …, by Horner's rule.
    series = jnp.zeros_like(x)
    for n in range(14, 0, -1):
        series = 1 / n - x * series
    safe_a = jnp.where(small, 1, a)
    direct = jnp.log1p(jnp.where(small, 0, a * u)) / safe_a
    return jnp.where(small, u * series, direct)
