"""The expected cost as a sum over all draws, and what a draw of a number is."""

from __future__ import annotations

from functools import partial
from math import inf, prod

import jax
import jax.numpy as jnp

from diffkm_jax._checks import check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._softmax import relaxed
from diffkm_jax.estimators._attach import over_rows
from diffkm_jax.estimators._cost import Cost, TracedCost, traced_cost
from diffkm_jax.estimators._estimator import Estimator, HashablePartial
from diffkm_jax.estimators._laws import PLACKETT_LUCE, Law, as_law


def exact(
    *, max_configurations: int = 4096, size: int = 1, law: str = PLACKETT_LUCE
) -> Estimator:
    """The expected cost itself, by enumeration of all draws of a problem.

    Value and gradient are exact, in both modes and at every order. A problem of r rows
    takes 1 + k**r evaluations of the cost, for all problems of the batch at once:
    1 + k, if the cost keeps every axis but the clusters. Of subsets of the clusters
    there is their number in the place of k.

    Args:
        max_configurations: The largest k**r to accept, static.
        size: How many clusters a draw has, at least 1, and at most 12 under
            "plackett_luce"; static.
        law: Of draws of several, "plackett_luce" or "conditional_bernoulli", as in
            `Estimator`; static.

    Returns:
        An `Estimator` without noise: logits [..., k] to costs [*batch], in the unit of
        the cost.

    Raises:
        TypeError: `max_configurations` or `size` is no integer.
        ValueError: `max_configurations` or `size` is below 1, or `law` neither; when it
            is used: `max_configurations` is exceeded, `size` more than k, or more than
            12 under "plackett_luce".

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
    of = as_law(size, law)
    rule = HashablePartial(_exact, max_configurations=max_configurations, law=of)
    return Estimator("exact", rule, {}, 0, True, *of)


def _exact(
    f: Cost, logits: jax.Array, noise: jax.Array, *, max_configurations: int, law: Law
) -> jax.Array:
    del noise
    cost = traced_cost(f, logits)
    num_configurations(logits, cost.num_axes, law, max_configurations)
    return expected_cost(law, cost, logits)


@partial(jax.jit, static_argnums=0)
def expected_cost(law: Law, cost: TracedCost, logits: jax.Array) -> jax.Array:
    """The sum over all draws of a problem, of probability times cost."""
    kept = cost.num_axes
    num = num_configurations(logits, kept, law)

    # Costs relative to that of the likeliest draw: a constant one has gradient zero.
    likeliest = cost(law.likeliest(logits))
    acc = accumulation_dtype(logits, likeliest)
    origin = jax.lax.stop_gradient(likeliest).astype(acc)
    # As many at once as make arrays of about a million entries.
    size = max(1, min(1024, 2**20 // max(1, logits.size)))

    @jax.checkpoint
    def term(code: jax.Array) -> jax.Array:
        rows, probability = configuration(logits, kept, law, code)
        above = jnp.where(probability > 0, cost(rows).astype(acc) - origin, 0)
        return probability.astype(acc) * above

    terms = jax.lax.map(term, jnp.arange(num), batch_size=size)
    return (origin + jnp.sum(terms, axis=0)).astype(likeliest.dtype)


def num_configurations(
    logits: jax.Array, kept: int, law: Law, limit: float = inf
) -> int:
    """How many draws one problem has, k**r for its r rows, or of subsets as many.

    Raises:
        ValueError: They are more than `limit`.
    """
    rows, of_row = logits.shape[kept:-1], law.count(logits.shape[-1])
    num = of_row ** prod(rows)
    if num > limit:
        draws = "k**r" if law.size == 1 else f"(subsets of {law.size})**r"
        raise ValueError(
            f"a problem of rows {rows} has {draws} = {of_row}**{prod(rows)} "
            f"configurations, more than max_configurations={limit}: a cost that keeps "
            "the axes of independent rows takes far fewer, and evaluate with an "
            "unbiased estimator as its reference takes none"
        )
    return num


def configuration(
    logits: jax.Array, kept: int, law: Law, code: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The draw of a number in [0, count**r), as rows, and its probability, [*batch].

    The likeliest in the place of an impossible one, whose cost may not be finite.
    """
    *shape, k = logits.shape
    rows = shape[kept:]
    place = jnp.arange(prod(rows)).reshape(rows)
    count = law.count(k)
    digit = (code // count**place) % count
    drawn = jnp.broadcast_to(law.row(digit, k, logits.dtype), logits.shape)
    if law.size == 1:
        p = probabilities(logits)
        of_rows = jnp.sum(p * drawn.astype(p.dtype), axis=-1)
    else:
        of_rows = jnp.exp(law.log_probability(logits, drawn))
    probability = jnp.prod(of_rows, axis=tuple(range(kept, of_rows.ndim)))
    possible = over_rows(probability > 0, drawn)
    return jnp.where(possible, drawn, law.likeliest(logits)), probability


def probabilities(logits: jax.Array) -> jax.Array:
    """Of the clusters, softmax(logits), float32 or wider."""
    return relaxed(logits, jnp.ones((), accumulation_dtype(logits)))
