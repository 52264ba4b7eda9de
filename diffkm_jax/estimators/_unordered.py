"""Draws without replacement, weighed as a set."""

from __future__ import annotations

from itertools import combinations

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import check_integer
from diffkm_jax.assignments._straight_through import perturbed
from diffkm_jax.estimators._attach import attach
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._enumeration import probabilities
from diffkm_jax.estimators._estimator import Estimator, HashablePartial
from diffkm_jax.estimators._score_function import score, wide

MOST = 6


def unordered_set(*, num_samples: int = 3) -> Estimator:
    """Draws without replacement, their order integrated out: the unordered set.

    The set S of the m largest perturbed logits is drawn without replacement. With V(A)
    the sum, over all orders of S that begin with A, of the products of 1/(1 − p(drawn
    before)) after A, and w_s = V({s})/V(∅), the gradient is Σ_s w_s (f_s − b_s) (s − p)
    with the built-in baseline b_s = p_s f_s + Σ_t f_t V({s, t})/V({s}): unbiased for
    any cost, and exact where S is everything. The value is Σ_s w_s f_s, unbiased.

    For costs of one row each: all axes but the clusters are kept.

    Args:
        num_samples: Clusters m to draw, from 2 to 6; static. The weights are sums over
            subsets, 2**m of them.

    Returns:
        An `Estimator`: logits [..., k], noise [1, ..., k], costs [*batch], in the unit
        of the cost.

    Raises:
        TypeError: `num_samples` is no integer.
        ValueError: `num_samples` is out of range; when it is used: there are fewer
            clusters, or a cost is of several rows.

    Example:
        >>> key, logits = jax.random.key(0), jnp.zeros(3)
        >>> record, f = es.unordered_set(num_samples=3), lambda row: row[0] ** 2
        >>> report = dk.evaluate(key, f, logits, record, num_samples=9)
        >>> np.allclose(report.variance, 0), np.allclose(report.bias, 0, atol=1e-6)
        (True, True)

    Source: Kool, van Hoof & Welling 2020, https://arxiv.org/abs/2002.06043
    """
    check_integer("num_samples", num_samples, minimum=2, maximum=MOST)
    rule = HashablePartial(_unordered_set, num_samples=num_samples)
    return Estimator("unordered_set", rule)


def _unordered_set(
    f: Cost, logits: jax.Array, noise: jax.Array, *, num_samples: int
) -> jax.Array:
    k = logits.shape[-1]
    if num_samples > k:
        raise ValueError(
            f"num_samples must be at most the number of clusters {k}, got {num_samples}"
        )
    z = lax.stop_gradient(perturbed(logits, noise[0]))
    labels = jnp.moveaxis(lax.top_k(z, num_samples)[1], -1, 0)
    draws = jax.nn.one_hot(labels, k, dtype=logits.dtype)
    found = jax.vmap(f)(draws)
    if found.shape != labels.shape:
        raise ValueError(
            "f must return a cost of every row for unordered_set, of shape "
            f"{labels.shape[1:]}, got {found.shape[1:]}"
        )
    costs, p = wide(found), probabilities(logits)
    of_set = jnp.sum(p[None] * draws.astype(p.dtype), axis=-1).astype(costs.dtype)
    outside = jnp.sum(p * (1 - jnp.sum(draws.astype(p.dtype), axis=0)), axis=-1)
    v = _log_values(of_set, outside.astype(costs.dtype))
    members = range(num_samples)
    value, signals = jnp.zeros_like(costs[0]), []
    for s in members:
        weight = jnp.exp(v[frozenset({s})] - v[frozenset()])
        baseline = of_set[s] * costs[s]
        for t in members:
            if t != s:
                share = jnp.exp(v[frozenset({s, t})] - v[frozenset({s})])
                baseline += share * costs[t]
        # Its derivative in the logits is the estimate, and in the costs the weight.
        value += lax.stop_gradient(weight) * costs[s]
        signals.append(weight * (costs[s] - baseline))
    scores = jax.vmap(lambda row: score(logits, row))(draws)
    signal = jnp.stack(signals)[..., None].astype(scores.dtype)
    estimate = jnp.sum(signal * scores, axis=0)
    estimate = jnp.where(jnp.isneginf(logits), 0, estimate)
    return attach(value.astype(found.dtype), logits, estimate)


def _log_values(of_set: jax.Array, outside: jax.Array) -> dict[frozenset, jax.Array]:
    """Log V of every subset A of the set: V(S) = 1, V(A) = Σ_t V(A ∪ t)/(1 − p(A))."""
    members = range(len(of_set))
    everything = frozenset(members)
    v = {everything: jnp.zeros_like(outside)}
    tiny = float(jnp.finfo(outside.dtype).tiny)
    for size in reversed(members):
        for subset in map(frozenset, combinations(members, size)):
            left = sorted(everything - subset)
            # 1 − p(A), as a sum of what is left: nothing cancels.
            rest = outside + sum(of_set[t] for t in left)
            terms = jnp.stack([v[subset | {t}] for t in left])
            v[subset] = jax.nn.logsumexp(terms, axis=0) - jnp.log(
                jnp.maximum(rest, tiny)
            )
    return v
