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
    """Mirrors `diffkm_jax.estimators.sampled_straight_through`."""
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
    """Mirrors `diffkm_jax.estimators.reinmax`."""
    rule, settings = through(maps.reinmax), {"tau": setting("tau", tau)}
    return Estimator("reinmax", rule, settings, discrete=True)


def reinmax_rao(*, tau: Scalar = 1.0, num_samples: int = 10) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinmax_rao`."""
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
