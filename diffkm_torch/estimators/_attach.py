"""Costs with an estimate as their gradient in the logits, and the costs' own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffkm_torch._checks import as_logits, check_floating, check_shape
from diffkm_torch.estimators._estimator import Cost


def attach(costs: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.estimators.attach`: costs with a declared gradient."""
    logits = as_logits(logits)
    check_floating("costs", costs)
    check_floating("gradient", gradient)
    shape = tuple(logits.shape)
    check_shape("gradient", gradient, shape, f"of the shape of logits {shape}")
    prefix = shape[: min(costs.ndim, logits.ndim - 1)]
    check_shape("costs", costs, prefix, f"a prefix {prefix} of logits {shape}")
    return _Attach.apply(costs, logits.to(gradient.dtype), gradient)  # type: ignore[return-value]


class _Attach(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(costs: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
        del logits, gradient
        return costs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        del output
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        weight = over_rows(cotangent, gradient).to(gradient.dtype)
        return cotangent, weight * gradient, None


def over_rows(costs: Tensor, rows: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.estimators.over_rows`: costs [*batch, 1, ...]."""
    shape = tuple(rows.shape)
    pairs = list(zip(costs.shape, shape, strict=False))
    if costs.ndim > rows.ndim or any(size not in (1, full) for size, full in pairs):
        raise ValueError(
            f"costs must have the first axes of rows {shape}, or 1 in their place, got "
            f"shape {tuple(costs.shape)}"
        )
    return costs.reshape(costs.shape + (1,) * (rows.ndim - costs.ndim))


def value_and_gradient(f: Cost, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Costs and their gradient in the rows, itself differentiable.

    A new node stands for the rows, so that what else depends on them does not count.
    """
    with torch.enable_grad():
        rows = rows.view_as(rows) if rows.requires_grad else rows.detach()
        rows = rows if rows.requires_grad else rows.requires_grad_()
        if torch.compiler.is_compiling():
            # In one graph with the rows, the costs would seem not to depend on them.
            torch._dynamo.graph_break()
        costs = f(rows)
        if not costs.requires_grad:
            return costs, torch.zeros_like(rows)
        (gradient,) = torch.autograd.grad(
            costs.sum(), rows, create_graph=True, allow_unused=True
        )
    return costs, torch.zeros_like(rows) if gradient is None else gradient
