"""One estimate of a gradient, at given noise, judged against the exact one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._numerics import polar
from diffkm_jax.estimators._enumeration import configuration
from diffkm_jax.estimators._estimator import Cost, Estimator


class Sample(NamedTuple):
    """What is averaged of one estimate; of `Moments`, what came of it."""

    gradient: Any
    error: Any
    difference: Any
    squared_error: Any
    cosine: Any
    cost: Any


def estimate(
    record: Estimator, f: Cost, logits: jax.Array, noise: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Costs and their gradients, in the accumulation dtype."""
    acc = accumulation_dtype(logits)
    costs, pullback = jax.vjp(lambda z: record.expect(f, z, noise), logits)
    (gradient,) = pullback(jnp.ones_like(costs))
    return costs.astype(acc), gradient.astype(acc)


def joint_draw(
    logits: jax.Array, kept: int, num: int, num_draws: int, code: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The probability of a draw by every noise row, [*batch], and such noise."""
    acc = accumulation_dtype(logits)
    weight = jnp.ones(logits.shape[:kept], acc)
    rows = []
    for i in range(num_draws):
        drawn, probability = configuration(logits, kept, (code // num**i) % num)
        weight *= probability
        rows.append(jnp.where(drawn > 0, 0, -jnp.inf).astype(acc))
    # Held constant, as in a sample: the gradient of the cost is the estimate already.
    weight = jax.lax.stop_gradient(weight)
    return weight, jnp.stack(rows) if rows else jnp.zeros((0, *logits.shape), acc)


def judged(found: tuple, truth: tuple) -> Sample:
    """Costs and gradients against the exact ones, as one sample."""
    (cost, gradient), (_, exact_gradient) = found, truth
    error = gradient - exact_gradient
    return Sample(
        gradient,
        error,
        jnp.zeros_like(error),
        jnp.sum(_flat(error, cost.ndim) ** 2, axis=-1),
        cosine(gradient, exact_gradient, cost.ndim),
        cost,
    )


def norm(a: jax.Array, kept: int) -> jax.Array:
    """The length of each problem's vector."""
    scale, length, _ = polar(_flat(a, kept))
    return (scale * length)[..., 0]


def cosine(a: jax.Array, b: jax.Array, kept: int) -> jax.Array:
    """The cosine of each problem's angle, 0 where a vector is zero."""
    a, b = (polar(_flat(v, kept))[2] for v in (a, b))
    return jnp.sum(a * b, axis=-1)


def _flat(a: jax.Array, kept: int) -> jax.Array:
    """The vector of each problem as one axis, after the first `kept`."""
    return a.reshape(*a.shape[:kept], -1)
