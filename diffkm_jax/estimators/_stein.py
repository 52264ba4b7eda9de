"""Leave-one-out REINFORCE with control variates of Stein's identity."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_real, check_integer
from diffkm_jax.assignments._straight_through import chosen, covariance
from diffkm_jax.estimators._attach import attach, over_rows
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._enumeration import probabilities
from diffkm_jax.estimators._estimator import Estimator
from diffkm_jax.estimators._score_function import score, weighted, wide

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def rodeo(
    *, num_samples: int = 4, alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0
) -> Estimator:
    """Leave-one-out REINFORCE with discrete Stein control variates: RODEO.

    Each of n draws x has a surrogate cost from the slopes of the others, h(y) = mean_j
    ∂f(x_j)·(y − p). With A the Stein operator that draws one of the r rows anew,
    (A h)(x) = mean over i of E h(x with row i drawn) − h(x), of mean zero under the
    draws, the gradient is the mean over the draws of (f(x) − mean_j (f(x_j) + alpha
    (A h_j)(x_j))) (x − p) + beta (A [h (· − p)])(x): unbiased for any cost and weights.
    In closed form for this h, of which the paper learns a nonlinear function; `dk.tune`
    finds the weights. The cost must have a derivative in the rows, and the better its
    slopes tell differences of it, the smaller the variance. The value is the mean cost,
    unbiased.

    Args:
        num_samples: Draws n, at least 2; static.
        alpha: Scalar, no unit: the weight of the control variate of the baselines; may
            be traced.
        beta: Scalar, no unit: that of the control variate of the gradient; may be
            traced. With one row, r = 1, and both 1, it is a draw's cost less its
            expansion, times the score, plus the slope J(p) ∂f of the expansion.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [n, ..., k], costs [*batch].

    Raises:
        TypeError: `num_samples` is no integer, `alpha` or `beta` not real.
        ValueError: `num_samples` is below 2; `alpha` or `beta` is no scalar.

    Example:
        >>> record, logits = es.rodeo(num_samples=2), jnp.zeros(3)
        >>> f = lambda row: row @ jnp.array([1.0, 2.0, 6.0])  # Its slope is all.
        >>> report = dk.evaluate(jax.random.key(0), f, logits, record)
        >>> np.allclose(report.variance, 0, atol=1e-6)
        True

    Source: Shi, Zhou, Hwang, Titsias & Mackey 2022, https://arxiv.org/abs/2202.09497
    """
    check_integer("num_samples", num_samples, minimum=2)
    settings = {"alpha": _weight("alpha", alpha), "beta": _weight("beta", beta)}
    return Estimator("rodeo", _rodeo, settings, num_draws=num_samples, discrete=True)


def _weight(name: str, value: ArrayLike) -> jax.Array:
    weight = as_real(name, value)
    if weight.ndim:
        raise ValueError(f"{name} must be a scalar (rank 0), got shape {weight.shape}")
    return weight.astype(jax.dtypes.canonicalize_dtype(float))


def _rodeo(
    f: Cost,
    logits: jax.Array,
    noise: jax.Array,
    *,
    alpha: jax.Array,
    beta: jax.Array,
) -> jax.Array:
    n = len(noise)
    draws = jax.vmap(lambda g: chosen(logits, g))(noise)

    def sloped(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        costs, pullback = jax.vjp(f, rows)
        return costs, pullback(jnp.ones_like(costs))[0]

    found, slopes = jax.vmap(sloped)(draws)
    p = probabilities(logits)
    costs, x, slopes = wide(found), draws.astype(p.dtype), slopes.astype(p.dtype)
    kept = found.ndim - 1
    rows = tuple(range(kept, p.ndim))
    num_rows = prod(p.shape[kept:-1])

    def others(a: jax.Array) -> jax.Array:
        """Of every draw the mean over the others."""
        return (jnp.sum(a, axis=0)[None] - a) / (n - 1)

    slope = others(slopes)
    moved = jax.vmap(lambda g, row: g * (p - row))(slope, x)
    of_rows = jnp.sum(moved, axis=-1, keepdims=True)
    stein = jnp.sum(of_rows, axis=tuple(a + 1 for a in rows)) / num_rows
    baseline = others(costs + alpha.astype(costs.dtype) * stein.astype(costs.dtype))
    scores = jax.vmap(lambda row: score(logits, row))(x)

    def of_draw(
        g: jax.Array, direction: jax.Array, own: jax.Array, total: jax.Array
    ) -> jax.Array:
        """A [h (· − p)], as h itself is −r times the A h that is given, `total`."""
        elsewhere = over_rows(2 * num_rows * total, direction) - own
        return (elsewhere * direction + covariance(p, g)) / num_rows

    control = jax.vmap(of_draw)(slope, scores, of_rows, stein)
    estimate = weighted(costs - baseline, scores) + beta.astype(p.dtype) * control
    estimate = jnp.mean(estimate, axis=0)
    estimate = jnp.where(jnp.isneginf(logits), 0, estimate)
    mean = jnp.mean(costs, axis=0).astype(found.dtype)
    return attach(mean, logits, estimate)
