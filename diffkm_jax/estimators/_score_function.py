"""Estimators that weigh draws by their costs: unbiased, for any cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_real, check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.estimators._attach import attach, over_rows
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._enumeration import probabilities
from diffkm_jax.estimators._estimator import Estimator

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def reinforce(*, baseline: ArrayLike = 0.0) -> Estimator:
    """The score-function estimator, or REINFORCE.

    The gradient is (f(D) − baseline) (D − p), p = softmax(logits): unbiased for any
    cost and any baseline that does not depend on the draw. A baseline near the expected
    cost removes most of the variance. The cost need not be differentiable. The value is
    the cost at the draw, unbiased.

    Args:
        baseline: Scalar, or one per problem, [*batch], in the unit of the cost; may be
            traced.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        TypeError: `baseline` is not real.
        ValueError: When it is used: `baseline` is no scalar and not of the shape of
            the costs.

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
    return Estimator("reinforce", _reinforce, settings, discrete=True)


def _reinforce(
    f: Cost, logits: jax.Array, noise: jax.Array, *, baseline: jax.Array
) -> jax.Array:
    drawn = chosen(logits, noise[0])
    costs = f(drawn)
    if baseline.ndim and baseline.shape != costs.shape:
        raise ValueError(
            f"baseline must be a scalar or of the shape of the costs {costs.shape}, "
            f"got shape {baseline.shape}"
        )
    signal = wide(costs)
    signal = signal - jnp.broadcast_to(baseline, costs.shape).astype(signal.dtype)
    return attach(costs, logits, weighted(signal, score(logits, drawn)))


def rloo(*, num_samples: int = 4) -> Estimator:
    """REINFORCE with the mean cost of the other draws as the baseline of each.

    With n draws of mean cost m the gradient is Σ_i (f(D_i) − m) (D_i − p)/(n − 1):
    unbiased for any cost. The value is m, unbiased; the cost is mapped over the draws
    by `jax.vmap`.

    Args:
        num_samples: Draws n, at least 2; static.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [n, ..., k], costs [*batch],
        in the unit of the cost.

    Raises:
        TypeError: `num_samples` is no integer.
        ValueError: `num_samples` is below 2.

    Example:
        >>> def cost(z):  # Two draws, one of each.
        ...     noise = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        ...     return es.rloo(num_samples=2).expect(lambda row: row[1], z, noise)
        >>> [a.tolist() for a in jax.value_and_grad(cost)(jnp.zeros(2))]
        [0.5, [-0.5, 0.5]]

    Source: Kool, van Hoof & Welling 2019, https://openreview.net/forum?id=r1lgTGL5DE
    """
    check_integer("num_samples", num_samples, minimum=2)
    return Estimator("rloo", _rloo, {}, num_draws=num_samples, discrete=True)


def _rloo(f: Cost, logits: jax.Array, noise: jax.Array) -> jax.Array:
    drawn = jax.vmap(lambda g: chosen(logits, g))(noise)
    costs = jax.vmap(f)(drawn)
    signal = wide(costs)
    mean = jnp.mean(signal, axis=0)
    scores = jax.vmap(lambda row: score(logits, row))(drawn)
    signal = (signal - mean[None]) / (len(noise) - 1)
    estimate = jnp.sum(weighted(signal, scores), axis=0)
    return attach(mean.astype(costs.dtype), logits, estimate)


def score(logits: jax.Array, drawn: jax.Array) -> jax.Array:
    """D − p, the derivative of log p(D) in the logits, float32 or wider."""
    p = probabilities(logits)
    return jnp.where(jnp.isneginf(logits), 0, drawn.astype(p.dtype) - p)


def wide(costs: jax.Array) -> jax.Array:
    """Costs in float32 or wider, so that differences of theirs are not rounded away."""
    return costs.astype(accumulation_dtype(costs))


def weighted(signal: jax.Array, rows: jax.Array) -> jax.Array:
    """A number per problem times its rows, in their dtype."""
    return over_rows(signal, rows).astype(rows.dtype) * rows
