"""Gumbel top-k: clusters drawn without replacement, and their relaxation."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, as_noise, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._numerics import log_sum, quotient
from diffkm_torch.assignments._softmax import relaxed
from diffkm_torch.assignments._straight_through import (
    chosen,
    perturbed,
    with_gradient_of,
)
from diffkm_torch.assignments._top_k import FAR, check_size, scores_of


def gumbel_top_k(
    logits: Tensor,
    noise: Tensor,
    *,
    size: int,
    tau: float | Tensor = 1.0,
    hard: bool = False,
) -> Tensor:
    """Mirrors `diffkm_jax.gumbel_top_k`: a sum of softmax rows, or the draw."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits, noise))
    one = torch.ones_like(tau)
    scores = scores_of(perturbed(logits, noise), one, size)
    z = scores.z.masked_fill(scores.out, -torch.inf)
    soft = scores.certain.to(z.dtype)
    for i in range(size):
        p = relaxed(z, tau)
        soft = soft + torch.where(i < scores.wanted, p, 0)
        # The logarithm of 1 − p: by the others, where that would cancel.
        is_most = p.detach() > 0.5
        gone = z.isneginf()
        below = (z - z.detach().amax(-1, keepdim=True)).masked_fill(gone, 0)
        below = quotient(below, tau).clamp(min=-FAR).masked_fill(gone, -torch.inf)
        others = log_sum(below.masked_fill(is_most, -torch.inf), -1)[..., None]
        by_others = others.clamp(min=-FAR) - log_sum(below, -1)[..., None]
        left = torch.log1p(-p.masked_fill(is_most, 0))
        z = z + torch.where(is_most, by_others, left)
    soft = soft.masked_fill(scores.undefined, torch.nan)
    if hard:
        return with_gradient_of(chosen(logits, noise, size), soft)
    return soft.to(logits.dtype)
