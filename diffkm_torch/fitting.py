"""Fits: the mirror of `diffkm_jax.fitting`, as a plain Python loop."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import (
    accumulation_dtype,
    as_points_and_centroids,
    check_block_size,
    check_callable,
    check_integer,
    check_scalar,
)
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.losses import general_statistics
from diffkm_torch.optimizers import GradientTransformation, newton
from diffkm_torch.statistics import Statistics, anchor, assign, prepared, statistics

__all__ = ["FitResult", "State", "Status", "fit", "init", "update"]

EmptyPolicy = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Temperature = float | Tensor | Callable[[int], float | Tensor] | None


class Status(enum.IntFlag):
    """Mirrors `diffkm_jax.Status`."""

    CONVERGED = 1
    MAX_STEPS = 2
    NON_FINITE = 4
    EMPTY_CLUSTER = 8


class State(NamedTuple):
    """Mirrors `diffkm_jax.State`: centroids [k, d], opt_state, step."""

    centroids: Tensor
    opt_state: Any
    step: int


class FitResult(NamedTuple):
    """Mirrors `diffkm_jax.FitResult`; numbers of steps and flags are Python's."""

    centroids: Tensor
    labels: Tensor
    loss: Tensor
    counts: Tensor
    residual: Tensor
    history: Tensor
    num_steps: int
    status: Status
    temperature: float | Tensor | None
    state: State


class _Problem(NamedTuple):
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
        stats = general_statistics(self.points, c, *rest, **options)
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            c = c if c.requires_grad else c.detach().requires_grad_()
            loss = general_statistics(self.points, c, *rest, **options).loss
            (gradient,) = torch.autograd.grad(loss, c, create_graph=graph)
        return stats._replace(shifts=-0.5 * gradient.to(loss.dtype))

    def labels(self, c: Tensor) -> Tensor:
        """The nearest centroid of every point."""
        return assign(
            self.points,
            c,
            active=self.active,
            distance=self.distance,
            block_size=self.block_size,
        )


def init(
    centroids: Tensor, *, optimizer: GradientTransformation | None = None
) -> State:
    """Mirrors `diffkm_jax.init`."""
    _, centroids = as_points_and_centroids(centroids, centroids)
    centroids = centroids.to(accumulation_dtype(centroids))
    optimizer = newton() if optimizer is None else optimizer
    return State(centroids, optimizer.init(centroids), 0)


def update(
    points: Tensor,
    state: State,
    *,
    optimizer: GradientTransformation | None = None,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    temperature: Temperature = None,
    distance: Distance = squared_euclidean,
    empty: str | EmptyPolicy = "keep",
    block_size: int | None = None,
) -> tuple[State, Statistics]:
    """Mirrors `diffkm_jax.update`: one pass, and one step of the optimizer."""
    problem = _problem(
        points, state.centroids, weights, active, temperature, distance, block_size
    )
    optimizer = _checked(optimizer, empty)
    _check_state(state, optimizer)
    state, stats, _ = _step(problem, optimizer, empty, state)
    return state, stats


def fit(
    points: Tensor,
    centroids: Tensor | State,
    *,
    optimizer: GradientTransformation | None = None,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    temperature: Temperature = None,
    distance: Distance = squared_euclidean,
    tol: float | Tensor = 1e-4,
    max_steps: int = 300,
    empty: str | EmptyPolicy = "keep",
    derivative: str = "none",
    block_size: int | None = None,
) -> FitResult:
    """Mirrors `diffkm_jax.fit`: updates until the centroids rest."""
    start = centroids.centroids if isinstance(centroids, State) else centroids
    problem = _problem(
        points, start, weights, active, temperature, distance, block_size
    )
    optimizer = _checked(optimizer, empty)
    k, n = len(start), len(points)
    if k > n and active is None:
        raise ValueError(f"centroids must be at most n = {n} (the points), got k = {k}")
    check_scalar("tol", tol, zero=True)
    check_integer("max_steps", max_steps, minimum=0)
    if derivative != "none":
        raise ValueError(f"derivative must be 'none', got {derivative!r}")
    if isinstance(centroids, State):
        state, dtype = centroids, points.dtype
        _check_state(state, optimizer)
    else:
        acc = accumulation_dtype(points, start, weights)
        state, dtype = init(start.to(acc), optimizer=optimizer), start.dtype
    with torch.no_grad():
        loop = _loop(problem, optimizer, empty, state, float(tol), max_steps)
    return _result(problem, state.step, dtype, max_steps, *loop)


def _problem(
    points: Tensor,
    centroids: Tensor,
    weights: Tensor | None,
    active: Tensor | None,
    temperature: Temperature,
    distance: Distance,
    block_size: int | None,
) -> _Problem:
    prepared(points, centroids, weights, active)
    if temperature is not None and not callable(temperature):
        check_scalar("temperature", temperature)
    check_callable("distance", distance)
    check_block_size(block_size)
    return _Problem(points, weights, active, temperature, distance, block_size)


def _checked(
    optimizer: GradientTransformation | None, empty: str | EmptyPolicy
) -> GradientTransformation:
    if not callable(empty) and empty not in ("keep", "farthest"):
        expected = "'keep', 'farthest' or a function"
        raise ValueError(f"empty must be {expected}, got {empty!r}")
    if optimizer is None:
        return newton()
    if not isinstance(optimizer, GradientTransformation):
        expected = "a GradientTransformation"
        raise TypeError(f"optimizer must be {expected}, got {optimizer!r}")
    return optimizer


