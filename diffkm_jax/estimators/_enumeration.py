"""The expected cost as a sum over all draws, and what a draw of a number is."""

from __future__ import annotations

from math import inf, prod

import jax
import jax.numpy as jnp

import diffkm_jax.assignments as maps
from diffkm_jax._checks import check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._softmax import relaxed
from diffkm_jax.estimators._attach import over_rows
from diffkm_jax.estimators._cost import Cost, TracedCost, traced_cost
from diffkm_jax.estimators._estimator import Estimator, HashablePartial


def exact(*, max_configurations: int = 4096) -> Estimator:
    """The expected cost itself, by enumeration of all draws of a problem.

    Value and gradient are exact, in both modes and at every order. A problem of r rows
    takes 1 + k**r evaluations of the cost, for all problems of the batch at once:
    1 + k, if the cost keeps every axis but the clusters.

    Args:
        max_configurations: The largest k**r to accept, static.

    Returns:
        An `Estimator` without noise: logits [..., k] to costs [*batch], in the unit of
        the cost.

    Raises:
        TypeError: `max_configurations` is no integer.
        ValueError: `max_configurations` is below 1, or, when it is used, exceeded.

    Example:
        >>> def mean(z):
        ...     return es.exact().expect(lambda row: jnp.sum(row * jnp.arange(4.0)), z)
        >>> value, gradient = jax.value_and_grad(mean)(jnp.zeros(4))
        >>> f"{value:.3f}", [f"{v:.3f}" for v in gradient]  # p (f - 1.5)
        ('1.500', ['-0.375', '-0.125', '0.125', '0.375'])

    Source: Mohamed, Rosca, Figurnov & Mnih 2020 (a survey),
        https://arxiv.org/abs/1906.10652
    """
    check_integer("max_configurations", max_configurations, minimum=1)
    rule = HashablePartial(_exact, max_configurations=max_configurations)
    return Estimator("exact", rule, {}, num_draws=0, discrete=True)


def _exact(
    f: Cost, logits: jax.Array, noise: jax.Array, *, max_configurations: int
) -> jax.Array:
    del noise
    cost = traced_cost(f, logits)
    num_configurations(logits, cost.num_axes, max_configurations)
    return expected_cost(cost, logits)


@jax.jit
def expected_cost(cost: TracedCost, logits: jax.Array) -> jax.Array:
    """The sum over all draws of a problem, of probability times cost."""
    kept = cost.num_axes
    num = num_configurations(logits, kept)

    # Costs relative to that of the likeliest draw: a constant one has gradient zero.
    likeliest = cost(maps.hard(logits))
    acc = accumulation_dtype(logits, likeliest)
    origin = jax.lax.stop_gradient(likeliest).astype(acc)
    # As many at once as make arrays of about a million entries.
    size = max(1, min(1024, 2**20 // max(1, logits.size)))

    @jax.checkpoint
    def term(code: jax.Array) -> jax.Array:
        rows, probability = configuration(logits, kept, code)
        above = jnp.where(probability > 0, cost(rows).astype(acc) - origin, 0)
        return probability.astype(acc) * above

    terms = jax.lax.map(term, jnp.arange(num), batch_size=size)
    return (origin + jnp.sum(terms, axis=0)).astype(likeliest.dtype)


def num_configurations(logits: jax.Array, kept: int, limit: float = inf) -> int:
    """How many draws one problem has, k**r for its r rows.

    Raises:
        ValueError: They are more than `limit`.
    """
    rows = logits.shape[kept:-1]
    num = logits.shape[-1] ** prod(rows)
    if num > limit:
        raise ValueError(
            f"a problem of rows {rows} has k**r = {logits.shape[-1]}**{prod(rows)} "
            f"configurations, more than max_configurations={limit}: a cost that keeps "
            "the axes of independent rows takes far fewer, and evaluate with an "
            "unbiased estimator as its reference takes none"
        )
    return num


def configuration(
    logits: jax.Array, kept: int, code: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The draw of a number in [0, k**r), as rows, and its probability, [*batch].

    The likeliest in the place of an impossible one, whose cost may not be finite.
    """
    *shape, k = logits.shape
    rows = shape[kept:]
    place = jnp.arange(prod(rows)).reshape(rows)
    digit = (code // k**place) % k
    one_hot = jax.nn.one_hot(digit, k, dtype=logits.dtype)
    drawn = jnp.broadcast_to(one_hot, logits.shape)
    p = probabilities(logits)
    of_rows = jnp.sum(p * drawn.astype(p.dtype), axis=-1)
    probability = jnp.prod(of_rows, axis=tuple(range(kept, of_rows.ndim)))
    possible = over_rows(probability > 0, drawn)
    return jnp.where(possible, drawn, maps.hard(logits)), probability


def probabilities(logits: jax.Array) -> jax.Array:
    """Of the clusters, softmax(logits), float32 or wider."""
    return relaxed(logits, jnp.ones((), accumulation_dtype(logits)))
