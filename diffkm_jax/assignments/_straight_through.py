"""The straight-through map: the value of an argmax, the gradient of a softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from diffkm_jax._checks import as_logits, as_tau
from diffkm_jax.assignments._softmax import hard, relaxed

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


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
        TypeError: `logits` is not floating, or forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `tau` is not a scalar, or a
            number and not positive.

    Source: Bengio, Léonard & Courville 2013, https://arxiv.org/abs/1308.3432
    """
    logits = as_logits(logits)
    return _straight_through(logits, as_tau(tau, logits))


@jax.custom_vjp
def _straight_through(logits: jax.Array, tau: jax.Array) -> jax.Array:
    del tau  # The value does not depend on it.
    return hard(logits)


def _forward(logits: jax.Array, tau: jax.Array):
    # The decorated function, so that a second derivative meets the rule again.
    return _straight_through(logits, tau), (logits, tau)


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    logits, tau = residuals
    soft, pullback = jax.vjp(relaxed, logits, tau)
    return pullback(cotangent.astype(soft.dtype))


_straight_through.defvjp(_forward, _backward)
