"""Estimators that weigh draws by their costs: unbiased, for any cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

import diffkm_jax.assignments as maps
from diffkm_jax._checks import as_real, check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._gumbel import below_draw
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.estimators._attach import attach, over_rows
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._enumeration import probabilities
from diffkm_jax.estimators._estimator import Estimator, setting

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
    wide = _wide(costs)
    signal = wide - jnp.broadcast_to(baseline, costs.shape).astype(wide.dtype)
    return attach(costs, logits, _weighted(signal, _score(logits, drawn)))


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
    wide = _wide(costs)
    mean = jnp.mean(wide, axis=0)
    score = jax.vmap(lambda row: _score(logits, row))(drawn)
    signal = (wide - mean[None]) / (len(noise) - 1)
    estimate = jnp.sum(_weighted(signal, score), axis=0)
    return attach(mean.astype(costs.dtype), logits, estimate)


def rebar(*, tau: ArrayLike = 0.5, eta: ArrayLike = 1.0) -> Estimator:
    """REINFORCE with the relaxed cost as a control variate.

    With y = softmax((logits + noise)/tau) and y' the same given the draw, the gradient
    is (f(D) − eta f(y')) (D − p) + eta ∂f(y) − eta ∂f(y'), derivatives in the logits
    and through the conditional sampler: unbiased for any tau and eta, which may so be
    tuned by gradient descent on the variance. The cost is evaluated at relaxed rows
    too, and must be differentiable there. The value is the cost at the draw, unbiased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        eta: Scalar, not negative, no unit: the weight of the control variate; may be
            traced.

    Returns:
        An `Estimator`: logits [..., k], noise [2, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` or `eta` is not a scalar, or a number out of range.

    Example:
        >>> def cost(z, eta):  # A constant cost; eta = 0 is REINFORCE.
        ...     record = es.rebar(eta=eta)
        ...     noise = record.draw(jax.random.key(0), z.shape)
        ...     return record.expect(lambda row: 9 + 0 * row[0], z, noise)
        >>> [abs(float(jax.grad(cost)(jnp.zeros(2), eta)[0])) for eta in (0.0, 1.0)]
        [4.5, 0.0]

    Source: Tucker et al. 2017, https://arxiv.org/abs/1703.07370
    """
    settings = {"tau": setting("tau", tau), "eta": setting("eta", eta, zero=True)}
    return Estimator("rebar", _rebar, settings, num_draws=2)


def _rebar(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array, eta: jax.Array
) -> jax.Array:
    drawn = chosen(logits, noise[0])
    costs = f(drawn)

    def free(z: jax.Array) -> jax.Array:
        return f(maps.gumbel_softmax(z, noise[0], tau=tau))

    def given_the_draw(z: jax.Array) -> jax.Array:
        entries = below_draw(z, drawn, noise[1], differentiable=True)
        return f(maps.softmax(entries, tau=tau).astype(z.dtype))

    (_, from_free), (control, from_given) = (
        (out, pullback(jnp.ones_like(out))[0])
        for out, pullback in (jax.vjp(g, logits) for g in (free, given_the_draw))
    )
    wide = _wide(costs)
    signal = wide - eta.astype(wide.dtype) * _wide(control)
    score = _score(logits, drawn)
    correction = eta.astype(score.dtype) * (from_free - from_given).astype(score.dtype)
    estimate = _weighted(signal, score) + correction
    return attach(costs, logits, jnp.where(jnp.isneginf(logits), 0, estimate))


def disarm() -> Estimator:
    """Two antithetic draws of binary variables, their noise integrated out: DisARM.

    For k = 2. With D and D' the draws of the noise and of the noise with its two
    entries swapped, the gradient is (f(D) − f(D'))/2 · max(p) · (D − D'), row by row:
    unbiased for any cost. The value is the mean of the two costs, unbiased.

    Returns:
        An `Estimator`: logits [..., 2], noise [1, ..., 2], costs [*batch], in the unit
        of the cost.

    Raises:
        ValueError: When it is used: the logits have k other than 2.

    Example:
        >>> record, logits = es.disarm(), jnp.zeros(2)
        >>> noise = record.draw(jax.random.key(0), logits.shape)
        >>> cost = lambda z: record.expect(lambda row: row[1], z, noise)
        >>> [a.tolist() for a in jax.value_and_grad(cost)(logits)]  # At any noise.
        [0.5, [-0.25, 0.25]]

    Source: Dong, Mnih & Tucker 2020, https://arxiv.org/abs/2006.10680
    """
    return Estimator("disarm", _disarm, {})


def _disarm(f: Cost, logits: jax.Array, noise: jax.Array) -> jax.Array:
    if logits.shape[-1] != 2:
        raise ValueError(f"disarm is for binary logits [..., 2], got {logits.shape}")
    drawn, other = (chosen(logits, g) for g in (noise[0], noise[0, ..., ::-1]))
    found = f(drawn)
    costs, others = _wide(found), _wide(f(other))
    p = probabilities(logits)
    larger = jnp.sum(maps.hard(p) * p, axis=-1, keepdims=True)
    direction = larger * (drawn - other).astype(p.dtype)
    direction = jnp.where(jnp.isneginf(logits), 0, direction)
    gradient = _weighted(0.5 * (costs - others), direction)
    return attach((0.5 * (costs + others)).astype(found.dtype), logits, gradient)


def _score(logits: jax.Array, drawn: jax.Array) -> jax.Array:
    """D − p, the derivative of log p(D) in the logits, float32 or wider."""
    p = probabilities(logits)
    return jnp.where(jnp.isneginf(logits), 0, drawn.astype(p.dtype) - p)


def _wide(costs: jax.Array) -> jax.Array:
    """Costs in float32 or wider, so that differences of theirs are not rounded away."""
    return costs.astype(accumulation_dtype(costs))


def _weighted(signal: jax.Array, rows: jax.Array) -> jax.Array:
    return over_rows(signal, rows).astype(rows.dtype) * rows
