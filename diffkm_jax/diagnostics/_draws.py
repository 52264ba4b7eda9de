"""The noise of a sample: every draw by its number, or draws at random."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.estimators._enumeration import (
    configuration,
    num_configurations,
    probabilities,
)
from diffkm_jax.estimators._estimator import draw_gumbel
from diffkm_jax.estimators._laws import CATEGORICAL, Law


def joint_draw(
    logits: jax.Array, kept: int, law: Law, num_draws: int, code: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The probability of a draw by every noise row, [*batch], and such noise."""
    acc = accumulation_dtype(logits)
    weight = jnp.ones(logits.shape[:kept], acc)
    num, rows = num_configurations(logits, kept, law), []
    for i in range(num_draws):
        drawn, probability = configuration(logits, kept, law, (code // num**i) % num)
        weight *= probability
        rows.append(bare(drawn, law).astype(acc))
    # Held constant, as in a sample: the gradient of the cost is the estimate already.
    weight = jax.lax.stop_gradient(weight)
    return weight, jnp.stack(rows) if rows else jnp.zeros((0, *logits.shape), acc)


def bare(drawn: jax.Array, law: Law) -> jax.Array:
    """Noise that says no more than the draw, [..., k]."""
    # Of several, what decides under any law.
    most = 0.0 if law.size == 1 else jnp.inf
    return jnp.where(drawn > 0, jnp.full_like(drawn, most), -jnp.inf)


def draw(
    key: jax.Array, logits: jax.Array, num_draws: int, by_label: bool
) -> jax.Array:
    """The noise of a sample, [num_draws, *shape]: as `Estimator.draw`, or bare.

    By label it says no more than the draws of a cluster, of which each takes one
    uniform number instead of k: the cumulated probabilities that it exceeds.
    """
    if not by_label:
        return draw_gumbel(key, num_draws, logits.shape, logits.dtype)
    below = jnp.cumsum(probabilities(logits), axis=-1)
    # Of the last no more than is possible, for rounding may leave them below 1.
    last = jnp.sum(below < below[..., -1:], axis=-1)

    def row(i: jax.Array) -> jax.Array:
        shape = logits.shape[:-1]
        u = jax.random.uniform(jax.random.fold_in(key, i), shape, below.dtype)
        label = jnp.minimum(jnp.sum(u[..., None] >= below, axis=-1), last)
        one_hot = jax.nn.one_hot(label, logits.shape[-1], dtype=below.dtype)
        return bare(one_hot, CATEGORICAL)

    return jax.vmap(row)(jnp.arange(num_draws))
