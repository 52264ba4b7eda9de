"""One estimate of a gradient, at given noise, judged against the exact one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import diffkm_jax.assignments as maps
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._numerics import polar
from diffkm_jax.assignments._declared import declared
from diffkm_jax.estimators._attach import attach
from diffkm_jax.estimators._cost import TracedCost
from diffkm_jax.estimators._estimator import Estimator, HashablePartial


class Sample(NamedTuple):
    """What is averaged of one estimate; of `Moments`, what came of it."""

    gradient: Any
    error: Any
    difference: Any
    squared_error: Any
    cosine: Any
    cost: Any


class Truth(NamedTuple):
    """The gradient that estimates are held against, in the accumulation dtype.

    Of the reference in the place of the exact one there are the squared standard errors
    of its components, else 0.
    """

    value: jax.Array
    gradient: jax.Array
    squared_error: jax.Array


# Settings of maps whose derivative is not, or not only, what they change.
STOPPED = {
    maps.gapped_straight_through: ("gap",),
    maps.decoupled_gumbel_softmax: ("tau", "tau_backward"),
}


def estimate(
    record: Estimator, cost: TracedCost, logits: jax.Array, noise: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Costs and their gradients, in the accumulation dtype.

    The derivative of the costs in the logits is that gradient, as declared. Any other
    derivative, of either, is the slope of the number, or NaN.
    """
    acc = accumulation_dtype(logits)

    def drawn(rows: jax.Array) -> jax.Array:
        return _at_draws(cost, rows)

    def held(rows: jax.Array) -> jax.Array:
        return cost(_held(rows))

    costs, pullback = jax.vjp(lambda z: record.expect(drawn, z, noise), logits)
    (gradient,) = pullback(jnp.ones_like(costs))
    # The same number, which is computed only where it is differentiated.
    sloped = record.expect(held, lax.stop_gradient(logits), noise)
    costs = jnp.asarray(declared(_costs, _of_sloped, costs, sloped), acc)
    gradient = gradient.astype(acc)
    if isinstance(record.rule, HashablePartial):
        names = [name for a in record.rule.args for name in STOPPED.get(a, ())]
        settings = [record.settings[name] for name in names]
        settings = [setting for setting in settings if setting is not None]
        costs, gradient = _without_slope((costs, gradient), settings)
    return attach(costs, logits, gradient), gradient


def _costs(costs: jax.Array, sloped: jax.Array) -> jax.Array:
    del sloped
    return costs


def _of_sloped(
    cotangent: jax.Array, costs: jax.Array, sloped: jax.Array
) -> tuple[None, jax.Array]:
    del costs, sloped
    return None, cotangent


def _held(rows: jax.Array) -> jax.Array:
    """The rows, constant where they are one-hot: a draw has no slope, and jumps."""
    is_draw = ((rows == 0) | (rows == 1)).all(-1, keepdims=True)
    return jnp.where(is_draw, lax.stop_gradient(rows), rows)


@jax.custom_vjp
def _at_draws(cost: TracedCost, rows: jax.Array) -> jax.Array:
    """The cost; draws have their declared derivative, but are held in that of it."""
    return cost(rows)


def _forward(cost: TracedCost, rows: jax.Array) -> tuple[jax.Array, Callable]:
    return jax.vjp(TracedCost.__call__, cost, _held(rows))


def _backward(pullback: Callable, cotangent: jax.Array) -> tuple:
    return pullback(cotangent)


_at_draws.defvjp(_forward, _backward)


@jax.custom_vjp
def _without_slope(numbers: tuple, settings: list) -> tuple:
    """The numbers, whose slope in the settings is not known."""
    del settings
    return numbers


def _unknown(settings: list, cotangents: tuple) -> tuple[tuple, list]:
    is_asked = jnp.stack([jnp.any(a != 0) for a in cotangents]).any()
    slopes = [jnp.where(is_asked, jnp.nan, jnp.zeros_like(s)) for s in settings]
    return cotangents, slopes


_without_slope.defvjp(lambda numbers, settings: (numbers, settings), _unknown)


def judged(found: tuple, truth: Truth) -> Sample:
    """Costs and gradients against the exact ones, as one sample."""
    cost, gradient = found
    error = gradient - truth.gradient
    return Sample(
        gradient,
        error,
        jnp.zeros_like(error),
        jnp.sum(_flat(error, cost.ndim) ** 2, axis=-1),
        cosine(gradient, truth.gradient, cost.ndim),
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
