"""Estimators that weigh draws by their costs: unbiased, for any cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_real, check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._subsets import marginals
from diffkm_jax.estimators._attach import attach, over_rows
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._enumeration import probabilities
from diffkm_jax.estimators._estimator import Estimator, HashablePartial
from diffkm_jax.estimators._laws import CATEGORICAL, PLACKETT_LUCE, Law, as_law

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def reinforce(
    *, baseline: ArrayLike = 0.0, size: int = 1, law: str = PLACKETT_LUCE
) -> Estimator:
    """The score-function estimator, or REINFORCE.

    The gradient is (f(D) − baseline) (D − p), p = softmax(logits): unbiased for any
    cost and any baseline that does not depend on the draw. A baseline near the expected
    cost removes most of the variance. The cost need not be differentiable. The value is
    the cost at the draw, unbiased. Of a subset of the clusters there is the derivative
    of its log-probability in the place of D − p: under "conditional_bernoulli" p are
    its marginals.

    Args:
        baseline: Scalar, or one per problem, [*batch], in the unit of the cost; may be
            traced.
        size: How many clusters a draw has, at least 1, and at most 12 under
            "plackett_luce"; static.
        law: Of draws of several, "plackett_luce" or "conditional_bernoulli", as in
            `Estimator`; static.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        TypeError: `baseline` is not real, or `size` no integer.
        ValueError: `size` is below 1, or `law` neither; when it is used: `baseline` is
            no scalar and not of the shape of the costs, `size` more than k, or more
            than 12 under "plackett_luce".

    Example:
        >>> def cost(z, baseline):
        ...     record = es.reinforce(baseline=baseline)
        ...     return record.expect(lambda row: row[1], z, jnp.array([[0.0, 1.0]]))
        >>> [jax.grad(cost)(jnp.zeros(2), b).tolist() for b in (0.0, 0.5)]
        [[-0.5, 0.5], [-0.25, 0.25]]

    Source: Williams 1992, https://doi.org/10.1007/BF00992696
    """
    dtype = jax.dtypes.canonicalize_dtype(float)
    settings = {"baseline": as_real("baseline", baseline).astype(dtype)}
    of = as_law(size, law)
    rule = HashablePartial(_reinforce, law=of)
    return Estimator("reinforce", rule, settings, 1, True, *of)


def _reinforce(
    f: Cost, logits: jax.Array, noise: jax.Array, *, baseline: jax.Array, law: Law
) -> jax.Array:
    drawn = law.draw(logits, noise[0])
    costs = f(drawn)
    if baseline.ndim and baseline.shape != costs.shape:
        raise ValueError(
            f"baseline must be a scalar or of the shape of the costs {costs.shape}, "
            f"got shape {baseline.shape}"
        )
    signal = wide(costs)
    signal = signal - jnp.broadcast_to(baseline, costs.shape).astype(signal.dtype)
    return attach(costs, logits, weighted(signal, score(logits, drawn, law)))


def rloo(*, num_samples: int = 4, size: int = 1, law: str = PLACKETT_LUCE) -> Estimator:
    """REINFORCE with the mean cost of the other draws as the baseline of each.

    With n draws of mean cost m the gradient is Σ_i (f(D_i) − m) (D_i − p)/(n − 1):
    unbiased for any cost. The value is m, unbiased; the cost is mapped over the draws
    by `jax.vmap`. Of subsets of the clusters it is as `reinforce`.

    Args:
        num_samples: Draws n, at least 2; static.
        size: How many clusters a draw has, at least 1, and at most 12 under
            "plackett_luce"; static.
        law: Of draws of several, "plackett_luce" or "conditional_bernoulli", as in
            `Estimator`; static.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [n, ..., k], costs [*batch],
        in the unit of the cost.

    Raises:
        TypeError: `num_samples` or `size` is no integer.
        ValueError: `num_samples` is below 2, `size` below 1, or `law` neither; when it
            is used: `size` is more than k, or than 12 under "plackett_luce".

    Example:
        >>> def cost(z):  # Two draws, one of each.
        ...     noise = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        ...     return es.rloo(num_samples=2).expect(lambda row: row[1], z, noise)
        >>> [a.tolist() for a in jax.value_and_grad(cost)(jnp.zeros(2))]
        [0.5, [-0.5, 0.5]]

    Source: Kool, van Hoof & Welling 2019, https://openreview.net/forum?id=r1lgTGL5DE
    """
    check_integer("num_samples", num_samples, minimum=2)
    of = as_law(size, law)
    rule = HashablePartial(_rloo, law=of)
    return Estimator("rloo", rule, {}, num_samples, True, *of)


def _rloo(f: Cost, logits: jax.Array, noise: jax.Array, *, law: Law) -> jax.Array:
    drawn = jax.vmap(lambda g: law.draw(logits, g))(noise)
    costs = jax.vmap(f)(drawn)
    signal = wide(costs)
    mean = jnp.mean(signal, axis=0)
    scores = jax.vmap(lambda row: score(logits, row, law))(drawn)
    signal = (signal - mean[None]) / (len(noise) - 1)
    estimate = jnp.sum(weighted(signal, scores), axis=0)
    return attach(mean.astype(costs.dtype), logits, estimate)


def score(logits: jax.Array, drawn: jax.Array, law: Law = CATEGORICAL) -> jax.Array:
    """The derivative of log P(D) in the logits, D − p of one; float32 or wider."""
    acc = accumulation_dtype(logits)
    if law.size == 1:
        found = drawn.astype(acc) - probabilities(logits)
    elif law.is_conditional:
        found = drawn.astype(acc) - marginals(logits, jnp.ones((), acc), law.size)
    else:
        total = jax.grad(lambda z: jnp.sum(law.log_probability(z, drawn)))
        found = total(logits.astype(acc))
    return jnp.where(jnp.isneginf(logits), 0, found)


def wide(costs: jax.Array) -> jax.Array:
    """Costs in float32 or wider, so that differences of theirs are not rounded away."""
    return costs.astype(accumulation_dtype(costs))


def weighted(signal: jax.Array, rows: jax.Array) -> jax.Array:
    """A number per problem times its rows, in their dtype."""
    return over_rows(signal, rows).astype(rows.dtype) * rows
