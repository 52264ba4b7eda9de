"""Straight-through maps: the value of a discrete choice, the gradient of a soft one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_noise, as_scalar
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._numerics import nonzero
from diffkm_jax.assignments._declared import declared, gradient_of
from diffkm_jax.assignments._softmax import decided, hard, relaxed
from diffkm_jax.assignments._top_k import best

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def perturbed(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """Logits plus noise, in the accumulation dtype; the argmax is the draw.

    An infinite one decides: −inf of either excludes, where +inf of the other may stand.
    """
    dtype = accumulation_dtype(logits, noise)
    excluded = jnp.isneginf(logits) | jnp.isneginf(noise)
    return jnp.where(excluded, -jnp.inf, logits.astype(dtype) + noise.astype(dtype))


def chosen(
    logits: jax.Array, noise: jax.Array | None, *rest: Any, size: int = 1
) -> jax.Array:
    """The one-hot of the draw, in the dtype of the logits; no noise is the best.

    Of a size above 1, the row of as many ones.
    """
    del rest
    scores = logits if noise is None else perturbed(logits, noise)
    rows = hard(scores) if size == 1 else best(scores, size)
    return rows.astype(logits.dtype)


def straight_through(
    logits: Float[ArrayLike, "*batch k"], *, tau: ArrayLike = 1.0
) -> Float[Array, "*batch k"]:
    """Assigns every row to its best cluster, with the gradient of a softmax.

    The value is an exact one-hot. The gradient in `logits` and `tau` is that of
    `softmax(logits / tau)`: biased by design, reverse mode only. A second derivative
    differentiates that softmax again.

    Args:
        logits: Scores, [..., k], floating, no unit; the largest wins, a tie goes to
            the lowest index.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` is not floating, `tau` not real, or forward mode is asked
            for.
        ValueError: `logits` is a scalar or has no cluster; `tau` is not a scalar, or a
            number and not positive.

    Example:
        >>> logits = jnp.zeros(2)
        >>> dk.straight_through(logits).tolist()
        [1.0, 0.0]
        >>> jax.grad(lambda z: dk.straight_through(z)[0])(logits).tolist()
        [0.25, -0.25]

    Source: Bengio, Léonard & Courville 2013, https://arxiv.org/abs/1308.3432
    """
    logits = as_logits(logits)
    tau = as_scalar("tau", tau, logits)
    return declared(chosen, gradient_of(_softened), logits, None, tau)


def sampled_straight_through(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    tau: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a cluster for every row, with the gradient of a softmax.

    The value is the one-hot of argmax(logits + noise): a draw from softmax(logits), at
    any `tau`. The gradient in `logits` and `tau` is that of `softmax(logits / tau)`,
    without the noise: exact in expectation for costs linear in the row at tau = 1,
    else biased; reverse mode only. That in `noise` is zero.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [..., k], floating, no unit.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` not real, or forward mode
            is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits, noise = jnp.zeros(4), jnp.array([0.0, 0.0, 3.0, 0.0])
        >>> draw = lambda z: dk.sampled_straight_through(z, noise)
        >>> draw(logits).tolist(), jax.grad(lambda z: draw(z)[0])(logits).tolist()
        ([0.0, 0.0, 1.0, 0.0], [0.1875, -0.0625, -0.0625, -0.0625])

    Source: Bengio, Léonard & Courville 2013, https://arxiv.org/abs/1308.3432
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    tau = as_scalar("tau", tau, logits, noise)
    return declared(chosen, gradient_of(_softened), logits, noise, tau)


def _softened(logits: jax.Array, noise: jax.Array | None, tau: jax.Array) -> jax.Array:
    del noise
    return relaxed(logits, tau)


