"""Matrix products that autocast leaves in the dtype of their operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b, [m, n] of [m, l] and [l, n], in their dtype under autocast.

    So are its derivatives. To switch autocast off around `a @ b` would not reach them:
    a backward pass runs under the autocast it finds, a compiled one under that of its
    forward pass.
    """
    device = a.device.type
    available = torch.amp.is_autocast_available(device)
    if not (available and torch.is_autocast_enabled(device)):
        return a @ b
    # A rule for forward mode is what torch.compile refuses, and what it can do without.
    rule = _Product if torch.compiler.is_compiling() else _ForwardProduct
    return rule.apply(a, b)


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        return product(cotangent, b.T), product(a.T, cotangent)


class _ForwardProduct(_Product):
    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor, b_tangent: Tensor) -> Tensor:  # type: ignore[override]
        a, b = ctx.saved_tensors
        return product(a_tangent, b) + product(a, b_tangent)
