"""Entmax of any alpha: from softmax over sparsemax to ever fewer clusters."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._softmax import below_largest, nothing_left


def entmax(
    logits: Tensor, *, alpha: float | Tensor = 1.5, tau: float | Tensor = 1.0
) -> Tensor:
    """Mirrors `diffkm_jax.entmax`: softmax at alpha = 1, sparsemax at 2.

    Exact up to the third derivative: the root that makes rows sum to one is held
    constant, and followed by two steps of Newton's method.
    """
    logits = as_logits(logits)
    dtype = accumulation_dtype(logits)
    a = as_alpha(alpha, dtype) - 1
    z, out = below_largest(logits, as_scalar("tau", tau, dtype), -1000)
    s = _root(z.detach(), a.detach(), out)
    for _ in range(2):
        rows, slopes = _shares(z - s, a, out)
        s = s + (rows.sum(-1, keepdim=True) - 1) / slopes.sum(-1, keepdim=True)
    rows, _ = _shares(z - s, a, out)
    undefined = nothing_left(logits) | logits.isnan().any(-1, keepdim=True)
    return rows.masked_fill(undefined | (a < 0), torch.nan).to(logits.dtype)


def as_alpha(alpha: float | Tensor, dtype: torch.dtype) -> Tensor:
    """A checked alpha: a real scalar and, if a plain number, at least 1."""
    checked = as_scalar("alpha", alpha, dtype)
    if isinstance(alpha, int | float) and alpha < 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    return checked


def _shares(u: Tensor, a: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """(1 + a u)^(1/a), or 0 where that is of a negative number, and its slope in u."""
    positive = (1 + a * u > 0) & ~out
    u = torch.where(positive, u, 0)
    rows = torch.where(positive, _log_power(u, a).exp(), 0)
    return rows, rows / (1 + a * u)


def _log_power(u: Tensor, a: Tensor) -> Tensor:
    """log(1 + a u)/a, by its series in a u where that is small."""
    small = (a * u).abs() < 0.05
    x = torch.where(small, a * u, 0)
    # Of log(1 + x)/x = 1 − x/2 + x²/3 − …, by Horner's rule.
    series = torch.zeros_like(x)
    for n in range(14, 0, -1):
        series = 1 / n - x * series
    direct = torch.where(small, 0, a * u).log1p() / torch.where(small, 1, a)
    return torch.where(small, u * series, direct)


def _root(z: Tensor, a: Tensor, out: Tensor) -> Tensor:
    """The s of rows that sum to one, by bisection."""
    # It is 0 if one cluster has all, and this if all have as much.
    log_n = log(z.shape[-1])
    top = -torch.expm1(-a * log_n) / torch.where(a == 0, 1, a)
    top = torch.where(a * log_n < 1e-3, log_n, top)
    low = torch.zeros_like(z[..., :1])
    high = low + top
    for _ in range(26 if z.dtype == torch.float32 else 55):
        middle = 0.5 * (low + high)
        above = _shares(z - middle, a, out)[0].sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return 0.5 * (low + high)
