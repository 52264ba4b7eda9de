"""Gumbel-softmax and what descends from it: the mirror, by detach."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_logits,
    as_noise,
    as_scalar,
    check_floating,
    check_shape,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import shown
from diffkm_torch.assignments._softmax import relaxed
from diffkm_torch.assignments._straight_through import (
    chosen,
    perturbed,
    with_gradient_of,
)


def gumbel_softmax(
    logits: Tensor, noise: Tensor, *, tau: float | Tensor = 1.0, hard: bool = False
) -> Tensor:
    """Mirrors `diffkm_jax.gumbel_softmax`: softmax((logits + noise)/tau)."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits, noise))
    soft = relaxed(perturbed(logits, noise), tau)
    if hard:
        return with_gradient_of(chosen(logits, noise), soft)
    return soft.to(logits.dtype)


def decoupled_gumbel_softmax(
    logits: Tensor,
    noise: Tensor,
    *,
    tau: float | Tensor = 1.0,
    tau_backward: float | Tensor = 1.0,
) -> Tensor:
    """Mirrors `diffkm_jax.decoupled_gumbel_softmax`: two softnesses, one noise."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    dtype = accumulation_dtype(logits, noise)
    tau = as_scalar("tau", tau, dtype)
    tau_backward = as_scalar("tau_backward", tau_backward, dtype)
    score = perturbed(logits, noise)
    value = relaxed(score, tau).to(logits.dtype)
    return with_gradient_of(value, relaxed(score, tau_backward))


def conditional_gumbel(
    logits: Tensor, one_hot: Tensor, noise: Tensor, *, differentiable: bool
) -> Tensor:
    """Mirrors `diffkm_jax.conditional_gumbel`: perturbed logits given the draw."""
    logits = as_logits(logits)
    shape = tuple(logits.shape)
    check_floating("one_hot", one_hot)
    check_shape("one_hot", one_hot, shape, f"of the shape of logits {shape}")
    stacked = noise.ndim > logits.ndim
    noise = as_noise(noise, logits, draws=1 if stacked else None)
    if not isinstance(differentiable, bool):
        raise TypeError(f"differentiable must be a bool, got {shown(differentiable)}")
    return _conditional(logits, one_hot, noise, differentiable, below=False)


def below_draw(
    logits: Tensor, one_hot: Tensor, noise: Tensor, *, differentiable: bool
) -> Tensor:
    """Conditional samples less their entry of the draw, with which no other ties."""
    return _conditional(logits, one_hot, noise, differentiable, below=True)


def _conditional(
    logits: Tensor,
    one_hot: Tensor,
    noise: Tensor,
    differentiable: bool,
    *,
    below: bool,
) -> Tensor:
    dtype = accumulation_dtype(logits, noise)
    z, g = logits.to(dtype).expand_as(noise), noise.to(dtype)
    infinite, never = z.isposinf() | g.isposinf(), g.isneginf()
    # Differences of infinities are no numbers, those of large numbers are.
    large = torch.finfo(dtype).max / 4
    g = g.clamp(-large, large)
    drawn = one_hot.expand_as(noise) > 0
    excluded = z.isneginf()
    z = z.clamp(max=large).masked_fill(excluded, 0)
    # A row of −inf alone must not make a NaN of its derivative.
    uncounted = excluded & ~excluded.all(-1, keepdim=True)
    log_z = z.masked_fill(uncounted, -torch.inf).logsumexp(-1, keepdim=True)
    top = log_z + torch.where(drawn, g, 0).sum(-1, keepdim=True)
    if below:
        # Of −log(exp(−g − z) + exp(−top)) − top the small ones are not rounded to 0.
        away = top - g - z
        entries = -torch.logaddexp(away, torch.zeros_like(away)).masked_fill(drawn, 0)
    else:
        entries = torch.where(drawn, top, -torch.logaddexp(-g - z, -top))
    if not differentiable:
        entries = entries.detach() + (z - z.detach())
    entries = entries.masked_fill(drawn & infinite, torch.inf)
    return entries.masked_fill(excluded | (never & ~drawn), -torch.inf)


def gumbel_rao(logits: Tensor, noise: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.gumbel_rao`: the mean of relaxed rows given the draw."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=2)
    tau = as_scalar("tau", tau, accumulation_dtype(logits, noise))
    drawn = chosen(logits, noise[0])
    rest = noise[1:].detach()
    entries = below_draw(logits, drawn, rest, differentiable=False)
    return with_gradient_of(drawn, relaxed(entries, tau).mean(0))
