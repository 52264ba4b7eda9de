"""Estimators that differentiate the cost at a draw, through an assignment map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

import diffkm_jax.assignments as maps
from diffkm_jax._checks import accumulation_dtype, check_integer
from diffkm_jax.assignments._perturbed import to_target
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.estimators._record import Cost, Estimator, attach, setting

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def straight_through(*, tau: ArrayLike = 1.0) -> Estimator:
    """Straight-through at the best cluster, without noise.

    The gradient is that of the cost, through `straight_through` at `tau`: biased,
    without variance. The value is the cost at the argmax, no estimate of E f(D).

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.

    Returns:
        An `Estimator` without noise, discrete: logits [..., k] to costs [*batch].

    Raises:
        ValueError: `tau` is not a scalar, or a number and not positive.

    Example:
        >>> record, cost = es.straight_through(), lambda row: row[0]
        >>> value_and_grad = jax.value_and_grad(lambda z: record.expect(cost, z))
        >>> [a.tolist() for a in value_and_grad(jnp.zeros(2))]  # The mean cost is 0.5.
        [1.0, [0.25, -0.25]]

    Source: Bengio, Léonard & Courville 2013, https://arxiv.org/abs/1308.3432
    """
    tau = setting("tau", tau)
    return Estimator("straight_through", _straight_through, {"tau": tau}, 0, True)


def _straight_through(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array
) -> jax.Array:
    del noise
    return f(maps.straight_through(logits, tau=tau))


def sampled_straight_through(*, tau: ArrayLike = 1.0) -> Estimator:
    """Straight-through at a draw: the "ST" of the papers.

    The gradient is that of the cost at the draw, through `softmax(logits / tau)`: exact
    in expectation for costs linear in each row at tau = 1, else biased. The value is
    the cost at the draw, unbiased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` is not a scalar, or a number and not positive.

    Example:
        >>> key, record = jax.random.key(0), es.sampled_straight_through()
        >>> report = dk.evaluate(key, lambda row: row[0], jnp.zeros(4), record)
        >>> np.allclose(report.bias, 0, atol=1e-6)  # The cost is linear.
        True

    Source: Bengio, Léonard & Courville 2013, https://arxiv.org/abs/1308.3432
    """
    settings = {"tau": setting("tau", tau)}
    return Estimator("sampled_straight_through", _sampled, settings, 1, True)


def _sampled(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array
) -> jax.Array:
    return f(maps.sampled_straight_through(logits, noise[0], tau=tau))


def gumbel_softmax(*, tau: ArrayLike = 1.0, hard: bool = False) -> Estimator:
    """Gumbel-softmax: the cost at relaxed rows, or at their one-hot if `hard`.

    The gradient is that of the cost through softmax((logits + noise)/tau): biased, less
    as `tau` falls, at a variance that grows like 1/tau. The value is the cost at the
    relaxed rows, biased; if `hard`, the cost at the draw, unbiased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        hard: Whether the cost sees one-hot rows (straight-through Gumbel-softmax).

    Returns:
        An `Estimator`: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits, noise = jnp.zeros(2), jnp.array([[0.0, 0.0]])
        >>> records = es.gumbel_softmax(), es.gumbel_softmax(hard=True)
        >>> [float(record.expect(jnp.max, logits, noise)) for record in records]
        [0.5, 1.0]

    Source: Jang, Gu & Poole 2017, https://arxiv.org/abs/1611.01144
    """
    settings = {"tau": setting("tau", tau)}
    if hard:
        return Estimator("gumbel_softmax_hard", _gumbel_softmax_hard, settings)
    return Estimator("gumbel_softmax", _gumbel_softmax, settings)


def _gumbel_softmax(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array
) -> jax.Array:
    return f(maps.gumbel_softmax(logits, noise[0], tau=tau))


def _gumbel_softmax_hard(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array
) -> jax.Array:
    return f(maps.gumbel_softmax(logits, noise[0], tau=tau, hard=True))


def decoupled_gumbel_softmax(
    *, tau: ArrayLike = 1.0, tau_backward: ArrayLike = 1.0
) -> Estimator:
    """Gumbel-softmax with one softness for the value and one for the gradient.

    The gradient is that of the cost at softmax((logits + noise)/tau), through
    softmax((logits + noise)/tau_backward): biased. The value is the cost at the relaxed
    rows, biased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        tau_backward: Positive scalar, in the unit of the logits; may be traced.

    Returns:
        An `Estimator`: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` or `tau_backward` is not a scalar, or a number and not
            positive.

    Example:
        >>> logits, noise = jnp.zeros(2), jnp.zeros((1, 2))
        >>> def first(z, tau):
        ...     record = es.decoupled_gumbel_softmax(tau=0.1, tau_backward=tau)
        ...     return record.expect(lambda row: row[0], z, noise)
        >>> curve = jax.vmap(jax.grad(first), (None, 0))  # Over settings.
        >>> curve(logits, jnp.array([0.5, 1.0])).tolist()
        [[0.5, -0.5], [0.25, -0.25]]

    Source: Shah, Yan, Mozer & Liu 2024, https://arxiv.org/abs/2410.13331
    """
    settings = {
        "tau": setting("tau", tau),
        "tau_backward": setting("tau_backward", tau_backward),
    }
    return Estimator("decoupled_gumbel_softmax", _decoupled, settings)


def _decoupled(
    f: Cost,
    logits: jax.Array,
    noise: jax.Array,
    *,
    tau: jax.Array,
    tau_backward: jax.Array,
) -> jax.Array:
    rows = maps.decoupled_gumbel_softmax(
        logits, noise[0], tau=tau, tau_backward=tau_backward
    )
    return f(rows)


def gumbel_rao(*, tau: ArrayLike = 1.0, num_samples: int = 10) -> Estimator:
    """Gumbel-Rao: straight-through Gumbel-softmax averaged given the draw.

    The gradient is that of the cost at the draw, through the mean of `num_samples`
    relaxed rows conditioned on it: the bias of `gumbel_softmax(hard=True)` at less
    variance. The value is the cost at the draw, unbiased; the cost is evaluated once.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        num_samples: Conditional samples m, at least 1; static.

    Returns:
        An `Estimator`: logits [..., k], noise [1 + m, ..., k], costs [*batch].

    Raises:
        TypeError: `num_samples` is no integer.
        ValueError: `num_samples` is below 1; `tau` is not a scalar, or a number and not
            positive.

    Example:
        >>> record, logits = es.gumbel_rao(num_samples=3), jnp.zeros((5, 2))
        >>> noise = record.draw(jax.random.key(0), logits.shape)
        >>> costs = record.expect(lambda rows: rows.max(-1), logits, noise)
        >>> noise.shape, costs.tolist()
        ((4, 5, 2), [1.0, 1.0, 1.0, 1.0, 1.0])

    Source: Paulus, Maddison & Krause 2021, https://arxiv.org/abs/2010.04838
    """
    check_integer("num_samples", num_samples, minimum=1)
    settings = {"tau": setting("tau", tau)}
    return Estimator("gumbel_rao", _gumbel_rao, settings, 1 + num_samples)


def _gumbel_rao(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array
) -> jax.Array:
    return f(maps.gumbel_rao(logits, noise, tau=tau))


def gapped_straight_through(
    *, tau: ArrayLike = 1.0, gap: ArrayLike | None = 1.0
) -> Estimator:
    """Straight-through with the drawn logit lifted a gap above the others.

    The gradient is that of the cost at the draw, through a softmax that favors it:
    biased. The value is the cost at the draw, unbiased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        gap: Scalar, not negative, in the unit of the logits; may be traced. None is
            the gap to expect, row by row.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` or `gap` is not a scalar, or a number out of range.

    Example:
        >>> record = es.gapped_straight_through(gap=jnp.log(3.0))
        >>> def first(z):
        ...     return record.expect(lambda row: row[0], z, jnp.array([[3.0, 0.0]]))
        >>> [f"{v:.4f}" for v in jax.grad(first)(jnp.zeros(2))]  # As if p were 0.75.
        ['0.1875', '-0.1875']

    Source: Fan, Chi, Rudnicky & Ramadge 2022, https://arxiv.org/abs/2206.07235
    """
    gap = None if gap is None else setting("gap", gap, zero=True)
    settings = {"tau": setting("tau", tau), "gap": gap}
    return Estimator("gapped_straight_through", _gapped, settings, 1, True)


def _gapped(
    f: Cost,
    logits: jax.Array,
    noise: jax.Array,
    *,
    tau: jax.Array,
    gap: jax.Array | None,
) -> jax.Array:
    return f(maps.gapped_straight_through(logits, noise[0], tau=tau, gap=gap))


def reinmax(*, tau: ArrayLike = 1.0) -> Estimator:
    """ReinMax: straight-through of second order.

    The gradient is that of the cost at the draw, by `reinmax`: exact in expectation for
    costs quadratic in each row at tau = 1, else biased. The value is the cost at the
    draw, unbiased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.

    Returns:
        An `Estimator`, discrete: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` is not a scalar, or a number and not positive.

    Example:
        >>> key, logits = jax.random.key(0), jnp.zeros(4)
        >>> records = [es.sampled_straight_through(), es.reinmax()]
        >>> reports = dk.evaluate(key, lambda row: row[0] ** 2, logits, records)
        >>> [np.allclose(report.bias, 0, atol=1e-6) for report in reports]
        [False, True]

    Source: Liu, Dong, Liu, Yu & Gao 2023, https://arxiv.org/abs/2304.08612
    """
    settings = {"tau": setting("tau", tau)}
    return Estimator("reinmax", _reinmax, settings, 1, True)


def _reinmax(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array
) -> jax.Array:
    return f(maps.reinmax(logits, noise[0], tau=tau))


def blackbox(*, strength: ArrayLike = 1.0) -> Estimator:
    """Black-box differentiation of the best cluster, without noise.

    The gradient is (y(logits) − y(logits − strength·g))/strength with g the gradient of
    each cost in the rows: biased, mostly zero, without variance. Unlike the map it
    takes g at a unit cotangent, so that a weight or a mean over the batch scales it and
    changes nothing else. The value is the cost at the argmax, no estimate of E f(D).

    Args:
        strength: Positive scalar λ, in the unit of the logits per unit of cost; may be
            traced.

    Returns:
        An `Estimator` without noise, discrete: logits [..., k] to costs [*batch].

    Raises:
        ValueError: `strength` is not a scalar, or a number and not positive.

    Example:
        >>> record = es.blackbox(strength=2.0)
        >>> def mean(z):
        ...     return jnp.mean(record.expect(lambda rows: rows[:, 0], z))
        >>> jax.grad(mean)(jnp.array([[1.0, 0.0], [9.0, 0.0]])).tolist()  # 0.5 / 2
        [[0.25, -0.25], [0.0, 0.0]]

    Source: Vlastelica et al. 2020, https://arxiv.org/abs/1912.02175
    """
    settings = {"strength": setting("strength", strength)}
    return Estimator("blackbox", _blackbox, settings, 0, True)


def _blackbox(
    f: Cost, logits: jax.Array, noise: jax.Array, *, strength: jax.Array
) -> jax.Array:
    del noise
    return _to_target(f, logits, None, strength, scaled=True)


def implicit_mle(*, strength: ArrayLike = 1.0, scaled: bool = False) -> Estimator:
    """Implicit maximum likelihood: the difference to a draw that costs less.

    The gradient is y(logits) − y(logits − strength·g), both under the noise of the draw
    and g the gradient of each cost in the rows, divided by `strength` if `scaled`:
    biased. Unlike the map it takes g at a unit cotangent, so that a weight or a mean
    over the batch scales it and changes nothing else. The value is the cost at the
    draw, unbiased.

    Args:
        strength: Positive scalar λ, in the unit of the logits per unit of cost; may be
            traced.
        scaled: Whether to divide by `strength`.

    Returns:
        An `Estimator`: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `strength` is not a scalar, or a number and not positive.

    Example:
        >>> record, noise = es.implicit_mle(strength=2.0), jnp.array([[1.0, 0.0]])
        >>> def weighted(z):
        ...     return 0.25 * record.expect(lambda row: row[0], z, noise)
        >>> jax.grad(weighted)(jnp.zeros(2)).tolist()  # The map would give zero.
        [0.25, -0.25]

    Source: Niepert, Minervini & Franceschi 2021, https://arxiv.org/abs/2106.01798
    """
    settings = {"strength": setting("strength", strength)}
    if scaled:
        return Estimator("implicit_mle_scaled", _implicit_mle_scaled, settings)
    return Estimator("implicit_mle", _implicit_mle, settings)


def _implicit_mle(
    f: Cost, logits: jax.Array, noise: jax.Array, *, strength: jax.Array
) -> jax.Array:
    return _to_target(f, logits, noise[0], strength, scaled=False)


def _implicit_mle_scaled(
    f: Cost, logits: jax.Array, noise: jax.Array, *, strength: jax.Array
) -> jax.Array:
    return _to_target(f, logits, noise[0], strength, scaled=True)


def _to_target(
    f: Cost,
    logits: jax.Array,
    noise: jax.Array | None,
    strength: jax.Array,
    *,
    scaled: bool,
) -> jax.Array:
    costs, pullback = jax.vjp(f, chosen(logits, noise))
    (g,) = pullback(jnp.ones_like(costs))
    dtype = accumulation_dtype(logits, noise)
    gradient = to_target(logits, noise, strength.astype(dtype), g, scaled=scaled)
    return attach(costs, logits, gradient)
