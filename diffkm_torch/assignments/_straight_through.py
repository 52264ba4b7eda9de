"""The straight-through map: the value of an argmax, the gradient of a softmax."""

from __future__ import annotations

from torch import Tensor

from diffkm_torch._checks import accumulation_dtype, as_logits, as_scalar
from diffkm_torch.assignments._softmax import hard, relaxed


def straight_through(logits: Tensor, *, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.straight_through`, by detach instead of by rule."""
    logits = as_logits(logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    soft = relaxed(logits, tau)
    soft = (soft - soft.detach()).to(logits.dtype)
    return hard(logits) + soft  # Adds an exact zero.
