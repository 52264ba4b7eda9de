"""One update: the mirror of `diffkm_jax._update`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.losses import general_statistics
from diffkm_torch.optimizers import GradientTransformation
from diffkm_torch.statistics import Statistics, assign, statistics

EmptyPolicy = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Temperature = float | Tensor | Callable[[int], float | Tensor] | None


class State(NamedTuple):
    """Mirrors `diffkm_jax.State`: centroids [k, d], opt_state, step."""

    centroids: Tensor
    opt_state: Any
    step: int


class Problem(NamedTuple):
    """What a fit is of."""

    points: Tensor
    weights: Tensor | None
    active: Tensor | None
    temperature: Temperature
    distance: Distance
    block_size: int | None

    def temperature_at(self, step: int) -> float | Tensor | None:
        """The temperature of a step, or None for the hard assignment."""
        return (
            self.temperature(step) if callable(self.temperature) else self.temperature
        )

    def statistics(self, c: Tensor, temperature: float | Tensor | None) -> Statistics:
        """The statistics at some centroids, shifts being −½ of the gradient."""
        options = {
            "weights": self.weights,
            "active": self.active,
            "block_size": self.block_size,
        }
        if self.distance is squared_euclidean:
            return statistics(self.points, c, temperature=temperature, **options)
        rest = self.distance, temperature

        def loss(c: Tensor) -> tuple[Tensor, Statistics]:
            stats = general_statistics(self.points, c, *rest, **options)
            return stats.loss, stats

        # Not autograd.grad, which is silently constant in what torch.compile made.
        gradient, stats = torch.func.grad(loss, has_aux=True)(c)
        return stats._replace(shifts=-0.5 * gradient.to(stats.loss.dtype))

    def labels(self, c: Tensor) -> Tensor:
        """The nearest centroid of every point."""
        return assign(
            self.points,
            c,
            active=self.active,
            distance=self.distance,
            block_size=self.block_size,
        )


def step_of(stats: Statistics) -> Tensor:
    """A full step, shifts_j / counts_j, [k, d]; zero for clusters without weight."""
    positive = stats.counts[:, None] > 0
    steps = stats.shifts / torch.where(positive, stats.counts[:, None], 1)
    return torch.where(positive, steps, 0)


def residual_of(stats: Statistics) -> Tensor:
    """Σ_j ‖shifts_j / counts_j‖² over clusters with weight."""
    return (step_of(stats) ** 2).sum()


def one_update(
    problem: Problem,
    optimizer: GradientTransformation,
    empty: str | EmptyPolicy,
    state: State,
) -> tuple[State, Statistics, Tensor]:
    """The state after one update, the statistics before it, and their residual."""
    c, dtype = state.centroids, state.centroids.dtype
    temperature = problem.temperature_at(state.step)
    stats = used = problem.statistics(c, temperature)
    moved, rows = None, c
    if empty == "farthest":
        used, moved, rows = _farthest(problem, c, temperature, stats)

    def value_fn(params: Tensor, counts: Any = None) -> Tensor:
        del counts
        return problem.statistics(params, temperature).loss.to(dtype)

    gradient = (-2 * used.shifts).to(dtype)
    squared = problem.distance is squared_euclidean
    visible = seen(c, problem.active)
    updates, opt_state = optimizer.update(
        gradient,
        state.opt_state,
        visible,
        counts=used.counts.to(dtype) if squared else None,
        value=stats.loss.to(dtype),
        grad=gradient,
        value_fn=value_fn,
    )
    new = visible + updates
    residual = residual_of(used)
    if callable(empty):
        costly, costs, _ = _costliest(problem, c)
        rows = empty(new, stats.counts, costly, costs).to(dtype)
        if problem.active is not None:
            rows = torch.where(problem.active[:, None], rows, new)
        moved = (rows != new).any(1)
        residual = residual + ((rows - new) ** 2).sum()
    if moved is not None:
        new = torch.where(moved[:, None], rows.to(dtype).detach(), new)
        fresh = optimizer.init(seen(new, problem.active))
        opt_state = _forget(opt_state, fresh, moved, c.shape)
    if problem.active is not None:
        new = torch.where(problem.active[:, None], new, c)
    return State(new, opt_state, state.step + 1), stats, residual


def _farthest(
    problem: Problem, c: Tensor, temperature: float | Tensor | None, stats: Statistics
) -> tuple[Statistics, Tensor, Tensor]:
    """Gives the i-th empty cluster the i-th costliest point, one by one."""
    empty = stats.counts == 0
    if problem.active is not None:
        empty = empty & problem.active
    rows, costs, weights = _costliest(problem, c)
    pairs = zip(empty.nonzero()[:, 0].tolist(), range(len(rows)), strict=False)
    pairs = [(j, i) for j, i in pairs if costs[i] > 0]
    given, filled, targets = (
        torch.zeros_like(weights),
        torch.zeros_like(empty),
        c.clone(),
    )
    for _, i in pairs:
        given[i] = weights[i]
    lost = problem._replace(points=rows, weights=given).statistics(c, temperature)
    counts, shifts = stats.counts - lost.counts, stats.shifts - lost.shifts
    rounding = 8 * torch.finfo(counts.dtype).eps * stats.counts
    counts = torch.where(counts > rounding, counts, 0)
    for j, i in pairs:
        filled[j], targets[j] = True, rows[i].to(c.dtype)
        one = weights[i].to(counts.dtype)
        counts[j] = one
        shifts[j] = one * (rows[i].to(shifts.dtype) - c[j].to(shifts.dtype))
    return Statistics(stats.loss, counts, shifts), filled, targets


def _costliest(problem: Problem, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The k points of largest cost [k, d], their costs and weights [k]."""
    x = problem.points
    costs = problem.distance(x, c[problem.labels(c)])
    weights = problem.weights
    weights = costs.new_ones(len(x)) if weights is None else weights
    costs = costs.masked_fill(weights == 0, -torch.inf)
    # Stable, so that equal costs keep the order of the points, as in JAX.
    costs, index = costs.sort(descending=True, stable=True)
    index = index[: len(c)]
    return x[index], costs[: len(c)], weights[index]


def seen(centroids: Tensor, active: Tensor | None) -> Tensor:
    """Centroids as an optimizer sees them: zero where inactive, whatever they hold."""
    return centroids if active is None else torch.where(active[:, None], centroids, 0)


def detached(tree: Any) -> Any:
    """A state, or a part of one, without its graph."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if isinstance(tree, tuple):
        values = map(detached, tree)
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree


def _forget(opt_state: Any, fresh: Any, moved: Tensor, shape: torch.Size) -> Any:
    """What an optimizer knows of moved rows, as in a fresh state.

    Those of tensors [..., k, d] and of tensors [k] that are called counts.
    """
    if isinstance(opt_state, Tensor):
        if opt_state.shape[-2:] == shape:
            return torch.where(moved[:, None], fresh, opt_state)
        return opt_state
    if isinstance(opt_state, tuple):
        fields = getattr(opt_state, "_fields", ("",) * len(opt_state))
        values = [
            torch.where(moved, new, value)
            if name == "counts" and value.shape == shape[:1]
            else _forget(value, new, moved, shape)
            for name, value, new in zip(fields, opt_state, fresh, strict=True)
        ]
        return type(opt_state)(*values) if any(fields) else tuple(values)
    return opt_state
