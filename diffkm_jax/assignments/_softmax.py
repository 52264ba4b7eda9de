"""The two ends: the one-hot of the best cluster, and the softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_scalar
from diffkm_jax._numerics import quotient

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def hard(logits: Float[ArrayLike, "*batch k"]) -> Float[Array, "*batch k"]:
    """Assigns every row to its best cluster, as an exact one-hot.

    The gradient is zero: the choice is constant between ties.

    Args:
        logits: Scores, [..., k], floating, no unit; the largest wins, a tie goes to
            the lowest index.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` is not floating.
        ValueError: `logits` is a scalar or has no cluster.

    Example:
        >>> dk.hard(jnp.array([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]

    Source: MacQueen 1967, https://projecteuclid.org/euclid.bsmsp/1200512992
    """
    logits = as_logits(logits)
    return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=logits.dtype)


def softmax(
    logits: Float[ArrayLike, "*batch k"], *, tau: ArrayLike = 1.0
) -> Float[Array, "*batch k"]:
    """Assigns every row to all clusters in proportion to exp(logits / tau).

    The gradient is exact: with p = softmax(logits/tau) and cotangent g it is
    p (g − p·g)/tau in `logits`, and minus the sum of that times logits/tau in `tau`.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf excludes a cluster, +inf all
            others.
        tau: Positive scalar, in the unit of `logits`; may be traced.

    Returns:
        Rows that sum to one, [..., k], in the dtype of `logits`, computed in float32
        or wider. A row of −inf alone is NaN, with gradient zero.

    Raises:
        TypeError: `logits` is not floating, or `tau` not real.
        ValueError: `logits` is a scalar or has no cluster; `tau` is not a scalar, or a
            number and not positive.

    Example:
        >>> logits = jnp.array([0.0, 0.0, -jnp.inf])
        >>> dk.softmax(logits).tolist()
        [0.5, 0.5, 0.0]
        >>> jax.grad(lambda z: dk.softmax(z, tau=0.5)[0])(logits).tolist()
        [0.5, -0.5, 0.0]

    Source: Rose 1998 (deterministic annealing), https://doi.org/10.1109/5.726788
    """
    logits = as_logits(logits)
    return relaxed(logits, as_scalar("tau", tau, logits)).astype(logits.dtype)


def relaxed(logits: jax.Array, tau: jax.Array) -> jax.Array:
    """The softmax of logits / tau in the dtype of tau, finite but for rows of −inf.

    What is too low for an exponential counts as −inf, which harms no gradient.
    """
    scaled, out = below_largest(logits, tau, -1000)
    nothing = nothing_left(logits)
    rows = jax.nn.softmax(jnp.where(out & ~nothing, -jnp.inf, scaled))
    return jnp.where(nothing, jnp.nan, rows)


def nothing_left(logits: jax.Array) -> jax.Array:
    """Which rows are −inf alone, [..., 1]: NaN last, where no derivative sees it."""
    return jnp.isneginf(logits).all(-1, keepdims=True)


def decided(logits: jax.Array) -> jax.Array:
    """The logits, rows that hold +inf in their limit: 0 there and −inf elsewhere."""
    infinite = jnp.isposinf(logits)
    is_decided = infinite.any(-1, keepdims=True) & ~jnp.isnan(logits)
    return jnp.where(is_decided, jnp.where(infinite, 0, -jnp.inf), logits)


def below_largest(
    logits: jax.Array, tau: jax.Array, lowest: float
) -> tuple[jax.Array, jax.Array]:
    """(logits − their largest)/tau, 0 where lower than `lowest`, and where that is.

    Divided last, so that no quotient of a small tau overflows, and not where it is low:
    −∞ / tau has the derivative 0 · ∞ in tau.
    """
    logits = decided(logits.astype(tau.dtype))
    below = logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    low = lax.stop_gradient(below / tau) < lowest
    out = low | jnp.isneginf(logits)
    return quotient(jnp.where(out, 0, below), tau), out
