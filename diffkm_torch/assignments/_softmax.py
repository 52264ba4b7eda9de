"""The two ends: the one-hot of the best cluster, and the softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import accumulation_dtype, as_logits, as_scalar


def hard(logits: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.hard`: the one-hot of the argmax, [..., k], gradient zero."""
    logits = as_logits(logits)
    one_hot = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
    return one_hot.to(logits.dtype)


def softmax(logits: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.softmax`: exp(logits/tau) in rows that sum to one."""
    logits = as_logits(logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    return torch.softmax(logits.to(tau.dtype) / tau, -1).to(logits.dtype)
