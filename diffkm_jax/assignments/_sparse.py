"""Sparse relaxations of the argmax: exact zeros off a support found by sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_scalar
from diffkm_jax._numerics import safe_sqrt
from diffkm_jax.assignments._softmax import below_largest, nothing_left

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float

Threshold = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def sparsemax(
    logits: Float[ArrayLike, "*batch k"], *, tau: ArrayLike = 1.0
) -> Float[Array, "*batch k"]:
    """Projects logits / tau on the simplex: the nearest row that sums to one.

    With z = logits/tau the value is max(z − t, 0) for the t that makes it sum to one.
    The gradient is exact between changes of the support S, in logits and tau, in both
    modes and at every order: for a cotangent g it is (g − mean of g over S)/tau on S,
    and zero elsewhere.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf excludes a cluster.
        tau: Positive scalar, in the unit of `logits`; may be traced.

    Returns:
        Rows that sum to one, with exact zeros, [..., k], in the dtype of `logits`. A
        row of −inf alone is NaN, with gradient zero.

    Raises:
        TypeError: `logits` is not floating, or `tau` not real.
        ValueError: `logits` is a scalar or has no cluster; `tau` is not a scalar, or a
            number and not positive.

    Example:
        >>> logits = jnp.array([0.5, 0.0, -1.0])
        >>> dk.sparsemax(logits).tolist()
        [0.75, 0.25, 0.0]
        >>> jax.grad(lambda z: dk.sparsemax(z)[0])(logits).tolist()
        [0.5, -0.5, 0.0]

    Source: Martins & Astudillo 2016, https://arxiv.org/abs/1602.02068
    """
    logits = as_logits(logits)
    z = _shifted(logits, as_scalar("tau", tau, logits))
    above = _above_threshold(z, _sparsemax_threshold)
    return _masked_row(above, logits)


def entmax15(
    logits: Float[ArrayLike, "*batch k"], *, tau: ArrayLike = 1.0
) -> Float[Array, "*batch k"]:
    """The 1.5-entmax of logits / tau: between softmax and sparsemax.

    With z = logits/tau the value is max(z/2 − t, 0)² for the t that makes it sum to
    one. The gradient is exact between changes of the support, in logits and tau, in
    both modes and at every order: with s the square root of the value it is, for a
    cotangent g, s (g − s·g / Σs)/tau.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf excludes a cluster.
        tau: Positive scalar, in the unit of `logits`; may be traced.

    Returns:
        Rows that sum to one, with exact zeros, [..., k], in the dtype of `logits`. A
        row of −inf alone is NaN, with gradient zero.

    Raises:
        TypeError: `logits` is not floating, or `tau` not real.
        ValueError: `logits` is a scalar or has no cluster; `tau` is not a scalar, or a
            number and not positive.

    Example:
        >>> row = dk.entmax15(jnp.array([0.0, 0.0, 0.0, 0.0, -2.0]))
        >>> [f"{p:.2f}" for p in row], bool(row[4] == 0)  # A softmax gives it 0.03.
        (['0.25', '0.25', '0.25', '0.25', '0.00'], True)

    Source: Peters, Niculae & Martins 2019, https://arxiv.org/abs/1905.05702
    """
    logits = as_logits(logits)
    z = _shifted(logits, as_scalar("tau", tau, logits))
    above = _above_threshold(0.5 * z, _entmax15_threshold)
    return _masked_row(above**2, logits)


def _shifted(logits: jax.Array, tau: jax.Array) -> jax.Array:
    """Logits / tau less their largest, and −4 wherever they fall lower than that.

    No support reaches so low, and the sums below stay finite.
    """
    scaled, out = below_largest(logits, tau, -4)
    return jnp.where(out, -4, scaled)


def _masked_row(rows: jax.Array, logits: jax.Array) -> jax.Array:
    undefined = nothing_left(logits) | jnp.isnan(logits).any(-1, keepdims=True)
    return jnp.where(undefined, jnp.nan, rows).astype(logits.dtype)


def _above_threshold(z: jax.Array, threshold: Threshold) -> jax.Array:
    """max(z − t, 0), with t a function of the mean and variance of the support."""
    descending = -jnp.sort(-lax.stop_gradient(z))
    size = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    size = jnp.broadcast_to(size, z.shape)
    mean = jnp.cumsum(descending, axis=-1) / size
    variance = jnp.cumsum(descending**2, axis=-1) / size - mean**2
    t = threshold(mean, variance, size)
    count = jnp.sum(t < descending, axis=-1, keepdims=True)
    support = z >= jnp.take_along_axis(descending, jnp.maximum(count, 1) - 1, axis=-1)
    mean = jnp.mean(z, axis=-1, keepdims=True, where=support)
    variance = jnp.mean((z - mean) ** 2, axis=-1, keepdims=True, where=support)
    size = jnp.sum(support, axis=-1, keepdims=True).astype(z.dtype)
    t = threshold(mean, variance, size)
    return jnp.where(support, jax.nn.relu(z - t), 0)


def _sparsemax_threshold(
    mean: jax.Array, variance: jax.Array, size: jax.Array
) -> jax.Array:
    del variance
    return mean - 1 / size


def _entmax15_threshold(
    mean: jax.Array, variance: jax.Array, size: jax.Array
) -> jax.Array:
    return mean - safe_sqrt(1 / size - variance)
