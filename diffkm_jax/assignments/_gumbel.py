"""Gumbel-softmax: relaxed draws with the noise given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from diffkm_jax._checks import as_logits, as_noise, as_scalar
from diffkm_jax.assignments._declared import declared, gradient_of
from diffkm_jax.assignments._softmax import relaxed
from diffkm_jax.assignments._straight_through import chosen, perturbed

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def gumbel_softmax(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    tau: ArrayLike = 1.0,
    hard: bool = False,
) -> Float[Array, "*batch k"]:
    """Draws a relaxed row, softmax((logits + noise)/tau), or its one-hot if `hard`.

    The largest entry is a draw from softmax(logits) at any `tau`; as tau → 0 the rows
    become one-hot. The gradient of the soft rows is exact, in logits, noise and tau, in
    both modes and at every order; as an estimate of that of a discrete draw it is
    biased, less as tau falls, while its variance grows. With `hard` the value is the
    exact one-hot and the gradient that of the soft rows, reverse mode only.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [..., k], floating, no unit.
        tau: Positive scalar, in the unit of `logits`; may be traced.
        hard: Whether the value is one-hot; static.

    Returns:
        Rows that sum to one, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` not real, or forward mode
            is asked for with `hard`.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits, noise = jnp.zeros(2), jnp.log(jnp.array([1.0, 3.0]))
        >>> rows = [dk.gumbel_softmax(logits, noise, tau=tau) for tau in (1.0, 0.1)]
        >>> [f"{p:.2f}, {q:.2f}" for p, q in rows]
        ['0.25, 0.75', '0.00, 1.00']
        >>> dk.gumbel_softmax(logits, noise, hard=True).tolist()
        [0.0, 1.0]

    Source: Jang, Gu & Poole 2017, https://arxiv.org/abs/1611.01144;
        Maddison, Mnih & Teh 2017, https://arxiv.org/abs/1611.00712
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    tau = as_scalar("tau", tau, logits, noise)
    if hard:
        return declared(chosen, gradient_of(_relaxed_draw), logits, noise, tau)
    return _relaxed_draw(logits, noise, tau).astype(logits.dtype)


def _relaxed_draw(logits: jax.Array, noise: jax.Array, tau: jax.Array) -> jax.Array:
    return relaxed(perturbed(logits, noise), tau)


def decoupled_gumbel_softmax(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    tau: ArrayLike = 1.0,
    tau_backward: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a relaxed row at one softness, with the gradient of another.

    The value is softmax((logits + noise)/tau), the gradient in logits, noise and
    `tau_backward` that of softmax((logits + noise)/tau_backward): biased, reverse mode
    only. The gradient in `tau` is zero. (A temperature that changes what is drawn, as
    the forward one of the paper, is a division of the logits.)

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [..., k], floating, no unit.
        tau: Positive scalar, in the unit of `logits`, of the value; may be traced.
        tau_backward: Positive scalar, in the unit of `logits`, of the gradient; may be
            traced.

    Returns:
        Rows that sum to one, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` or `tau_backward` not
            real, or forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `tau` or `tau_backward` is not a scalar, or a number and not positive.

    Example:
        >>> logits, noise = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        >>> def first(z):
        ...     row = dk.decoupled_gumbel_softmax(z, noise, tau=0.1, tau_backward=1.0)
        ...     return row[0]
        >>> [a.tolist() for a in jax.value_and_grad(first)(logits)]
        [0.5, [0.25, -0.25]]

    Source: Shah, Yan, Mozer & Liu 2024, https://arxiv.org/abs/2410.13331
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    both = [
        as_scalar(name, value, logits, noise)
        for name, value in (("tau", tau), ("tau_backward", tau_backward))
    ]
    return declared(_at_tau, gradient_of(_at_tau_backward), logits, noise, *both)


def _at_tau(
    logits: jax.Array, noise: jax.Array, tau: jax.Array, tau_backward: jax.Array
) -> jax.Array:
    del tau_backward
    return _relaxed_draw(logits, noise, tau).astype(logits.dtype)


def _at_tau_backward(
    logits: jax.Array, noise: jax.Array, tau: jax.Array, tau_backward: jax.Array
) -> jax.Array:
    del tau
    return _relaxed_draw(logits, noise, tau_backward)
