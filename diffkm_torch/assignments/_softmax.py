"""The two ends: the one-hot of the best cluster, and the softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, as_scalar
from diffkm_torch._dtypes import accumulation_dtype


def hard(logits: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.hard`: the one-hot of the argmax, [..., k], gradient zero."""
    logits = as_logits(logits)
    # Not torch's one_hot, which vmap cannot map.
    best = logits.detach().argmax(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, best, 1.0)


def softmax(logits: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.softmax`: exp(logits/tau) in rows that sum to one."""
    logits = as_logits(logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    return relaxed(logits, tau).to(logits.dtype)


def relaxed(logits: Tensor, tau: Tensor) -> Tensor:
    """The softmax of logits / tau in the dtype of tau, finite but for rows of −inf."""
    scaled, out = below_largest(logits, tau, -1000)
    return scaled.masked_fill(out, -torch.inf).softmax(-1)


def below_largest(logits: Tensor, tau: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
    """(logits − their largest)/tau, 0 where lower than `lowest`, and where that is."""
    logits = logits.to(tau.dtype)
    below = logits - logits.detach().amax(-1, keepdim=True)
    out = (below.detach() / tau.detach() < lowest) | logits.isneginf()
    return below.masked_fill(out, 0) / tau, out
