"""Draws without replacement, weighed as a set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import check_integer
from diffkm_jax.assignments._straight_through import perturbed
from diffkm_jax.estimators._attach import attach
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._estimator import Estimator, HashablePartial
from diffkm_jax.estimators._laws import log_completions_of
from diffkm_jax.estimators._score_function import score, wide

MOST = 6


def unordered_set(*, num_samples: int = 3) -> Estimator:
    """Draws without replacement, their order integrated out: the unordered set.

    The set S of the m largest perturbed logits is drawn without replacement. With R(A)
    the probability that the rest of S is drawn next once its part A is, and
    w_s = p_s R({s})/R(∅), the gradient is Σ_s w_s (f_s − b_s) (s − p) with the built-in
    baseline b_s = p_s f_s + Σ_t p_t f_t R({s, t})/R({s}): unbiased for any cost, and
    exact where S is everything. The value is Σ_s w_s f_s, unbiased.

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
    costs, (log_p, v) = wide(found), log_completions_of(logits, labels)
    members = range(num_samples)
    value, signals = jnp.zeros_like(costs[0]), []
    for s in members:
        weight = jnp.exp(log_p[s] + v[1 << s] - v[0]).astype(costs.dtype)
        baseline = jnp.exp(log_p[s]).astype(costs.dtype) * costs[s]
        for t in members:
            if t != s:
                share = jnp.exp(log_p[t] + v[1 << s | 1 << t] - v[1 << s])
                baseline += share.astype(costs.dtype) * costs[t]
        # Its derivative in the logits is the estimate, and in the costs the weight.
        value += lax.stop_gradient(weight) * costs[s]
        signals.append(weight * (costs[s] - baseline))
    scores = jax.vmap(lambda row: score(logits, row))(draws)
    signal = jnp.stack(signals)[..., None].astype(scores.dtype)
    estimate = jnp.sum(signal * scores, axis=0)
    estimate = jnp.where(jnp.isneginf(logits), 0, estimate)
    return attach(value.astype(found.dtype), logits, estimate)
