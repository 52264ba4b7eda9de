"""The loss of which a map is the gradient: cross entropy for softmax, and its kin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_floating, as_logits, check_shape
from diffkm_jax._hints import hinted
from diffkm_jax.assignments._entmax import as_alpha, entmax
from diffkm_jax.assignments._softmax import decided

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


@hinted
def entmax_loss(
    logits: Float[ArrayLike, "*batch k"],
    targets: Float[ArrayLike, "*batch k"],
    *,
    alpha: ArrayLike = 1.5,
) -> Float[Array, "*batch"]:
    """The Fenchel–Young loss of `entmax`: cross entropy at alpha = 1, less entropy.

    With p = entmax(logits) and Ω(p) = Σ (p^alpha − p)/(alpha (alpha − 1)) it is
    (p − y)·logits − Ω(p) + Ω(y), convex in the logits, and zero where p = y, which
    above alpha = 1 finite logits attain. The gradient is exact, in both modes and at
    every order: p − y in the logits; that in `targets` is zero where a target is zero.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf excludes a cluster.
        targets: Rows y that sum to one, as one-hots, [..., k], floating, no unit.
        alpha: Scalar, at least 1, no unit; may be traced.

    Returns:
        Losses, [...], no unit, float64 if an array is, else float32; infinite where a
        cluster is excluded that the target has. A row of −inf alone is NaN.

    Raises:
        TypeError: `logits` or `targets` is not floating, or `alpha` not real.
        ValueError: `logits` is a scalar or has no cluster, `targets` has another shape;
            `alpha` is not a scalar, or a number and below 1.

    Example:
        >>> logits, y = jnp.array([2.0, 0.0, -1.0]), jnp.array([1.0, 0.0, 0.0])
        >>> [f"{dk.entmax_loss(logits, y, alpha=a):.3f}" for a in (1.0, 1.5, 2.0)]
        ['0.170', '0.000', '0.000']
        >>> [f"{slope:.2f}" for slope in jax.grad(dk.entmax_loss)(-logits, y)]
        ['-1.00', '0.17', '0.83']

    Source: Blondel, Martins & Niculae 2020, https://arxiv.org/abs/1901.02324
    """
    logits = as_logits(logits)
    targets = as_floating("targets", targets)
    layout = f"of the shape of logits {logits.shape}"
    check_shape("targets", targets, logits.shape, layout)
    alpha = as_alpha(alpha, logits, targets)
    z, y = decided(logits.astype(alpha.dtype)), targets.astype(alpha.dtype)
    p = entmax(z, alpha=alpha)
    # Rows sum to one: what all logits have in common falls out, here before rounding.
    z -= jnp.max(z, axis=-1, keepdims=True)
    unused = jnp.isneginf(z) & (y == 0)
    linear = jnp.where(unused, 0, (p - y) * jnp.where(unused, 0, z))
    a = alpha - 1
    terms = linear - _negentropy(p, a) + _negentropy(y, a)
    return jnp.sum(terms, axis=-1)


def _negentropy(p: jax.Array, a: jax.Array) -> jax.Array:
    """The terms p (p^a − 1)/(a (1 + a)), with p log p where a = 0, and 0 where p is."""
    positive = p > 0
    log_p = jnp.log(jnp.where(positive, p, 1))
    x = a * log_p
    small = jnp.abs(x) < 0.05
    # Of (exp(x) − 1)/x = 1 + x/2 + x²/6 + …, by Horner's rule.
    series, held = jnp.ones_like(x), jnp.where(small, x, 0)
    for n in range(11, 1, -1):
        series = 1 + held / n * series
    direct = jnp.expm1(jnp.where(small, 0, x)) / jnp.where(small, 1, a)
    power = jnp.where(small, log_p * series, direct)
    return jnp.where(positive, p * power / (1 + a), 0)
