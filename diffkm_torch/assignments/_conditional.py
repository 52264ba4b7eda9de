"""Relaxed draws given the discrete one: the mirror, by detach and Jacobians."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

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


def reinmax_rao(logits: Tensor, noise: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.reinmax_rao`, by the mean of the Jacobians as matrices."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=2)
    tau = as_scalar("tau", tau, accumulation_dtype(logits, noise))
    zero = torch.zeros_like(tau)
    drawn = chosen(logits, noise[0])
    return _Halfway.apply(logits, drawn, noise, tau, 1 + zero, zero)  # type: ignore[return-value]


def reinmax_cv(
    logits: Tensor,
    noise: Tensor,
    *,
    tau: float | Tensor = 1.0,
    eta: float | Tensor = 1.0,
) -> Tensor:
    """Mirrors `diffkm_jax.reinmax_cv`, by the same Jacobians."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=2)
    dtype = accumulation_dtype(logits, noise)
    tau, eta = as_scalar("tau", tau, dtype), as_scalar("eta", eta, dtype, zero=True)
    drawn = chosen(logits, noise[0])
    return _Halfway.apply(logits, drawn, noise, tau, torch.zeros_like(tau), eta)  # type: ignore[return-value]


class _Halfway(Function):
    """A product with the Jacobian matrix below, where q = (p + D)/2 and θ = log q.

    2 (rao mean J(s)/tau + (1 − rao) J(q)) + eta (mean J(s) − J(t))/tau − J(p)/2,
    s of softmax((θ + noise)/tau) given D, t of softmax((θ + noise[0])/tau).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        drawn: Tensor,
        noise: Tensor,
        tau: Tensor,
        rao: Tensor,
        eta: Tensor,
    ) -> Tensor:
        del logits, noise, tau, rao, eta
        return drawn.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, drawn, noise, tau, rao, eta = ctx.saved_tensors
        p = relaxed(logits, torch.ones_like(tau))
        q = 0.5 * (p + drawn.to(p.dtype))
        never = q == 0
        halfway = torch.where(never, 1, q).log().masked_fill(never, -torch.inf)
        given = below_draw(halfway, drawn, noise[1:].detach(), differentiable=False)
        mean = _jacobian(relaxed(given, tau)).mean(0) / tau
        alone = _jacobian(relaxed(perturbed(halfway, noise[0].detach()), tau)) / tau
        jacobian = 2 * (rao * mean + (1 - rao) * _jacobian(q)) - 0.5 * _jacobian(p)
        jacobian = jacobian + eta * (mean - alone)
        gradient = (jacobian @ cotangent.to(tau.dtype)[..., None])[..., 0]
        gradient = gradient.masked_fill(logits.isneginf(), 0).to(logits.dtype)
        return gradient, None, None, None, None, None


def _jacobian(p: Tensor) -> Tensor:
    """diag(p) − p pᵀ, of a softmax whose value is p."""
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
