"""The loss of which a map is the gradient: cross entropy for softmax, and its kin."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, check_floating, check_shape
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._entmax import as_alpha, entmax
from diffkm_torch.assignments._softmax import decided


def entmax_loss(
    logits: Tensor, targets: Tensor, *, alpha: float | Tensor = 1.5
) -> Tensor:
    """Mirrors `diffkm_jax.entmax_loss`: the Fenchel–Young loss of `entmax`, [...]."""
    logits = as_logits(logits)
    check_floating("targets", targets)
    layout = f"of the shape of logits {tuple(logits.shape)}"
    check_shape("targets", targets, logits.shape, layout)
    dtype = accumulation_dtype(logits, targets)
    alpha = as_alpha(alpha, dtype)
    z, y = decided(logits.to(dtype)), targets.to(dtype)
    p = entmax(z, alpha=alpha)
    z = z - z.amax(-1, keepdim=True)
    unused = z.isneginf() & (y == 0)
    linear = ((p - y) * z.masked_fill(unused, 0)).masked_fill(unused, 0)
    a = alpha - 1
    return (linear - _negentropy(p, a) + _negentropy(y, a)).sum(-1)


def _negentropy(p: Tensor, a: Tensor) -> Tensor:
    """The terms p (p^a − 1)/(a (1 + a)), with p log p where a = 0, and 0 where p is."""
    positive = p > 0
    log_p = torch.where(positive, p, 1).log()
    x = a * log_p
    small = x.abs() < 0.05
    # Of (exp(x) − 1)/x = 1 + x/2 + x²/6 + …, by Horner's rule.
    series, held = torch.ones_like(x), torch.where(small, x, 0)
    for n in range(11, 1, -1):
        series = 1 + held / n * series
    direct = torch.where(small, 0, x).expm1() / torch.where(small, 1, a)
    return torch.where(positive, p * torch.where(small, log_p * series, direct), 0) / (
        1 + a
    )
