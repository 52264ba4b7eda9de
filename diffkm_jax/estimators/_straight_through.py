"""Straight-through estimators: a discrete draw, the gradient of a soft row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import diffkm_jax.assignments as maps
from diffkm_jax._checks import check_integer
from diffkm_jax.estimators._estimator import Estimator, setting, through

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
    rule, settings = through(maps.straight_through), {"tau": setting("tau", tau)}
    return Estimator("straight_through", rule, settings, num_draws=0, discrete=True)


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
    rule = through(maps.sampled_straight_through)
    settings = {"tau": setting("tau", tau)}
    return Estimator("sampled_straight_through", rule, settings, discrete=True)


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
    rule = through(maps.gapped_straight_through)
    gap = None if gap is None else setting("gap", gap)
    settings = {"tau": setting("tau", tau), "gap": gap}
    return Estimator("gapped_straight_through", rule, settings, discrete=True)


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
    rule, settings = through(maps.reinmax), {"tau": setting("tau", tau)}
    return Estimator("reinmax", rule, settings, discrete=True)


def reinmax_rao(*, tau: ArrayLike = 1.0, num_samples: int = 10) -> Estimator:
    """ReinMax averaged given the draw: less variance, some bias.

    The gradient is that of the cost at the draw, by `reinmax_rao`: biased, for
    quadratic costs too. The value is the cost at the draw, unbiased; the cost is
    evaluated once.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        num_samples: Conditional samples m, at least 1; static. The paper takes 100.

    Returns:
        An `Estimator`: logits [..., k], noise [1 + m, ..., k], costs [*batch].

    Raises:
        TypeError: `num_samples` is no integer.
        ValueError: `num_samples` is below 1; `tau` is not a scalar, or a number and not
            positive.

    Example:
        >>> key, logits = jax.random.key(0), jnp.zeros(4)
        >>> records = [es.reinmax(), es.reinmax_rao()]
        >>> reports = dk.evaluate(key, lambda row: row[0] ** 2, logits, records)
        >>> bool(reports[1].total_variance < reports[0].total_variance)
        True

    Source: Wang & Bui 2026, https://arxiv.org/abs/2603.08257
    """
    check_integer("num_samples", num_samples, minimum=1)
    rule, settings = through(maps.reinmax_rao), {"tau": setting("tau", tau)}
    return Estimator("reinmax_rao", rule, settings, num_draws=1 + num_samples)


def reinmax_cv(
    *, tau: ArrayLike = 1.0, eta: ArrayLike = 1.0, num_samples: int = 10
) -> Estimator:
    """ReinMax with a control variate of Gumbel-softmax and Gumbel-Rao.

    The gradient is that of the cost at the draw, by `reinmax_cv`: biased. The value is
    the cost at the draw, unbiased; the cost is evaluated once.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        eta: Scalar, not negative, no unit: the weight of the control variate; may be
            traced.
        num_samples: Conditional samples m, at least 1; static. The paper takes 100.

    Returns:
        An `Estimator`: logits [..., k], noise [1 + m, ..., k], costs [*batch].

    Raises:
        TypeError: `num_samples` is no integer.
        ValueError: `num_samples` is below 1; `tau` or `eta` is not a scalar, or a
            number out of range.

    Example:
        >>> record, logits = es.reinmax_cv(num_samples=3), jnp.zeros((5, 2))
        >>> record.draw(jax.random.key(0), logits.shape).shape
        (4, 5, 2)

    Source: Wang & Bui 2026, https://arxiv.org/abs/2603.08257
    """
    check_integer("num_samples", num_samples, minimum=1)
    settings = {"tau": setting("tau", tau), "eta": setting("eta", eta)}
    rule = through(maps.reinmax_cv)
    return Estimator("reinmax_cv", rule, settings, num_draws=1 + num_samples)
