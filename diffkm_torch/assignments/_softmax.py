"""The two ends: the one-hot of the best cluster, and the softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._numerics import quotient


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
    nothing = nothing_left(logits)
    rows = scaled.masked_fill(out & ~nothing, -torch.inf).softmax(-1)
    return rows.masked_fill(nothing, torch.nan)


def nothing_left(logits: Tensor) -> Tensor:
    """Which rows are −inf alone, [..., 1]: NaN last, where no derivative sees it."""
    return logits.isneginf().all(-1, keepdim=True)


def decided(logits: Tensor) -> Tensor:
    """The logits, rows that hold +inf in their limit: 0 there and −inf elsewhere."""
    infinite = logits.isposinf()
    is_decided = infinite.any(-1, keepdim=True) & ~logits.isnan()
    return logits.masked_fill(is_decided, -torch.inf).masked_fill(infinite, 0)


def below_largest(logits: Tensor, tau: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
    """(logits − their largest)/tau, 0 where lower than `lowest`, and where that is."""
    logits = decided(logits.to(tau.dtype))
    below = logits - logits.detach().amax(-1, keepdim=True)
    out = (below.detach() / tau.detach() < lowest) | logits.isneginf()
    return quotient(below.masked_fill(out, 0), tau), out
