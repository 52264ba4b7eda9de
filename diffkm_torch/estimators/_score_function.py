"""Estimators that weigh draws by their costs: unbiased, for any cost."""

from __future__ import annotations

from functools import partial
from numbers import Real

import torch
from torch import Tensor

from diffkm_torch._checks import check_integer
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import shown
from diffkm_torch.estimators._attach import attach, over_rows
from diffkm_torch.estimators._enumeration import probabilities
from diffkm_torch.estimators._estimator import Cost, Estimator
from diffkm_torch.estimators._laws import CATEGORICAL, PLACKETT_LUCE, Law, as_law

Scalar = float | Tensor


def reinforce(
    *, baseline: Scalar = 0.0, size: int = 1, law: str = PLACKETT_LUCE
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.reinforce`: (f(D) − baseline) (D − p)."""
    if not isinstance(baseline, Real | Tensor):
        what = "a number or a tensor"
        raise TypeError(f"baseline must be {what}, got {shown(baseline)}")
    of = as_law(size, law)
    rule = partial(_reinforce, law=of)
    return Estimator("reinforce", rule, {"baseline": baseline}, 1, True, *of)


def _reinforce(
    f: Cost, logits: Tensor, noise: Tensor, *, baseline: Scalar, law: Law
) -> Tensor:
    drawn = law.draw(logits, noise[0])
    costs = f(drawn)
    signal = wide(costs)
    baseline = torch.as_tensor(baseline, dtype=signal.dtype, device=signal.device)
    if baseline.ndim and baseline.shape != costs.shape:
        raise ValueError(
            "baseline must be a scalar or of the shape of the costs "
            f"{tuple(costs.shape)}, got shape {tuple(baseline.shape)}"
        )
    estimate = weighted(signal - baseline, score(logits, drawn, law))
    return attach(costs, logits, estimate)


def rloo(*, num_samples: int = 4, size: int = 1, law: str = PLACKETT_LUCE) -> Estimator:
    """Mirrors `diffkm_jax.estimators.rloo`: the other draws are the baseline."""
    check_integer("num_samples", num_samples, minimum=2)
    of = as_law(size, law)
    return Estimator("rloo", partial(_rloo, law=of), {}, num_samples, True, *of)


def _rloo(f: Cost, logits: Tensor, noise: Tensor, *, law: Law) -> Tensor:
    draws = [law.draw(logits, g) for g in noise]
    costs = torch.stack([f(drawn) for drawn in draws])
    signal = wide(costs)
    mean = signal.mean(0)
    scores = torch.stack([score(logits, drawn, law) for drawn in draws])
    signal = (signal - mean) / (len(noise) - 1)
    return attach(mean.to(costs.dtype), logits, weighted(signal, scores).sum(0))


def score(logits: Tensor, drawn: Tensor, law: Law = CATEGORICAL) -> Tensor:
    """The derivative of log P(D) in the logits, D − p of one; float32 or wider."""
    if law.size > 1:
        return law.score(logits, drawn)
    p = probabilities(logits)
    return (drawn.to(p.dtype) - p).masked_fill(logits.isneginf(), 0)


def wide(costs: Tensor) -> Tensor:
    """Costs in float32 or wider, so that differences of theirs are not rounded away."""
    return costs.to(accumulation_dtype(costs))


def weighted(signal: Tensor, rows: Tensor) -> Tensor:
    """A number per problem times its rows, in their dtype."""
    return over_rows(signal, rows).to(rows.dtype) * rows
