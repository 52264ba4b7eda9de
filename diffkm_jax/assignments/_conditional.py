"""Relaxed draws given the discrete one, and Gumbel-Rao, their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import (
    as_floating,
    as_logits,
    as_noise,
    as_scalar,
    check_shape,
)
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import shown
from diffkm_jax.assignments._declared import declared, gradient_of
from diffkm_jax.assignments._softmax import relaxed
from diffkm_jax.assignments._straight_through import chosen

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def conditional_gumbel(
    logits: Float[ArrayLike, "*batch k"],
    one_hot: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*draws k"],
    *,
    differentiable: bool,
) -> Float[Array, "*draws k"]:
    """Perturbed logits given which cluster was drawn: their argmax is the draw.

    In law they are logits plus standard Gumbel noise, conditioned on the argmax. With
    log Z = logsumexp(logits), entry D of the draw is noise_D + log Z and any other is
    −log(exp(−noise − logits) + exp(−entry D)).

    Two estimators need them with opposite gradients, so there is no default. With
    `differentiable` the gradient in `logits` goes through these formulas, as REBAR's
    control variate must to be unbiased. Without it the conditional *noise*, perturbed
    logits less logits, is held constant, so that the gradient in `logits` is the
    identity, as in Gumbel-Rao, which else would not have the mean of straight-through
    Gumbel-softmax. Exact in either sense, in both modes; in `one_hot` it is zero, and
    in `noise` it is that of the formulas or zero.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit.
        one_hot: The draw, [..., k], floating, no unit; its logit is finite.
        noise: Standard Gumbel noise, [..., k] or [m, ..., k], floating, no unit,
            independent of the noise of the draw.
        differentiable: Whether the gradient in `logits` goes through the sampler;
            static.

    Returns:
        Perturbed logits, [..., k] or [m, ..., k] as `noise`, float64 if an array is,
        else float32 (rounded to fewer bits, they would tie); −inf where a logit is.

    Raises:
        TypeError: An array is not floating, or `differentiable` is no bool.
        ValueError: `logits` is a scalar or has no cluster; `one_hot` has not its shape,
            or `noise` neither that nor one axis before it.

    Example:
        >>> noise = jax.random.gumbel(jax.random.key(0), (100, 3))
        >>> drawn = jnp.array([0.0, 1.0, 0.0])
        >>> z = dk.conditional_gumbel(jnp.zeros(3), drawn, noise, differentiable=False)
        >>> set(z.argmax(-1).tolist())
        {1}

    Source: Paulus, Maddison & Krause 2021, https://arxiv.org/abs/2010.04838;
        Tucker et al. 2017 (REBAR), https://arxiv.org/abs/1703.07370
    """
    logits, one_hot = as_logits(logits), as_floating("one_hot", one_hot)
    layout = f"of the shape of logits {logits.shape}"
    check_shape("one_hot", one_hot, logits.shape, layout)
    stacked = jnp.ndim(noise) > logits.ndim
    noise = as_noise(noise, logits, draws=1 if stacked else None)
    if not isinstance(differentiable, bool):
        raise TypeError(f"differentiable must be a bool, got {shown(differentiable)}")
    return _conditional(logits, one_hot, noise, differentiable, below=False)


def below_draw(
    logits: jax.Array, one_hot: jax.Array, noise: jax.Array, *, differentiable: bool
) -> jax.Array:
    """Conditional samples less their entry of the draw, with which no other ties."""
    return _conditional(logits, one_hot, noise, differentiable, below=True)


def _conditional(
    logits: jax.Array,
    one_hot: jax.Array,
    noise: jax.Array,
    differentiable: bool,
    *,
    below: bool,
) -> jax.Array:
    dtype = accumulation_dtype(logits, noise)
    z, g = (jnp.broadcast_to(a, noise.shape).astype(dtype) for a in (logits, noise))
    infinite = jnp.isposinf(z) | jnp.isposinf(g)
    never = jnp.isneginf(g)
    # Differences of infinities are no numbers, those of large numbers are.
    large = float(jnp.finfo(dtype).max) / 4
    g = jnp.clip(g, -large, large)
    drawn = jnp.broadcast_to(one_hot, noise.shape) > 0
    excluded = jnp.isneginf(z)
    z = jnp.where(excluded, 0, jnp.minimum(z, large))
    # A row of −inf alone must not make a NaN of its derivative.
    counted = ~excluded | excluded.all(-1, keepdims=True)
    log_z = jax.nn.logsumexp(z, axis=-1, keepdims=True, where=counted)
    top = log_z + jnp.sum(jnp.where(drawn, g, 0), axis=-1, keepdims=True)
    if below:
        # Of −log(exp(−g − z) + exp(−top)) − top the small ones are not rounded to 0.
        entries = jnp.where(drawn, 0, -jax.nn.softplus(top - g - z))
    else:
        entries = jnp.where(drawn, top, -jnp.logaddexp(-g - z, -top))
    if not differentiable:
        entries = lax.stop_gradient(entries) + (z - lax.stop_gradient(z))
    entries = jnp.where(drawn & infinite, jnp.inf, entries)
    return jnp.where(excluded | (never & ~drawn), -jnp.inf, entries)


def gumbel_rao(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "draws *batch k"],
    *,
    tau: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a cluster for every row, with the mean gradient of Gumbel-softmax given it.

    The value is the one-hot of argmax(logits + noise[0]). The gradient in `logits` and
    `tau` is that of softmax(perturbed logits / tau), averaged over the m conditional
    samples that the other rows of `noise` make of the draw, their noise held constant:
    the mean of straight-through Gumbel-softmax at less variance, so biased as much;
    reverse mode only. The gradient in `noise` is zero.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [1 + m, ..., k], floating, no unit, m at least 1:
            row 0 draws, the others are for the m samples given the draw.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` not real, or forward mode
            is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` does not fit; `tau`
            is not a scalar, or a number and not positive.

    Example:
        >>> noise = jax.random.gumbel(jax.random.key(0), (1 + 8, 2))
        >>> row, pullback = jax.vjp(lambda z: dk.gumbel_rao(z, noise), jnp.zeros(2))
        >>> row.tolist() == dk.hard(noise[0]).tolist()  # Row 0 draws,
        True
        >>> bool(pullback(jnp.array([1.0, 0.0]))[0][0] > 0)  # the others soften.
        True

    Source: Paulus, Maddison & Krause 2021, https://arxiv.org/abs/2010.04838
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=2)
    tau = as_scalar("tau", tau, logits, noise)
    return declared(first_draw, gradient_of(_conditional_mean), logits, noise, tau)


def first_draw(logits: jax.Array, noise: jax.Array, *rest: jax.Array) -> jax.Array:
    """The one-hot of the draw by the first row of noise."""
    return chosen(logits, noise[0], *rest)


def _conditional_mean(logits: jax.Array, noise: jax.Array, tau: jax.Array) -> jax.Array:
    drawn = chosen(logits, noise[0])
    noise = lax.stop_gradient(noise[1:])
    entries = below_draw(logits, drawn, noise, differentiable=False)
    return jnp.mean(relaxed(entries, tau), axis=0)
