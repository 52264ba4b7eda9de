"""The record of an estimator: what it is, what a cost and a setting of it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_logits,
    check_callable,
    check_floating,
    check_scalar,
    check_shape,
)
from diffkm_torch.assignments import hard
from diffkm_torch.estimators._laws import PLACKETT_LUCE, as_law

Cost = Callable[[Tensor], Tensor]
Rule = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Estimator:
    """Mirrors `diffkm_jax.estimators.Estimator`; settings are numbers or tensors.

    Example:
        >>> def my_reinforce(f, logits, noise, *, scale):
        ...     row = dt.hard(logits + noise[0])
        ...     costs = f(row)
        ...     score = row - torch.softmax(logits, -1)
        ...     estimate = scale * es.over_rows(costs, row) * score
        ...     return es.attach(costs, logits, estimate)
        >>> mine = es.Estimator("mine", my_reinforce, {"scale": 1.0}, discrete=True)
        >>> def first(z):
        ...     return mine.expect(lambda row: row[0], z, torch.tensor([[1.0, 0.0]]))
        >>> torch.func.grad(first)(torch.zeros(2)).tolist()
        [0.5, -0.5]
    """

    name: str
    rule: Rule
    settings: dict[str, Any] = field(default_factory=dict)
    num_draws: int = 1
    discrete: bool = False
    size: int = 1
    law: str = PLACKETT_LUCE

    def __post_init__(self) -> None:
        """Checks what is drawn."""
        as_law(self.size, self.law)

    def draw(
        self,
        generator: torch.Generator | None,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The noise of one estimate: standard Gumbel, without a gradient.

        Not the numbers that JAX draws: to compare, hand both the same array.

        Args:
            generator: A generator, on the device of the logits; None is the default.
            shape: That of the logits, [*batch, *rows, k].
            dtype: Floating; the noise is float32 or wider.

        Returns:
            Noise, [num_draws, *shape].

        Raises:
            TypeError: `dtype` is not floating.
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
        logits = as_choices(logits)
        law = as_law(self.size, self.law)
        if law.size > logits.shape[-1]:
            raise ValueError(
                f"size must be at most the number of clusters {logits.shape[-1]}, got "
                f"{law.size}"
            )
        shape = (self.num_draws, *logits.shape)
        if noise is None:
            if self.num_draws:
                raise ValueError(f"noise must be {shape} for {self.name}, got None")
            noise = logits.new_zeros(shape)
        check_floating("noise", noise)
        check_shape("noise", noise, shape, f"{shape}, a row per draw of {self.name}")
        cost = CheckedCost(f)
        costs = self.rule(cost, logits, noise, **self.settings)
        expected = cost.shape(logits)
        if tuple(costs.shape) != expected:
            raise ValueError(
                f"the rule of {self.name} must return costs of the shape of those of f "
                f"{expected}, got shape {tuple(costs.shape)}"
            )
        return costs


def as_choices(logits: Tensor) -> Tensor:
    """The logits: floating, [..., k], k at least 2."""
    logits = as_logits(logits)
    if logits.shape[-1] == 1:
        raise ValueError(
            "logits must be [..., k] with k at least 2 (one cluster is no choice), got "
            f"shape {tuple(logits.shape)}: those of Bernoulli variables are made by "
            "estimators.bernoulli(f, log_odds)"
        )
    return logits


class CheckedCost:
    """A cost whose result is checked wherever it is evaluated, the shapes noted."""

    def __init__(self, f: Cost) -> None:
        check_callable("f", f)
        self.f = f
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __call__(self, rows: Tensor) -> Tensor:
        """The costs of rows, [*batch]."""
        # A copy, because a cost may work in place.
        costs = self.f(rows.clone())
        check_floating("the costs of f", costs)
        shapes = tuple(rows.shape), tuple(costs.shape)
        if costs.ndim >= rows.ndim or shapes[1] != shapes[0][: costs.ndim]:
            raise ValueError(
                "f must return costs [*batch], their shape a prefix of the rows' "
                f"{shapes[0]} without k, got shape {shapes[1]}"
            )
        self.seen.append(shapes)
        return costs

    def shape(self, logits: Tensor) -> tuple[int, ...]:
        """That of the costs of rows like the logits."""
        for rows, costs in self.seen:
            more = len(rows) - logits.ndim
            if more >= 0 and rows[more:] == tuple(logits.shape):
                return costs[more:]
        return tuple(self(hard(logits)).shape)


def setting(name: str, value: float | Tensor) -> float | Tensor:
    """A checked scalar: positive, or not negative if a gap or a weight."""
    # In float32, for logits may be that.
    check_scalar(name, value, torch.float32, zero=name in ("gap", "eta"))
    return value


def through(assignment: Callable[..., Tensor], **static: Any) -> Rule:
    """The rule that differentiates the cost at the rows of an assignment map.

    A map of several draws takes their noise as it is, [num_draws, ..., k]; one of a
    single draw takes it without that axis, one without a draw takes none.
    """
    return partial(_through, assignment, **static)


def _through(
    assignment: Callable[..., Tensor],
    f: Cost,
    logits: Tensor,
    noise: Tensor,
    **options: Any,
) -> Tensor:
    draws = (noise,) if len(noise) > 1 else tuple(noise)
    return f(assignment(logits, *draws, **options))
