"""Balanced assignments: the mirror, by a loop over iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_logits,
    as_real,
    as_scalar,
    check_integer,
    check_shape,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._numerics import quotient
from diffkm_torch.assignments._softmax import decided, nothing_left


def sinkhorn(
    logits: Tensor,
    *,
    tau: float | Tensor = 1.0,
    num_iters: int = 20,
    column_weights: Tensor | None = None,
) -> Tensor:
    """Mirrors `diffkm_jax.sinkhorn`: rows sum to one, columns share them out."""
    logits = as_logits(logits)
    if logits.ndim < 2:
        shape = tuple(logits.shape)
        raise ValueError(f"logits must be [..., n, k], got shape {shape}")
    check_integer("num_iters", num_iters, minimum=0)
    k = logits.shape[-1]
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    logits, dtype = decided(logits.to(tau.dtype)), logits.dtype
    excluded = logits.isneginf()
    z = quotient(logits.masked_fill(excluded, 0), tau)
    shares = z.new_zeros(k)
    if column_weights is not None:
        column_weights = as_real("column_weights", column_weights)
        check_shape("column_weights", column_weights, (k,), f"[k] with k = {k}")
        shares = column_weights.to(z.dtype).log()

    def total(entries: Tensor, dim: int) -> Tensor:
        nothing = excluded.all(dim, keepdim=True)
        entries = entries.masked_fill(excluded, -torch.inf).masked_fill(nothing, 0)
        # About the largest: torch's own derivative would not sum to one in float32.
        top = entries.detach().amax(dim, keepdim=True)
        lse = top + (entries - top).logsumexp(dim, keepdim=True)
        return lse.masked_fill(nothing, 0)

    columns = torch.zeros_like(z[..., :1, :])
    for _ in range(num_iters):
        columns = shares - total(z - total(z + columns, -1), -2)
    nothing = nothing_left(logits)
    balanced = (z + columns).masked_fill(excluded & ~nothing, -torch.inf)
    return balanced.softmax(-1).masked_fill(nothing, torch.nan).to(dtype)
