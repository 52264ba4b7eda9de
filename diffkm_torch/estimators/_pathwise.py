"""Estimators that differentiate the cost at a draw, through an assignment map."""

from __future__ import annotations

from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch._checks import accumulation_dtype, as_scalar, check_integer
from diffkm_torch.assignments._perturbed import to_target
from diffkm_torch.assignments._straight_through import chosen
from diffkm_torch.estimators._record import (
    Cost,
    Estimator,
    attach,
    setting,
    value_and_gradient,
)

Scalar = float | Tensor


def straight_through(*, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.straight_through`."""
    tau = setting("tau", tau)
    return Estimator("straight_through", _straight_through, {"tau": tau}, 0, True)


def _straight_through(f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar) -> Tensor:
    del noise
    return f(maps.straight_through(logits, tau=tau))


def sampled_straight_through(*, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.sampled_straight_through`."""
    settings = {"tau": setting("tau", tau)}
    return Estimator("sampled_straight_through", _sampled, settings, 1, True)


def _sampled(f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar) -> Tensor:
    return f(maps.sampled_straight_through(logits, noise[0], tau=tau))


def gumbel_softmax(*, tau: Scalar = 1.0, hard: bool = False) -> Estimator:
    """Mirrors `diffkm_jax.estimators.gumbel_softmax`."""
    settings = {"tau": setting("tau", tau)}
    if hard:
        return Estimator("gumbel_softmax_hard", _gumbel_softmax_hard, settings)
    return Estimator("gumbel_softmax", _gumbel_softmax, settings)


def _gumbel_softmax(f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar) -> Tensor:
    return f(maps.gumbel_softmax(logits, noise[0], tau=tau))


def _gumbel_softmax_hard(
    f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar
) -> Tensor:
    return f(maps.gumbel_softmax(logits, noise[0], tau=tau, hard=True))


def decoupled_gumbel_softmax(
    *, tau: Scalar = 1.0, tau_backward: Scalar = 1.0
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.decoupled_gumbel_softmax`."""
    settings = {
        "tau": setting("tau", tau),
        "tau_backward": setting("tau_backward", tau_backward),
    }
    return Estimator("decoupled_gumbel_softmax", _decoupled, settings)


def _decoupled(
    f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar, tau_backward: Scalar
) -> Tensor:
    rows = maps.decoupled_gumbel_softmax(
        logits, noise[0], tau=tau, tau_backward=tau_backward
    )
    return f(rows)


def gumbel_rao(*, tau: Scalar = 1.0, num_samples: int = 10) -> Estimator:
    """Mirrors `diffkm_jax.estimators.gumbel_rao`."""
    check_integer("num_samples", num_samples, minimum=1)
    settings = {"tau": setting("tau", tau)}
    return Estimator("gumbel_rao", _gumbel_rao, settings, 1 + num_samples)


def _gumbel_rao(f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar) -> Tensor:
    return f(maps.gumbel_rao(logits, noise, tau=tau))


def gapped_straight_through(
    *, tau: Scalar = 1.0, gap: Scalar | None = 1.0
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.gapped_straight_through`."""
    gap = None if gap is None else setting("gap", gap, zero=True)
    settings = {"tau": setting("tau", tau), "gap": gap}
    return Estimator("gapped_straight_through", _gapped, settings, 1, True)


def _gapped(
    f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar, gap: Scalar | None
) -> Tensor:
    return f(maps.gapped_straight_through(logits, noise[0], tau=tau, gap=gap))


def reinmax(*, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinmax`."""
    return Estimator("reinmax", _reinmax, {"tau": setting("tau", tau)}, 1, True)


def _reinmax(f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar) -> Tensor:
    return f(maps.reinmax(logits, noise[0], tau=tau))


def blackbox(*, strength: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.blackbox`."""
    settings = {"strength": setting("strength", strength)}
    return Estimator("blackbox", _blackbox, settings, 0, True)


def _blackbox(f: Cost, logits: Tensor, noise: Tensor, *, strength: Scalar) -> Tensor:
    del noise
    return _to_target(f, logits, None, strength, scaled=True)


def implicit_mle(*, strength: Scalar = 1.0, scaled: bool = False) -> Estimator:
    """Mirrors `diffkm_jax.estimators.implicit_mle`."""
    settings = {"strength": setting("strength", strength)}
    if scaled:
        return Estimator("implicit_mle_scaled", _implicit_mle_scaled, settings)
    return Estimator("implicit_mle", _implicit_mle, settings)


def _implicit_mle(
    f: Cost, logits: Tensor, noise: Tensor, *, strength: Scalar
) -> Tensor:
    return _to_target(f, logits, noise[0], strength, scaled=False)


def _implicit_mle_scaled(
    f: Cost, logits: Tensor, noise: Tensor, *, strength: Scalar
) -> Tensor:
    return _to_target(f, logits, noise[0], strength, scaled=True)


def _to_target(
    f: Cost, logits: Tensor, noise: Tensor | None, strength: Scalar, *, scaled: bool
) -> Tensor:
    costs, g = value_and_gradient(f, chosen(logits, noise))
    strength = as_scalar("strength", strength, accumulation_dtype(logits, noise))
    gradient = to_target(logits, noise, strength, g, scaled=scaled)
    return attach(costs, logits, gradient)
