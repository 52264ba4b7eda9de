"""Estimators of draws of several clusters, biased and of one evaluation of the cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import diffkm_jax.assignments as maps
from diffkm_jax.estimators._estimator import Estimator, setting, through
from diffkm_jax.estimators._laws import CONDITIONAL, PLACKETT_LUCE, as_law

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def gumbel_top_k(*, size: int, tau: ArrayLike = 1.0, hard: bool = False) -> Estimator:
    """Gumbel top-k: the cost at relaxed rows of several clusters, or at their draw.

    The gradient is that of the cost through `gumbel_top_k`: biased for the draw, less
    as tau falls, while its variance grows. The value is the cost at the relaxed row, or
    with `hard` at the draw, then unbiased for the law "plackett_luce".

    Args:
        size: How many clusters a draw has, at least 1; static.
        tau: Positive scalar, in the unit of the logits; may be traced.
        hard: Whether the cost is evaluated at the draw; static.

    Returns:
        An `Estimator` of the law "plackett_luce": logits [..., k], noise [1, ..., k],
        costs [*batch].

    Raises:
        TypeError: `size` is no integer.
        ValueError: `size` is below 1, or when it is used more than k; `tau` is not a
            scalar, or a number and not positive.

    Example:
        >>> f, records = lambda row: row[0] * row[1], [es.gumbel_top_k(size=2)]
        >>> records += [es.exact(size=2)]
        >>> reports = dk.evaluate(jax.random.key(0), f, jnp.zeros(4), records)
        >>> round(float(reports[1].mean_value), 4)  # One pair of six.
        0.1667

    Source: Xie & Ermon 2019, https://arxiv.org/abs/1901.10517
    """
    of = as_law(size, PLACKETT_LUCE)
    rule = through(maps.gumbel_top_k, size=of.size, hard=bool(hard))
    name = "gumbel_top_k_hard" if hard else "gumbel_top_k"
    return Estimator(name, rule, {"tau": setting("tau", tau)}, 1, False, *of)


def simple(*, size: int, tau: ArrayLike = 1.0) -> Estimator:
    """SIMPLE: a subset of a size drawn exactly, with the gradient of its marginals.

    The gradient is that of the cost at the draw, through `subset_marginals` at `tau`:
    exact in expectation for costs linear in each row at tau = 1, else biased. The value
    is the cost at the draw, unbiased for the law "conditional_bernoulli".

    Args:
        size: How many clusters a draw has, at least 1; static.
        tau: Positive scalar, in the unit of the logits; may be traced.

    Returns:
        An `Estimator` of the law "conditional_bernoulli", discrete: logits [..., k],
        noise [1, ..., k], costs [*batch].

    Raises:
        TypeError: `size` is no integer.
        ValueError: `size` is below 1, or when it is used more than k; `tau` is not a
            scalar, or a number and not positive.

    Example:
        >>> key, logits = jax.random.key(0), jnp.array([1.0, 0.0, 0.0, -1.0])
        >>> report = dk.evaluate(key, lambda row: row[0], logits, es.simple(size=2))
        >>> bool(report.enumerated), np.allclose(report.bias, 0, atol=1e-6)
        (True, True)

    Source: Ahmed et al. 2023, https://arxiv.org/abs/2210.01941
    """
    of = as_law(size, CONDITIONAL)
    rule = through(maps.simple, size=of.size)
    return Estimator("simple", rule, {"tau": setting("tau", tau)}, 1, True, *of)
