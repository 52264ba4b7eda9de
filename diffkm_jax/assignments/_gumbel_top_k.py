"""Gumbel top-k: clusters drawn without replacement, and their relaxation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_noise, as_scalar
from diffkm_jax._mesh import vary_as
from diffkm_jax._numerics import quotient
from diffkm_jax.assignments._declared import declared, gradient_of
from diffkm_jax.assignments._softmax import below_largest, relaxed
from diffkm_jax.assignments._straight_through import chosen, perturbed
from diffkm_jax.assignments._top_k import FAR, check_size, scores_of

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def gumbel_top_k(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    size: int,
    tau: ArrayLike = 1.0,
    hard: bool = False,
) -> Float[Array, "*batch k"]:
    """Draws several clusters without replacement, relaxed, or exactly if `hard`.

    The `size` largest of logits + noise are drawn one after the other, each from the
    softmax over those that are left (Plackett and Luce's law). The relaxed row is the
    sum of as many softmax rows p at `tau`, after each of which log(1 − p) is added to
    the perturbed logits. So an entry may exceed 1, far above the others too: it is 1.5
    at tau = 1 and size = 2; as tau → 0 the row becomes the draw. The
    gradient of the soft rows is exact, in logits, noise and tau, in both modes and at
    every order; as an estimate of that of a discrete draw it is biased. With `hard` the
    value is the exact draw and the gradient that of the soft rows, reverse mode only.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn, +inf (or noise of that) first and once, as large ones are at a
            tau below 1.
        noise: Standard Gumbel noise, [..., k], floating, no unit.
        size: How many clusters to draw, from 1 to k; static. With 1 it is
            `gumbel_softmax`.
        tau: Positive scalar, in the unit of `logits`; may be traced.
        hard: Whether the value is of ones and zeros; static.

    Returns:
        Rows that sum to `size`, [..., k], in the dtype of `logits`. Where fewer logits
        are above −inf, soft rows are NaN, with gradient zero, and hard ones hold the
        first of the others.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` not real, `size` no Python
            integer, or forward mode is asked for with `hard`.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `size` is out of range; `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits, noise = jnp.zeros(3), jnp.log(jnp.array([1.0, 2.0, 3.0]))
        >>> for tau in (1.0, 0.1):
        ...     row = dk.gumbel_top_k(logits, noise, size=2, tau=tau)
        ...     print([f"{p:.2f}" for p in row])
        ['0.39', '0.70', '0.91']
        ['0.00', '1.02', '0.98']

    Source: Xie & Ermon 2019, https://arxiv.org/abs/1901.10517; Kool, van Hoof &
        Welling 2019 (the draw), https://arxiv.org/abs/1903.06059
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, logits, noise)
    if hard:
        value = partial(chosen, size=size)
        rule = gradient_of(partial(_relaxed_draw, size))
        return declared(value, rule, logits, noise, tau)
    return _relaxed_draw(size, logits, noise, tau).astype(logits.dtype)


@partial(jax.jit, static_argnums=0)
def _relaxed_draw(
    size: int, logits: jax.Array, noise: jax.Array, tau: jax.Array
) -> jax.Array:
    scores = scores_of(perturbed(logits, noise), jnp.ones_like(tau), size)
    z = jnp.where(scores.out, -jnp.inf, scores.z)
    start = vary_as((z, scores.certain.astype(z.dtype)), z, tau)

    def take(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
        z, total = carry
        p = relaxed(z, tau)
        # The logarithm of 1 − p: by the others, where that would cancel.
        is_most = p > 0.5
        by_others = _log_rest(z, is_most, tau)
        left = jnp.where(is_most, by_others, jnp.log1p(-jnp.where(is_most, 0, p)))
        return (z + left, total + jnp.where(i < scores.wanted, p, 0)), None

    (_, total), _ = lax.scan(take, start, jnp.arange(size, dtype=jnp.int32))
    return jnp.where(scores.undefined, jnp.nan, total)


def _log_rest(z: jax.Array, is_most: jax.Array, tau: jax.Array) -> jax.Array:
    """Of a softmax at tau, the logarithm of what others have than one, [..., 1]."""
    others = jnp.where(is_most, -jnp.inf, z)
    logs = []
    for some in (others, z):
        below, out = below_largest(some, tau, -1000)
        logs.append(
            jax.nn.logsumexp(jnp.where(out, -jnp.inf, below), -1, keepdims=True)
        )
    tops = [jnp.max(some, axis=-1, keepdims=True) for some in (others, z)]
    nothing = jnp.isneginf(tops[0])
    apart = lax.stop_gradient(jnp.where(nothing, 0, tops[0] - tops[1]))
    apart = jnp.maximum(quotient(apart, tau), -FAR)
    return jnp.where(nothing, -FAR, apart + jnp.where(nothing, 0, logs[0]) - logs[1])
