"""Straight-through maps: the value of a discrete choice, the gradient of a soft one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffkm_torch._checks import as_logits, as_noise, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._softmax import decided, hard, relaxed
from diffkm_torch.assignments._top_k import best


def with_gradient_of(value: Tensor, soft: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another: adds an exact zero."""
    zero = soft - soft.detach()
    # A row of −inf alone is NaN when soft.
    return value.detach() + zero.masked_fill(soft.isnan(), 0).to(value.dtype)


def perturbed(logits: Tensor, noise: Tensor) -> Tensor:
    """Logits plus noise, in the accumulation dtype; the argmax is the draw.

    An infinite one decides: −inf of either excludes, where +inf of the other may stand.
    """
    dtype = accumulation_dtype(logits, noise)
    excluded = logits.isneginf() | noise.isneginf()
    return (logits.to(dtype) + noise.to(dtype)).masked_fill(excluded, -torch.inf)


def chosen(logits: Tensor, noise: Tensor | None = None, size: int = 1) -> Tensor:
    """The one-hot of the draw, in the dtype of the logits; no noise is the best.

    Of a size above 1, the row of as many ones.
    """
    score = logits if noise is None else perturbed(logits, noise)
    rows = hard(score) if size == 1 else best(score, size)
    return rows.to(logits.dtype)


def straight_through(logits: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.straight_through`, by detach instead of by rule."""
    logits = as_logits(logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    return with_gradient_of(chosen(logits), relaxed(logits, tau))


def sampled_straight_through(
    logits: Tensor, noise: Tensor, *, tau: float | Tensor = 1.0
) -> Tensor:
    """Mirrors `diffkm_jax.sampled_straight_through`: a draw, a softmax's gradient."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits, noise))
    return with_gradient_of(chosen(logits, noise), relaxed(logits, tau))


def gapped_straight_through(
    logits: Tensor,
    noise: Tensor,
    *,
    tau: float | Tensor = 1.0,
    gap: float | Tensor | None = 1.0,
) -> Tensor:
    """Mirrors `diffkm_jax.gapped_straight_through`: the drawn logit leads by a gap."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    dtype = accumulation_dtype(logits, noise)
    tau = as_scalar("tau", tau, dtype)
    if gap is not None:
        gap = as_scalar("gap", gap, dtype, zero=True)
    drawn = chosen(logits, noise)
    z = decided(logits.to(dtype))
    with torch.no_grad():
        top = z.amax(-1, keepdim=True)
        if gap is None:
            p = relaxed(z, torch.ones_like(tau)).gather(-1, drawn.argmax(-1)[..., None])
            others = z.masked_fill(drawn > 0, -torch.inf)
            rest = z.logsumexp(-1, True) - others.logsumexp(-1, True)
            wide = torch.where(p < 0.5, -torch.log1p(-p), rest)
            gap = torch.where(p > 0, wide / torch.where(p > 0, p, 1), 1)
        shifted = torch.where(drawn > 0, top, torch.minimum(z, top - gap))
        change = (shifted - z).masked_fill(z.isneginf(), 0)
    return with_gradient_of(drawn, relaxed(z + change, tau))


def reinmax(logits: Tensor, noise: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.reinmax`, in its closed form about softmax(logits / tau)."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits, noise))
    return _ReinMax.apply(logits, chosen(logits, noise), tau)  # type: ignore[return-value]


class _ReinMax(Function):
    """With s = softmax(logits/tau): J(s) g − J(p) g / 2 + (D − s) (D − s)·g / 2.

    At tau = 1 that is the average of straight-through, J(p) g, and of DARN.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, drawn: Tensor, tau: Tensor) -> Tensor:
        del logits, tau
        return drawn.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        logits, drawn, tau = ctx.saved_tensors
        g = cotangent.to(tau.dtype)
        s, p = relaxed(logits, tau), relaxed(logits, torch.ones_like(tau))
        apart = drawn.to(tau.dtype) - s
        darn = 0.5 * apart * (apart * g).sum(-1, keepdim=True)
        gradient = covariance(s, g) - 0.5 * covariance(p, g) + darn
        gradient = gradient.masked_fill(logits.isneginf(), 0)
        return gradient.to(logits.dtype), None, None


def covariance(p: Tensor, g: Tensor) -> Tensor:
    """J(p) g = p (g − p·g): the Jacobian of a softmax whose value is p."""
    return p * (g - (p * g).sum(-1, keepdim=True))
