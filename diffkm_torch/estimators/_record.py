"""The record of an estimator, and the means to declare a gradient for a cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffkm_torch._checks import (
    as_logits,
    check_callable,
    check_floating,
    check_scalar,
    check_shape,
)

Cost = Callable[[Tensor], Tensor]
Rule = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Estimator:
    """Mirrors `diffkm_jax.estimators.Estimator`; settings are numbers or tensors."""

    name: str
    rule: Rule
    settings: dict[str, Any] = field(default_factory=dict)
    num_draws: int = 1
    discrete: bool = False

    def draw(
        self,
        generator: torch.Generator | None,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The noise of one estimate: standard Gumbel, [num_draws, *shape].

        Not the numbers that JAX draws: to compare, hand both the same array.
        """
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, got {dtype}")
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        device = None if generator is None else generator.device
        exponential = torch.empty(self.num_draws, *shape, dtype=dtype, device=device)
        exponential.exponential_(generator=generator)
        # It may be 0, whose logarithm is not finite.
        return -exponential.clamp_min(torch.finfo(dtype).tiny).log()

    def expect(self, f: Cost, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """Mirrors `diffkm_jax.estimators.Estimator.expect`: costs, [*batch]."""
        logits = as_logits(logits)
        shape = (self.num_draws, *logits.shape)
        if noise is None:
            if self.num_draws:
                raise ValueError(f"noise must be {shape} for {self.name}, got None")
            noise = logits.new_zeros(shape)
        check_floating("noise", noise)
        check_shape("noise", noise, shape, f"{shape}, a row per draw of {self.name}")
        shapes: list[tuple[int, ...]] = []
        costs = self.rule(checked_cost(f, shapes), logits, noise, **self.settings)
        if shapes and tuple(costs.shape) != shapes[0]:
            raise ValueError(
                f"the rule of {self.name} must return costs of the shape of those of f "
                f"{shapes[0]}, got shape {tuple(costs.shape)}"
            )
        return costs


def checked_cost(f: Cost, shapes: list[tuple[int, ...]]) -> Cost:
    """The cost, with its result checked wherever it is evaluated, its shape noted."""
    check_callable("f", f)

    def cost(rows: Tensor) -> Tensor:
        # A copy, because a cost may work in place.
        costs = f(rows.clone())
        check_floating("the costs of f", costs)
        shape = tuple(costs.shape)
        if costs.ndim >= rows.ndim or shape != tuple(rows.shape[: costs.ndim]):
            raise ValueError(
                "f must return costs [*batch], their shape a prefix of the rows' "
                f"{tuple(rows.shape)} without k, got shape {shape}"
            )
        shapes.append(shape)
        return costs

    return cost


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
    """Costs [*batch] with axes of length 1 for those of the rows [*batch, *rows, k]."""
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


def setting(name: str, value: float | Tensor, *, zero: bool = False) -> float | Tensor:
    """A checked scalar."""
    check_scalar(name, value, zero=zero)
    return value
