"""Straight-through estimators: a discrete draw, the gradient of a soft row."""

from __future__ import annotations

from torch import Tensor

import diffkm_torch.assignments as maps
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
    gap = None if gap is None else setting("gap", gap, zero=True)
    settings = {"tau": setting("tau", tau), "gap": gap}
    return Estimator("gapped_straight_through", rule, settings, discrete=True)


def reinmax(*, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinmax`."""
    rule, settings = through(maps.reinmax), {"tau": setting("tau", tau)}
    return Estimator("reinmax", rule, settings, discrete=True)
