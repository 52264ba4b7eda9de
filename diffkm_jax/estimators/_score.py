"""Estimators that weigh draws by their costs: unbiased, for any cost."""

from __future__ import annotations

from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

import diffkm_jax.assignments as maps
from diffkm_jax._checks import accumulation_dtype, check_integer
from diffkm_jax.assignments._softmax import relaxed
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.estimators._record import Cost, Estimator, attach, over_rows, setting

if TYPE_CHECKING:
    from jax.typing import ArrayLike


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
    return Estimator("exact", _exact_rule(max_configurations), {}, 0, True)


@cache
def _exact_rule(max_configurations: int):
    return partial(_exact, max_configurations=max_configurations)


def _exact(
    f: Cost, logits: jax.Array, noise: jax.Array, *, max_configurations: int
) -> jax.Array:
    del noise
    kept = batch_axes(f, logits)
    num = num_configurations(logits, kept, max_configurations)

    # Costs relative to that of the likeliest draw: a constant one has gradient zero.
    likeliest = f(maps.hard(logits))
    acc = accumulation_dtype(logits, likeliest)
    origin = jax.lax.stop_gradient(likeliest).astype(acc)
    # As many at once as make arrays of about a million entries.
    size = max(1, min(1024, 2**20 // max(1, logits.size)))

    @jax.checkpoint
    def term(code: jax.Array) -> jax.Array:
        rows, probability = configuration(logits, kept, code)
        above = jnp.where(probability > 0, f(rows).astype(acc) - origin, 0)
        return probability.astype(acc) * above

    terms = jax.lax.map(term, jnp.arange(num), batch_size=size)
    return (origin + jnp.sum(terms, axis=0)).astype(likeliest.dtype)


def num_configurations(logits: jax.Array, kept: int, limit: int) -> int:
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
            "the axes of independent rows takes far fewer"
        )
    return num


def batch_axes(f: Cost, logits: jax.Array) -> int:
    """How many leading axes of the logits the cost keeps."""
    rows = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    return jax.eval_shape(f, rows).ndim


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
    p = relaxed(logits, jnp.ones((), accumulation_dtype(logits)))
    of_rows = jnp.sum(p * drawn.astype(p.dtype), axis=-1)
    probability = jnp.prod(of_rows, axis=tuple(range(kept, of_rows.ndim)))
    possible = over_rows(probability > 0, drawn)
    return jnp.where(possible, drawn, maps.hard(logits)), probability


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
    settings = {"baseline": jnp.asarray(baseline).astype(dtype)}
    return Estimator("reinforce", _reinforce, settings, 1, True)


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
    return Estimator("rloo", _rloo, {}, num_samples, True)


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
    return Estimator("rebar", _rebar, settings, 2)


def _rebar(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array, eta: jax.Array
) -> jax.Array:
    drawn = chosen(logits, noise[0])
    costs = f(drawn)

    def free(z: jax.Array) -> jax.Array:
        return f(maps.gumbel_softmax(z, noise[0], tau=tau))

    def given_the_draw(z: jax.Array) -> jax.Array:
        entries = maps.conditional_gumbel(z, drawn, noise[1], differentiable=True)
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
    p = relaxed(logits, jnp.ones((), accumulation_dtype(logits)))
    larger = jnp.sum(maps.hard(p) * p, axis=-1, keepdims=True)
    direction = larger * (drawn - other).astype(p.dtype)
    direction = jnp.where(jnp.isneginf(logits), 0, direction)
    gradient = _weighted(0.5 * (costs - others), direction)
    return attach((0.5 * (costs + others)).astype(found.dtype), logits, gradient)


def _score(logits: jax.Array, drawn: jax.Array) -> jax.Array:
    """D − p, the derivative of log p(D) in the logits, float32 or wider."""
    p = relaxed(logits, jnp.ones((), accumulation_dtype(logits)))
    return jnp.where(jnp.isneginf(logits), 0, drawn.astype(p.dtype) - p)


def _wide(costs: jax.Array) -> jax.Array:
    """Costs in float32 or wider, so that differences of theirs are not rounded away."""
    return costs.astype(accumulation_dtype(costs))


def _weighted(signal: jax.Array, rows: jax.Array) -> jax.Array:
    return over_rows(signal, rows).astype(rows.dtype) * rows