def gapped_straight_through(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    tau: ArrayLike = 1.0,
    gap: ArrayLike | None = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a cluster for every row, with the gradient of a softmax in its favor.

    The value is the one-hot of argmax(logits + noise). The gradient in `logits` and
    `tau` is that of `softmax((logits + m)/tau)`, where m, held constant, is the least
    change that lifts the drawn logit to the largest one and keeps the others `gap`
    below: it follows the draw without a second noise. Biased, reverse mode only; the
    gradient in `noise` and `gap` is zero.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [..., k], floating, no unit.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced.
        gap: Scalar, not negative, in the unit of `logits`; may be traced. None is the
            gap to expect of perturbed logits, −log(1 − p)/p for a draw of probability
            p, row by row.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` or `gap` not real, or
            forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `tau` or `gap` is not a scalar, or a number out of range.

    Example:
        >>> logits, noise = jnp.zeros(2), jnp.array([0.0, 3.0])
        >>> def drawn(z, gap):
        ...     return dk.gapped_straight_through(z, noise, gap=gap)[1]
        >>> [f"{jax.grad(drawn)(logits, gap)[1]:.4f}" for gap in (0.0, jnp.log(3.0))]
        ['0.2500', '0.1875']

    Source: Fan, Chi, Rudnicky & Ramadge 2022, https://arxiv.org/abs/2206.07235
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    tau = as_scalar("tau", tau, logits, noise)
    if gap is not None:
        gap = as_scalar("gap", gap, logits, noise, zero=True)
    return declared(chosen, gradient_of(_gapped), logits, noise, tau, gap)


def _gapped(
    logits: jax.Array, noise: jax.Array, tau: jax.Array, gap: jax.Array | None
) -> jax.Array:
    z = decided(logits.astype(tau.dtype))
    drawn = chosen(logits, noise) > 0
    top = jnp.max(z, axis=-1, keepdims=True)
    if gap is None:
        everyone = jax.nn.logsumexp(z, axis=-1, keepdims=True)
        others = jnp.where(drawn, -jnp.inf, z)
        others = jax.nn.logsumexp(others, axis=-1, keepdims=True)
        p = jnp.sum(jnp.where(drawn, jnp.exp(z - everyone), 0), axis=-1, keepdims=True)
        # Minus the logarithm of 1 − p, which is lost to rounding at either end.
        wide = jnp.where(p < 0.5, -jnp.log1p(-p), everyone - others)
        gap = jnp.where(p > 0, wide / nonzero(p), 1)
    shifted = jnp.where(drawn, top, jnp.minimum(z, top - gap))
    change = jnp.where(jnp.isneginf(z), 0, shifted - z)
    return relaxed(z + lax.stop_gradient(change), tau)


def reinmax(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    tau: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a cluster for every row, with a gradient of second order.

    The value is the one-hot D of argmax(logits + noise). With p = softmax(logits),
    q = (softmax(logits/tau) + D)/2 and J(p) = diag(p) − p pᵀ, the gradient in `logits`
    of a cotangent g is 2 J(q) g − J(p) g / 2, Heun's rule where straight-through is
    Euler's: exact in expectation for costs quadratic in the row at tau = 1, else
    biased; reverse mode only. The gradient in `noise` and `tau` is zero.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [..., k], floating, no unit.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced. At least 1 is advised.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` not real, or forward mode
            is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits, noise = jnp.zeros(4), jnp.array([3.0, 0.0, 0.0, 0.0])
        >>> draw = lambda z: dk.reinmax(z, noise)
        >>> draw(logits).tolist(), jax.grad(lambda z: draw(z)[0])(logits).tolist()
        ([1.0, 0.0, 0.0, 0.0], [0.375, -0.125, -0.125, -0.125])

    Source: Liu, Dong, Liu, Yu & Gao 2023, https://arxiv.org/abs/2304.08612
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    tau = as_scalar("tau", tau, logits, noise)
    return declared(chosen, _reinmax_rule, logits, noise, tau)


def _reinmax_rule(
    cotangent: jax.Array, logits: jax.Array, noise: jax.Array, tau: jax.Array
) -> tuple[jax.Array, None, None]:
    g, drawn = cotangent.astype(tau.dtype), chosen(logits, noise)
    gradient = second_order(g, logits, drawn, tau)
    gradient = jnp.where(jnp.isneginf(logits), 0, gradient)
    return gradient.astype(logits.dtype), None, None


def second_order(
    g: jax.Array, logits: jax.Array, drawn: jax.Array, tau: jax.Array
) -> jax.Array:
    """2 J(q) g − J(p) g / 2, q halfway between a softmax and the draw."""
    p = relaxed(logits, jnp.ones_like(tau))
    q = 0.5 * (relaxed(logits, tau) + drawn.astype(tau.dtype))
    return 2 * covariance(q, g) - 0.5 * covariance(p, g)


def covariance(p: jax.Array, g: jax.Array) -> jax.Array:
    """J(p) g = p (g − p·g): the Jacobian of a softmax whose value is p."""
    # Not the product of that difference, which jaxlib 0.10.2 and 0.11.0 get wrong on
    # CPUs where p has an axis less than g: https://github.com/jax-ml/jax/issues/39103
    weighed = p * g
    return weighed - p * jnp.sum(weighed, axis=-1, keepdims=True)
