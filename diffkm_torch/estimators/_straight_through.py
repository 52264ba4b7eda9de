"""Straight-through estimators: a discrete draw, the gradient of a soft row."""

from __future__ import annotations

from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch._checks import check_integer
from diffkm_torch.estimators._estimator import Estimator, setting, through

Scalar = float | Tensor


def straight_through(*, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.straight_through`."""
    rule, settings = through(maps.straight_through), {"tau": setting("tau", tau)}
    return Estimator("straight_through", rule, settings, num_draws=0, discrete=True)


def sampled_straight_through(*, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.sampled_straight_through`.

    Example:
        >>> record, draws = es.sampled_straight_through(), torch.eye(4)[:, None]
        >>> def mean(z):  # Over four draws, one of each cluster.
        ...     costs = [record.expect(lambda row: row[0], z, d) for d in draws]
        ...     return sum(costs) / 4
        >>> torch.func.grad(mean)(torch.zeros(4)).tolist()  # Exact: the cost is linear.
        [0.1875, -0.0625, -0.0625, -0.0625]
    """
    rule = through(maps.sampled_straight_through)
    settings = {"tau": setting("tau", tau)}
    return Estimator("sampled_straight_through", rule, settings, discrete=True)


def gapped_straight_through(
    *, tau: Scalar = 1.0, gap: Scalar | None = 1.0
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.gapped_straight_through`."""
    rule = through(maps.gapped_straight_through)
    gap = None if gap is None else setting("gap", gap)
    settings = {"tau": setting("tau", tau), "gap": gap}
    return Estimator("gapped_straight_through", rule, settings, discrete=True)


def reinmax(*, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinmax`.

    Example:
        >>> record, draws = es.reinmax(), torch.eye(4)[:, None]
        >>> def mean(z):  # Over four draws, one of each cluster.
        ...     costs = [record.expect(lambda row: row[0] ** 2, z, d) for d in draws]
        ...     return sum(costs) / 4
        >>> torch.func.grad(mean)(torch.zeros(4)).tolist()  # p (f − 1/4), exactly.
        [0.1875, -0.0625, -0.0625, -0.0625]
    """
    rule, settings = through(maps.reinmax), {"tau": setting("tau", tau)}
    return Estimator("reinmax", rule, settings, discrete=True)


def reinmax_rao(*, tau: Scalar = 1.0, num_samples: int = 10) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinmax_rao`.

    Example:
        >>> record, logits = es.reinmax_rao(num_samples=3), torch.zeros(5, 2)
        >>> noise = record.draw(torch.Generator().manual_seed(0), logits.shape)
        >>> costs = record.expect(lambda rows: rows.amax(-1), logits, noise)
        >>> tuple(noise.shape), costs.tolist()
        ((4, 5, 2), [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    check_integer("num_samples", num_samples, minimum=1)
    rule, settings = through(maps.reinmax_rao), {"tau": setting("tau", tau)}
    return Estimator("reinmax_rao", rule, settings, num_draws=1 + num_samples)


def reinmax_cv(
    *, tau: Scalar = 1.0, eta: Scalar = 1.0, num_samples: int = 10
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinmax_cv`."""
    check_integer("num_samples", num_samples, minimum=1)
    settings = {"tau": setting("tau", tau), "eta": setting("eta", eta)}
    rule = through(maps.reinmax_cv)
    return Estimator("reinmax_cv", rule, settings, num_draws=1 + num_samples)
