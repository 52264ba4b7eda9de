"""Gumbel-softmax estimators: a draw as a function of noise, differentiated."""

from __future__ import annotations

from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch._checks import check_integer
from diffkm_torch.estimators._estimator import Estimator, setting, through

Scalar = float | Tensor


def gumbel_softmax(*, tau: Scalar = 1.0, hard: bool = False) -> Estimator:
    """Mirrors `diffkm_jax.estimators.gumbel_softmax`."""
    settings = {"tau": setting("tau", tau)}
    name = "gumbel_softmax_hard" if hard else "gumbel_softmax"
    return Estimator(name, through(maps.gumbel_softmax, hard=bool(hard)), settings)


def decoupled_gumbel_softmax(
    *, tau: Scalar = 1.0, tau_backward: Scalar = 1.0
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.decoupled_gumbel_softmax`."""
    rule = through(maps.decoupled_gumbel_softmax)
    settings = {
        "tau": setting("tau", tau),
        "tau_backward": setting("tau_backward", tau_backward),
    }
    return Estimator("decoupled_gumbel_softmax", rule, settings)


def gumbel_rao(*, tau: Scalar = 1.0, num_samples: int = 10) -> Estimator:
    """Mirrors `diffkm_jax.estimators.gumbel_rao`."""
    check_integer("num_samples", num_samples, minimum=1)
    rule, settings = through(maps.gumbel_rao), {"tau": setting("tau", tau)}
    return Estimator("gumbel_rao", rule, settings, num_draws=1 + num_samples)
