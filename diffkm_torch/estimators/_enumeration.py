"""The expected cost as a sum over all draws, by a loop."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch._checks import check_integer
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._softmax import relaxed
from diffkm_torch.estimators._attach import over_rows
from diffkm_torch.estimators._estimator import Cost, Estimator


def exact(*, max_configurations: int = 4096) -> Estimator:
    """Mirrors `diffkm_jax.estimators.exact`, by a loop over all draws of a problem."""
    check_integer("max_configurations", max_configurations, minimum=1)
    rule = partial(_exact, max_configurations=max_configurations)
    return Estimator("exact", rule, {}, num_draws=0, discrete=True)


def _exact(
    f: Cost, logits: Tensor, noise: Tensor, *, max_configurations: int
) -> Tensor:
    del noise
    best = maps.hard(logits)
    likeliest = f(best)
    k, kept = logits.shape[-1], likeliest.ndim
    rows = tuple(logits.shape[kept:-1])
    num = k ** prod(rows)
    if num > max_configurations:
        raise ValueError(
            f"a problem of rows {rows} has k**r = {k}**{prod(rows)} configurations, "
            f"more than max_configurations={max_configurations}: a cost that keeps the "
            "axes of independent rows takes far fewer"
        )
    p = probabilities(logits)
    acc = accumulation_dtype(logits, likeliest)
    origin = likeliest.detach().to(acc)
    terms = []
    for code in range(num):
        digits = [code // k**place % k for place in range(prod(rows))]
        one_hot = torch.eye(k, dtype=logits.dtype)[digits].reshape(*rows, k)
        drawn = one_hot.to(logits.device).expand(logits.shape)
        probability = (p * drawn.to(p.dtype)).sum(-1)
        for _ in rows:
            probability = probability.prod(-1)
        possible = over_rows(probability > 0, drawn)
        costs = f(torch.where(possible, drawn, best)).to(acc)
        above = torch.where(probability > 0, costs - origin, 0)
        terms.append(probability.to(acc) * above)
    return (origin + torch.stack(terms).sum(0)).to(likeliest.dtype)


def probabilities(logits: Tensor) -> Tensor:
    """Of the clusters, softmax(logits), float32 or wider."""
    one = torch.ones((), dtype=accumulation_dtype(logits), device=logits.device)
    return relaxed(logits, one)
