"""One estimate of a gradient, at given noise, judged against the exact one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax._checks import accumulation_dtype
from diffkm_jax.diagnostics._moments import nonzero
from diffkm_jax.estimators._record import Cost, Estimator, over_rows
from diffkm_jax.estimators._score import configuration


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
        dot(error, error, cost.ndim),
        cosine(gradient, exact_gradient, cost.ndim),
        cost,
    )


def dot(a: jax.Array, b: jax.Array, kept: int) -> jax.Array:
    """The inner product of each problem, over all axes but the first `kept`."""
    return jnp.sum(a * b, axis=tuple(range(kept, a.ndim)))


def norm(a: jax.Array, kept: int) -> jax.Array:
    """The length of each problem's vector; its squares neither over- nor underflow."""
    axes = tuple(range(kept, a.ndim))
    scale = jnp.max(jnp.abs(a), axis=axes)
    unit = a / over_rows(nonzero(scale), a)
    return scale * root(dot(unit, unit, kept))


def root(a: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0."""
    return jnp.where(a > 0, jnp.sqrt(jnp.where(a > 0, a, 1)), 0)


def cosine(a: jax.Array, b: jax.Array, kept: int) -> jax.Array:
    """The cosine of each problem's angle, 0 where a vector is zero."""
    a, b = (v / nonzero(over_rows(norm(v, kept), v)) for v in (a, b))
    return dot(a, b, kept)
