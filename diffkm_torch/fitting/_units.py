"""Weights at the ends of their dtype's range, in a unit in which a fit can add them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkm_torch._problem import Problem
from diffkm_torch.optimizers import GradientTransformation, is_per_count


def in_unit(
    problem: Problem, centroids: Tensor, largest: Tensor | None = None
) -> Problem:
    """The problem with weights in a unit in which products with them are normal.

    A power of two, by which nothing rounds: 1, unless the largest weight is near an end
    of the range, and no nearer to it than it must be, because the derivative in the
    weights is divided by it. The largest is that of the problem, if it is not given.
    """
    if problem.weights is None:
        return problem
    dtype = problem.dtype(centroids)
    weights = problem.weights.to(dtype)
    largest = weights.detach().max() if largest is None else largest
    usable = (largest > 0) & largest.isfinite()
    exponent = torch.where(usable, largest, 1).frexp().exponent
    # 2⁶⁴ is half of float32's range.
    limit = {torch.float32: 64, torch.float64: 512}[dtype]
    # Without a number of Python's, so that an update compiles to one graph.
    excess = exponent - exponent.clamp(-limit, limit)
    unit = torch.ldexp(torch.ones_like(largest), excess)
    return problem._replace(weights=weights / unit, unit=unit)


def in_true_unit(sums: Tensor, problem: Problem) -> Tensor:
    """Sums over the points of a problem, as its true weights make them."""
    return sums if problem.unit is None else sums * problem.unit.to(sums.dtype)


def counts_in_unit(
    optimizer: GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The state of an optimizer that is per count, as its steps need it."""
    if problem.unit is None or not is_per_count(optimizer):
        return opt_state
    return _scaled(opt_state, 1 / problem.unit)


def counts_in_true_unit(
    optimizer: GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The same, as it is to be kept."""
    if problem.unit is None or not is_per_count(optimizer):
        return opt_state
    return _scaled(opt_state, problem.unit)


def _scaled(opt_state: Any, factor: Tensor) -> Any:
    if not opt_state:
        return opt_state
    counts = opt_state.counts
    return opt_state._replace(counts=counts * factor.to(counts.dtype))