def _check_state(state: State, optimizer: GradientTransformation) -> None:
    expected = _structure(optimizer.init(state.centroids))
    found = _structure(state.opt_state)
    if expected != found:
        raise ValueError(
            f"state must be of the optimizer given, whose state is {expected}, "
            f"got {found}"
        )


def _structure(opt_state: Any) -> Any:
    if isinstance(opt_state, tuple):
        return type(opt_state).__name__, *map(_structure, opt_state)
    return type(opt_state).__name__


def _residual(stats: Statistics) -> Tensor:
    positive = stats.counts[:, None] > 0
    steps = stats.shifts / torch.where(positive, stats.counts[:, None], 1)
    return (torch.where(positive, steps, 0) ** 2).sum()


def _step(
    problem: _Problem,
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
    updates, opt_state = optimizer.update(
        gradient,
        state.opt_state,
        c,
        counts=used.counts.to(dtype) if squared else None,
        value=stats.loss.to(dtype),
        grad=gradient,
        value_fn=value_fn,
    )
    new = c + updates
    residual = _residual(used)
    if callable(empty):
        costly, costs, _ = _costliest(problem, c)
        rows = empty(new, stats.counts, costly, costs).to(dtype)
        moved = (rows != new).any(1)
        residual = residual + ((rows - new) ** 2).sum()
    if moved is not None:
        new = torch.where(moved[:, None], rows.to(dtype).detach(), new)
        opt_state = _forget(opt_state, moved, c.shape)
    if problem.active is not None:
        new = torch.where(problem.active[:, None], new, c)
    return State(new, opt_state, state.step + 1), stats, residual


def _farthest(
    problem: _Problem, c: Tensor, temperature: float | Tensor | None, stats: Statistics
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
    for j, i in pairs:
        filled[j], targets[j] = True, rows[i].to(c.dtype)
        counts[j] = weights[i].to(counts.dtype)
        shifts[j] = counts[j] * (rows[i].to(shifts.dtype) - c[j].to(shifts.dtype))
    return Statistics(stats.loss, counts, shifts), filled, targets


def _costliest(problem: _Problem, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _forget(opt_state: Any, moved: Tensor, shape: torch.Size) -> Any:
    """Zeroes what an optimizer remembers of moved rows: [..., k, d] and counts [k]."""
    if isinstance(opt_state, Tensor):
        if opt_state.shape[-2:] == shape:
            return torch.where(moved[:, None], 0, opt_state)
        return opt_state
    if isinstance(opt_state, tuple):
        fields = getattr(opt_state, "_fields", ("",) * len(opt_state))
        values = [
            torch.where(moved, 0, value)
            if name == "counts" and value.shape == shape[:1]
            else _forget(value, moved, shape)
            for name, value in zip(fields, opt_state, strict=True)
        ]
        return type(opt_state)(*values) if any(fields) else tuple(values)
    return opt_state


def _loop(
    problem: _Problem,
    optimizer: GradientTransformation,
    empty: str | EmptyPolicy,
    state: State,
    tol: float,
    max_steps: int,
) -> tuple[State, list[Tensor], bool, bool]:
    acc = accumulation_dtype(problem.points, state.centroids, problem.weights)
    eps = torch.finfo(acc).eps
    variance = _mean_variance(problem, state.centroids.to(acc))
    last = problem.temperature_at(state.step + max_steps)
    history: list[Tensor] = []
    converged = failed = False
    while len(history) < max_steps and not converged and not failed:
        old, c = state, state.centroids
        state, stats, residual = _step(problem, optimizer, empty, old)
        active = slice(None) if problem.active is None else problem.active
        finite = state.centroids[active].isfinite().all() & stats.loss.isfinite()
        if not finite:
            state, failed = old, True
            break
        history.append(stats.loss)
        floor = ((eps * c[active].to(acc)) ** 2).sum()
        floor = floor + eps**2 * 64 * c.numel() * variance
        limit = torch.maximum(tol * variance, floor)
        settled = last is None or bool(problem.temperature_at(old.step) == last)
        converged = settled and bool(residual <= limit)
    return state, history, converged, failed


def _result(
    problem: _Problem,
    start: int,
    dtype: torch.dtype,
    max_steps: int,
    state: State,
    history: list[Tensor],
    converged: bool,
    failed: bool,
) -> FitResult:
    """One more pass, at the centroids as they are returned, with their gradients."""
    centroids = state.centroids.detach().to(dtype)
    temperature = problem.temperature_at(max(state.step - 1, start))
    stats = problem.statistics(centroids, temperature)
    loss = stats.loss.detach()
    failed = failed or not bool(loss.isfinite())
    padding = [loss] * (max_steps + 1 - len(history))
    empty = stats.counts == 0
    if problem.active is not None:
        empty = empty & problem.active
    status = Status.NON_FINITE if failed else Status.MAX_STEPS
    if converged and not failed:
        status = Status.CONVERGED
    if empty.any():
        status |= Status.EMPTY_CLUSTER
    return FitResult(
        centroids=centroids,
        labels=problem.labels(centroids),
        loss=stats.loss,
        counts=stats.counts,
        residual=_residual(stats).detach(),
        history=torch.stack([h.to(loss.dtype) for h in history] + padding),
        num_steps=state.step - start,
        status=status,
        temperature=temperature,
        state=state,
    )


def _mean_variance(problem: _Problem, c: Tensor) -> Tensor:
    """The weighted variance of the features, averaged over them."""
    x, _, w, _ = prepared(problem.points, c, problem.weights, problem.active)
    origin = anchor(c, problem.active)
    mean = origin + (w[:, None] * (x - origin)).sum(0, keepdim=True) / w.sum()
    return (w[:, None] * (x - mean) ** 2).sum() / (w.sum() * x.shape[1])
