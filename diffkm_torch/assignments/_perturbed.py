"""Gradients by perturbation: the mirror, with a rule where the cotangent is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffkm_torch._checks import as_logits, as_noise, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._softmax import decided
from diffkm_torch.assignments._straight_through import chosen
from diffkm_torch.assignments._top_k import check_size


def blackbox(
    logits: Tensor, *, strength: float | Tensor = 1.0, size: int = 1
) -> Tensor:
    """Mirrors `diffkm_jax.blackbox`: the slope to a perturbed solution."""
    logits = as_logits(logits)
    check_size(size, logits)
    strength = as_scalar("strength", strength, accumulation_dtype(logits))
    return _ToTarget.apply(logits, None, strength, True, size)  # type: ignore[return-value]


def implicit_mle(
    logits: Tensor,
    noise: Tensor,
    *,
    strength: float | Tensor = 1.0,
    scaled: bool = False,
    size: int = 1,
) -> Tensor:
    """Mirrors `diffkm_jax.implicit_mle`: the difference to a draw that costs less."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    check_size(size, logits)
    strength = as_scalar("strength", strength, accumulation_dtype(logits, noise))
    return _ToTarget.apply(logits, noise, strength, bool(scaled), size)  # type: ignore[return-value]


class _ToTarget(Function):
    """The choice, with `to_target` of the cotangent as the gradient in the logits."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        noise: Tensor | None,
        strength: Tensor,
        scaled: bool,
        size: int,
    ) -> Tensor:
        del strength, scaled
        return chosen(logits, noise, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        del output
        logits, noise, strength, *ctx.options = inputs
        ctx.save_for_backward(logits, noise, strength)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, noise, strength = ctx.saved_tensors
        gradient = to_target(logits, noise, strength, cotangent, *ctx.options)
        return gradient.to(logits.dtype), None, None, None, None


def to_target(
    logits: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    g: Tensor,
    scaled: bool,
    size: int,
) -> Tensor:
    """The choice less the choice at logits − strength·g, in the dtype of strength."""
    better = logits.to(strength.dtype) - strength * g.to(strength.dtype)
    choice = chosen(logits, noise, size).to(strength.dtype)
    difference = choice - chosen(better, noise, size)
    return difference / strength if scaled else difference


def perturbed_argmax(
    logits: Tensor,
    noise: Tensor,
    *,
    scale: float | Tensor = 1.0,
    distribution: str = "gumbel",
    size: int = 1,
) -> Tensor:
    """Mirrors `diffkm_jax.perturbed_argmax`: the mean of m draws, made smooth."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=1).detach()
    if distribution not in ("gumbel", "normal"):
        raise ValueError(
            f"distribution must be 'gumbel' or 'normal', got {distribution!r}"
        )
    check_size(size, logits)
    dtype = accumulation_dtype(logits, noise)
    scale = as_scalar("scale", scale, dtype).detach()
    noise = noise.to(dtype)
    z = decided(logits.to(dtype)) if size == 1 else logits.to(dtype)
    z = z.expand_as(noise)
    excluded = z.isneginf()
    draws = chosen(z, scale * noise, size)
    z = z.masked_fill(z.isinf(), 0)
    move = (z.detach() - z) / scale
    g = noise.masked_fill(noise.isinf(), 0) + move
    if distribution == "normal":
        log_density = (-0.5 * g**2).masked_fill(noise.isinf(), 0)
    else:
        # At noise of +inf only the first term is left, at −inf there is no limit.
        log_density = torch.where(noise.isposinf(), -move, -g - torch.exp(-g))
    log_density = log_density.masked_fill(excluded | noise.isneginf(), 0)
    log_density = log_density.sum(-1, keepdim=True)
    ratio = torch.exp(log_density - log_density.detach())
    return (ratio * draws).mean(0).to(logits.dtype)
