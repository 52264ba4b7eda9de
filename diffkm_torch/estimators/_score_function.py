"""Estimators that weigh draws by their costs: unbiased, for any cost."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch._checks import as_scalar, check_integer
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import shown
from diffkm_torch.assignments._gumbel import below_draw
from diffkm_torch.assignments._straight_through import chosen
from diffkm_torch.estimators._attach import attach, over_rows, value_and_gradient
from diffkm_torch.estimators._enumeration import probabilities
from diffkm_torch.estimators._estimator import Cost, Estimator, setting

Scalar = float | Tensor


def reinforce(*, baseline: Scalar = 0.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinforce`: (f(D) − baseline) (D − p)."""
    if not isinstance(baseline, Real | Tensor):
        what = "a number or a tensor"
        raise TypeError(f"baseline must be {what}, got {shown(baseline)}")
    return Estimator("reinforce", _reinforce, {"baseline": baseline}, discrete=True)


def _reinforce(f: Cost, logits: Tensor, noise: Tensor, *, baseline: Scalar) -> Tensor:
    drawn = chosen(logits, noise[0])
    costs = f(drawn)
    wide = _wide(costs)
    baseline = torch.as_tensor(baseline, dtype=wide.dtype, device=wide.device)
    if baseline.ndim and baseline.shape != costs.shape:
        raise ValueError(
            "baseline must be a scalar or of the shape of the costs "
            f"{tuple(costs.shape)}, got shape {tuple(baseline.shape)}"
        )
    estimate = _weighted(wide - baseline, _score(logits, drawn))
    return attach(costs, logits, estimate)


def rloo(*, num_samples: int = 4) -> Estimator:
    """Mirrors `diffkm_jax.estimators.rloo`: the other draws are the baseline."""
    check_integer("num_samples", num_samples, minimum=2)
    return Estimator("rloo", _rloo, {}, num_draws=num_samples, discrete=True)


def _rloo(f: Cost, logits: Tensor, noise: Tensor) -> Tensor:
    draws = [chosen(logits, g) for g in noise]
    costs = torch.stack([f(drawn) for drawn in draws])
    wide = _wide(costs)
    mean = wide.mean(0)
    score = torch.stack([_score(logits, drawn) for drawn in draws])
    signal = (wide - mean) / (len(noise) - 1)
    return attach(mean.to(costs.dtype), logits, _weighted(signal, score).sum(0))


def rebar(*, tau: Scalar = 0.5, eta: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.rebar`: the relaxed cost as a control variate."""
    settings = {"tau": setting("tau", tau), "eta": setting("eta", eta, zero=True)}
    return Estimator("rebar", _rebar, settings, num_draws=2)


def _rebar(
    f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar, eta: Scalar
) -> Tensor:
    drawn = chosen(logits, noise[0])
    costs = f(drawn)

    def free(z: Tensor) -> Tensor:
        return f(maps.gumbel_softmax(z, noise[0], tau=tau))

    def given_the_draw(z: Tensor) -> Tensor:
        entries = below_draw(z, drawn, noise[1], differentiable=True)
        return f(maps.softmax(entries, tau=tau).to(z.dtype))

    _, from_free = value_and_gradient(free, logits)
    control, from_given = value_and_gradient(given_the_draw, logits)
    eta = as_scalar("eta", eta, accumulation_dtype(logits, noise), zero=True)
    wide = _wide(costs)
    signal = wide - eta.to(wide.dtype) * _wide(control)
    score = _score(logits, drawn)
    correction = eta.to(score.dtype) * (from_free - from_given).to(score.dtype)
    estimate = _weighted(signal, score) + correction
    return attach(costs, logits, estimate.masked_fill(logits.isneginf(), 0))


def disarm() -> Estimator:
    """Mirrors `diffkm_jax.estimators.disarm`: two antithetic draws, for k = 2."""
    return Estimator("disarm", _disarm, {})


def _disarm(f: Cost, logits: Tensor, noise: Tensor) -> Tensor:
    if logits.shape[-1] != 2:
        shape = tuple(logits.shape)
        raise ValueError(f"disarm is for binary logits [..., 2], got {shape}")
    drawn, other = (chosen(logits, g) for g in (noise[0], noise[0].flip(-1)))
    found = f(drawn)
    costs, others = _wide(found), _wide(f(other))
    p = probabilities(logits)
    larger = (maps.hard(p) * p).sum(-1, keepdim=True)
    direction = larger * (drawn - other).to(p.dtype)
    direction = direction.masked_fill(logits.isneginf(), 0)
    gradient = _weighted(0.5 * (costs - others), direction)
    return attach((0.5 * (costs + others)).to(found.dtype), logits, gradient)


def _score(logits: Tensor, drawn: Tensor) -> Tensor:
    """D − p, the derivative of log p(D) in the logits, float32 or wider."""
    p = probabilities(logits)
    return (drawn.to(p.dtype) - p).masked_fill(logits.isneginf(), 0)


def _wide(costs: Tensor) -> Tensor:
    """Costs in float32 or wider, so that differences of theirs are not rounded away."""
    return costs.to(accumulation_dtype(costs))


def _weighted(signal: Tensor, rows: Tensor) -> Tensor:
    return over_rows(signal, rows).to(rows.dtype) * rows
