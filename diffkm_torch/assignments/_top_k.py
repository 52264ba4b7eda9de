"""Rows of several clusters: the best k, and their relaxation."""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, as_scalar, check_integer
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._numerics import quotient

# So far apart that no share is left, but that a sum of some is finite.
FAR = 1e30


def top_k(logits: Tensor, *, size: int) -> Tensor:
    """Mirrors `diffkm_jax.top_k`: rows of as many ones, gradient zero."""
    logits = as_logits(logits)
    check_size(size, logits)
    return best(logits, size)


def best(logits: Tensor, size: int) -> Tensor:
    """The rows of `top_k`, unchecked."""
    # Not torch's topk, which takes any of a tie.
    order = logits.detach().sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(logits).scatter(-1, order[..., :size], 1.0)


def check_size(size: int, logits: Tensor) -> None:
    """Raises unless a size is a Python integer from 1 to the number of clusters."""
    k = logits.shape[-1]
    check_integer("size", size, minimum=1, maximum=k)


def soft_top_k(logits: Tensor, *, size: int, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.soft_top_k`: sigmoids that sum to the size.

    Exact up to the third derivative: the root that makes rows sum to it is held
    constant, and followed by two steps of Newton's method.
    """
    logits = as_logits(logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    z, out, certain, wanted, undefined = scores_of(logits.to(tau.dtype), tau, size)
    held = z.detach().masked_fill(out, -torch.inf)
    following = _at(held, wanted + 1)
    # With as many left as are wanted there is no s: those are 1.
    everyone = following.isneginf()
    s = _root(z.detach(), out, following.masked_fill(everyone, 0), wanted)
    for _ in range(2):
        p = torch.sigmoid(z - s).masked_fill(out, 0)
        slope = (p * (1 - p)).sum(-1, keepdim=True)
        excess = p.sum(-1, keepdim=True) - wanted
        s = s + torch.where(slope > 0, excess / slope.where(slope > 0, 1), 0)
    p = torch.sigmoid(z - s).masked_fill(everyone, 1)
    p = torch.where(out, certain.to(p.dtype), p).masked_fill(undefined, torch.nan)
    return p.to(logits.dtype)


def _root(z: Tensor, out: Tensor, following: Tensor, wanted: Tensor) -> Tensor:
    """The s at which the sigmoids of z − s sum to what is wanted, by bisection."""
    low = following - wanted.to(z.dtype).log()
    high = torch.full_like(low, log(z.shape[-1]))
    for _ in range(26 if z.dtype == torch.float32 else 55):
        middle = 0.5 * (low + high)
        p = torch.sigmoid(z - middle).masked_fill(out, 0)
        above = p.sum(-1, keepdim=True) > wanted
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return 0.5 * (low + high)


class Scores(NamedTuple):
    """Mirrors `diffkm_jax.assignments._top_k.Scores`: finite, but for NaN."""

    z: Tensor
    out: Tensor
    certain: Tensor
    wanted: Tensor
    undefined: Tensor


def scores_of(logits: Tensor, tau: Tensor, size: int) -> Scores:
    """The scores of logits at a tau; of infinite ones in their limit."""
    infinite, is_nan = logits.isposinf(), logits.isnan().any(-1, keepdim=True)
    count = infinite.sum(-1, keepdim=True)
    # As many as are wanted are in for certain, of more any.
    enough = (count >= size) & ~is_nan
    out = logits.isneginf() | (infinite != enough)
    certain = infinite & ~enough
    wanted = torch.where(enough, size, (size - count).clamp(min=1))
    finite = logits.masked_fill(out | infinite, 0)
    pivot = _at(finite.masked_fill(out, -torch.inf), wanted)
    undefined = pivot.isneginf() & (count < size)
    z = quotient(finite - pivot.masked_fill(undefined, 0), tau).clamp(-FAR, FAR)
    return Scores(z.masked_fill(out, 0), out, certain, wanted, undefined | is_nan)


def _at(values: Tensor, place: Tensor) -> Tensor:
    """The value that is the so many-th largest, [..., 1], held constant; of none −∞."""
    largest = values.detach().sort(dim=-1, descending=True).values
    nothing = torch.full_like(largest[..., :1], -torch.inf)
    return torch.cat([largest, nothing], -1).gather(-1, place - 1)
