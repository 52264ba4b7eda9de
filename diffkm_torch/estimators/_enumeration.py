"""The expected cost as a sum over all draws, by a loop."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from math import prod

import torch
from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch._checks import check_integer
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._softmax import relaxed
from diffkm_torch.estimators._attach import over_rows
from diffkm_torch.estimators._estimator import Cost, Estimator
from diffkm_torch.estimators._laws import PLACKETT_LUCE, Law, as_law


def exact(
    *, max_configurations: int = 4096, size: int = 1, law: str = PLACKETT_LUCE
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.exact`, by a loop over all draws of a problem."""
    check_integer("max_configurations", max_configurations, minimum=1)
    of = as_law(size, law)
    rule = partial(_exact, max_configurations=max_configurations, law=of)
    return Estimator("exact", rule, {}, 0, True, *of)


def _exact(
    f: Cost, logits: Tensor, noise: Tensor, *, max_configurations: int, law: Law
) -> Tensor:
    del noise
    best = maps.top_k(logits, size=law.size)
    likeliest = f(best)
    k, kept = logits.shape[-1], likeliest.ndim
    rows = tuple(logits.shape[kept:-1])
    choices = list(combinations(range(k), law.size))
    of_row = len(choices)
    num = of_row ** prod(rows)
    if num > max_configurations:
        draws = "k**r" if law.size == 1 else f"(subsets of {law.size})**r"
        raise ValueError(
            f"a problem of rows {rows} has {draws} = {of_row}**{prod(rows)} "
            f"configurations, more than max_configurations={max_configurations}: a "
            "cost that keeps the axes of independent rows takes far fewer"
        )
    p = probabilities(logits)
    acc = accumulation_dtype(logits, likeliest)
    origin = likeliest.detach().to(acc)
    terms = []
    for code in range(num):
        digits = [code // of_row**place % of_row for place in range(prod(rows))]
        labels = torch.tensor([choices[digit] for digit in digits])
        one_hot = torch.eye(k, dtype=logits.dtype)[labels].sum(1).reshape(*rows, k)
        drawn = one_hot.to(logits.device).expand(logits.shape)
        if law.size == 1:
            probability = (p * drawn.to(p.dtype)).sum(-1)
        else:
            probability = law.log_probability(logits, drawn).exp()
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
