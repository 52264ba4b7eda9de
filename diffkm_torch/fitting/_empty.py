"""Clusters without weight: where they are set, and what the optimizer then knows.

Two policies. `"farthest"` acts before the optimizer, on the statistics, so that the
cluster that loses a point loses it in the same step. A function acts after the
optimizer, on the new centroids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffkm_torch._pass import labels_of
from diffkm_torch._problem import Problem
from diffkm_torch.fitting._state import (
    State,
    remainder_of,
    where_active,
    zero_inactive,
)
from diffkm_torch.optimizers import GradientTransformation
from diffkm_torch.statistics import Statistics, embedded, statistics_of

EmptyPolicy = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def is_empty(counts: Tensor, active: Tensor | None) -> Tensor:
    """Which active clusters have no weight, [k]."""
    empty = counts == 0
    return empty if active is None else empty & active


def fill_farthest(
    problem: Problem, c: Tensor, stats: Statistics
) -> tuple[Statistics, Tensor, Tensor]:
    """Gives the i-th empty cluster the i-th costliest point, and takes it elsewhere.

    Returns the statistics as if that point had been in the empty cluster, which
    clusters were filled, and their new centroids.
    """
    empty = is_empty(stats.counts, problem.active)
    rows, costs, weights = costliest(problem, c)
    pairs = zip(empty.nonzero()[:, 0].tolist(), range(len(rows)), strict=False)
    # A point that costs nothing sits on a centroid: moving it would go on for ever.
    pairs = [(j, i) for j, i in pairs if costs[i] > 0]
    given = torch.zeros_like(weights)
    for _, i in pairs:
        given[i] = weights[i]
    lost = statistics_of(problem._replace(points=rows, weights=given), c)
    counts, shifts = stats.counts - lost.counts, stats.shifts - lost.shifts
    # Rounding must not pass for weight in a cluster that gave all it had.
    rounding = 8 * torch.finfo(counts.dtype).eps * stats.counts
    counts = torch.where(counts > rounding, counts, 0)
    filled, targets = torch.zeros_like(empty), c.clone()
    rows, held = (embedded(problem, a.to(shifts.dtype)) for a in (rows, c))
    for j, i in pairs:
        filled[j], targets[j] = True, rows[i].to(c.dtype)
        counts[j] = one = weights[i].to(counts.dtype)
        away = rows[i] - held[j]
        if problem.remainder is not None:
            away = away - problem.remainder[j].to(shifts.dtype)
        shifts[j] = one * away
    return Statistics(stats.loss, counts, shifts), filled, targets


def rows_of_policy(
    policy: EmptyPolicy, problem: Problem, c: Tensor, new: Tensor, counts: Tensor
) -> Tensor:
    """The centroids that a function of the new ones, [k, d], makes of them.

    The costliest points that it is shown are those at `c`, before the step.
    """
    rows, costs, _ = costliest(problem, c)
    rows = policy(new, counts, rows, costs).to(new.dtype)
    return where_active(problem.active, rows, new)


def costliest(problem: Problem, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The k points of largest cost [k, d], their costs and weights [k].

    Fewer than k, where there are fewer points. A point of weight zero costs −∞.
    """
    x, weights = problem.points, problem.weights
    costs = problem.distance(x, c[labels_of(problem, c)])
    weights = costs.new_ones(len(x)) if weights is None else weights
    costs = costs.masked_fill(weights == 0, -torch.inf)
    # Stable, so that equal costs keep the order of the points, as in JAX.
    costs, index = costs.sort(descending=True, stable=True)
    index = index[: len(c)]
    return x[index], costs[: len(c)], weights[index]


def set_rows(
    filled: Tensor,
    rows: Tensor,
    weights: Tensor,
    state: State,
    optimizer: GradientTransformation,
    active: Tensor | None,
) -> State:
    """The state with the filled rows set, held constant, and forgotten by optimizers.

    What an optimizer knows of a row is in tensors [..., k, d]: there it is as in a
    fresh state. And in tensors [k] that are called counts: there it is the weight of
    the point that the row was set to, which the next batch is to be averaged with.
    """
    c, on = state.centroids, filled[:, None]
    c = torch.where(on, rows.to(c.dtype).detach(), c)
    fresh = optimizer.init(zero_inactive(c, active))
    opt_state = _forget(state.opt_state, fresh, filled, weights, c.shape)
    remainder = torch.where(on, 0, remainder_of(state))
    return State(c, opt_state, state.step, remainder)


def _forget(
    opt_state: Any, fresh: Any, filled: Tensor, weights: Tensor, shape: torch.Size
) -> Any:
    if isinstance(opt_state, Tensor):
        if opt_state.shape[-2:] == shape:
            return torch.where(filled[:, None], fresh, opt_state)
        return opt_state
    if isinstance(opt_state, tuple):
        fields = getattr(opt_state, "_fields", ("",) * len(opt_state))
        values = [
            torch.where(filled, weights.to(value.dtype), value)
            if name == "counts" and value.shape == shape[:1]
            else _forget(value, new, filled, weights, shape)
            for name, value, new in zip(fields, opt_state, fresh, strict=True)
        ]
        return type(opt_state)(*values) if any(fields) else tuple(values)
    return opt_state
