"""Gumbel-softmax: the mirror, by detach."""

from __future__ import annotations

from torch import Tensor

from diffkm_torch._checks import as_logits, as_noise, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
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
