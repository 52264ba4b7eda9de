"""Sparse relaxations of the argmax: exact zeros off a support found by sorting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._softmax import below_largest, nothing_left

Threshold = Callable[[Tensor, Tensor, Tensor], Tensor]


def sparsemax(logits: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.sparsemax`: the projection of logits / tau on the simplex."""
    logits = as_logits(logits)
    z = _shifted(logits, as_scalar("tau", tau, accumulation_dtype(logits)))
    return _masked_row(_above_threshold(z, _sparsemax_threshold), logits)


def entmax15(logits: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.entmax15`: the 1.5-entmax of logits / tau."""
    logits = as_logits(logits)
    z = _shifted(logits, as_scalar("tau", tau, accumulation_dtype(logits)))
    return _masked_row(_above_threshold(0.5 * z, _entmax15_threshold) ** 2, logits)


def _shifted(logits: Tensor, tau: Tensor) -> Tensor:
    """Logits / tau less their largest, and −4 wherever they fall lower than that."""
    scaled, out = below_largest(logits, tau, -4)
    return scaled.masked_fill(out, -4)


def _masked_row(rows: Tensor, logits: Tensor) -> Tensor:
    undefined = nothing_left(logits) | logits.isnan().any(-1, keepdim=True)
    return rows.masked_fill(undefined, torch.nan).to(logits.dtype)


def _above_threshold(z: Tensor, threshold: Threshold) -> Tensor:
    """max(z − t, 0), with t a function of the mean and variance of the support."""
    descending = z.detach().sort(-1, descending=True).values
    size = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    mean = descending.cumsum(-1) / size
    variance = (descending**2).cumsum(-1) / size - mean**2
    count = (threshold(mean, variance, size) < descending).sum(-1, keepdim=True)
    support = z >= descending.gather(-1, count.clamp(min=1) - 1)
    size = support.sum(-1, keepdim=True).to(z.dtype)
    mean = torch.where(support, z, 0).sum(-1, keepdim=True) / size
    variance = torch.where(support, (z - mean) ** 2, 0).sum(-1, keepdim=True) / size
    t = threshold(mean, variance, size)
    return torch.where(support, torch.relu(z - t), 0)


def _sparsemax_threshold(mean: Tensor, variance: Tensor, size: Tensor) -> Tensor:
    del variance
    return mean - 1 / size


def _entmax15_threshold(mean: Tensor, variance: Tensor, size: Tensor) -> Tensor:
    room = 1 / size - variance
    positive = room > 0
    return mean - torch.where(positive, torch.where(positive, room, 1).sqrt(), 0)
