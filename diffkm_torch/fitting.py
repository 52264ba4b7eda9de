"""Fits: the mirror of `diffkm_jax.fitting`, as a plain Python loop."""

from __future__ import annotations

import enum
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
from diffkm_torch._implicit import attach
from diffkm_torch._update import (
    EmptyPolicy,
    Problem,
    State,
    Temperature,
    detached,
    one_update,
    residual_of,
    seen,
)
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.optimizers import GradientTransformation, newton
from diffkm_torch.statistics import Statistics, anchor, prepared

__all__ = ["FitResult", "State", "Status", "fit", "init", "update"]


class Status(enum.IntFlag):
    """Mirrors `diffkm_jax.Status`.

    LINEAR_SOLVE is found only where `fit` is called on what requires a gradient.
    """

    CONVERGED = 1
    MAX_STEPS = 2
    NON_FINITE = 4
    EMPTY_CLUSTER = 8
    LINEAR_SOLVE = 16

    def __str__(self) -> str:
        """The names of the flags, as in CONVERGED|EMPTY_CLUSTER."""
        return self.name or "0"


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


def init(
    centroids: Tensor, *, optimizer: GradientTransformation | None = None
) -> State:
    """Mirrors `diffkm_jax.init`."""
    _, centroids = as_points_and_centroids(centroids, centroids)
    centroids = centroids.to(accumulation_dtype(centroids)).clone()
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
    state, stats, _ = one_update(problem, optimizer, empty, state)
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
    derivative: str = "implicit",
    block_size: int | None = None,
) -> FitResult:
    """Mirrors `diffkm_jax.fit`: updates until the centroids rest.

    The implicit derivative of a fit that is soft, or of another distance, is exact up
    to the second order.
    """
    start = centroids.centroids if isinstance(centroids, State) else centroids
    problem = _problem(
        points, start, weights, active, temperature, distance, block_size
    )
    optimizer = _checked(optimizer, empty)
    _check_derivative(derivative, distance)
    k, n = len(start), len(points)
    if k > n and active is None:
        raise ValueError(f"centroids must be at most n = {n} (the points), got k = {k}")
    check_scalar("tol", tol, zero=True)
    check_integer("max_steps", max_steps, minimum=0)
    if isinstance(centroids, State):
        state, dtype = centroids, points.dtype
        _check_state(state, optimizer)
    else:
        acc = accumulation_dtype(points, start, weights)
        start, dtype = start.to(acc).clone(), start.dtype
        state = State(start, optimizer.init(seen(start, active)), 0)
    unrolled = derivative == "unrolled"
    with torch.set_grad_enabled(unrolled and torch.is_grad_enabled()):
        limit = float(torch.as_tensor(tol).detach())
        loop = _loop(problem, optimizer, empty, state, limit, max_steps)
    return _result(problem, derivative, state.step, dtype, max_steps, *loop)


def _problem(
    points: Tensor,
    centroids: Tensor,
    weights: Tensor | None,
    active: Tensor | None,
    temperature: Temperature,
    distance: Distance,
    block_size: int | None,
) -> Problem:
    prepared(points, centroids, weights, active)
    if temperature is not None and not callable(temperature):
        check_scalar("temperature", temperature)
    check_callable("distance", distance)
    check_block_size(block_size)
    return Problem(points, weights, active, temperature, distance, block_size)


def _checked(
    optimizer: GradientTransformation | None, empty: str | EmptyPolicy
) -> GradientTransformation:
    if not callable(empty) and empty not in ("keep", "farthest"):
        expected = "'keep', 'farthest' or a function"
        raise ValueError(f"empty must be {expected}, got {empty!r}")
    if optimizer is None:
        return newton()
    if not isinstance(optimizer, GradientTransformation):
        expected = "newton(), macqueen(), sgd(...) or another GradientTransformation"
        raise TypeError(f"optimizer must be {expected}, got {optimizer!r}")
    return optimizer


def _check_derivative(derivative: str, distance: Distance) -> None:
    if derivative not in ("implicit", "one_step", "unrolled", "none"):
        expected = "'implicit', 'one_step', 'unrolled' or 'none'"
        raise ValueError(f"derivative must be {expected}, got {derivative!r}")
    if derivative == "one_step" and distance is not squared_euclidean:
        raise ValueError(
            "derivative 'one_step' is that of a step to the mean and needs distance "
            f"squared_euclidean, got {distance}"
        )


def _check_state(state: State, optimizer: GradientTransformation) -> None:
    expected = _structure(optimizer.init(state.centroids))
    found = _structure(state.opt_state)
    if expected != found:
        raise ValueError(
            f"state must be of the optimizer given, whose state is {expected}, "
            f"got {found}"
        )


def _structure(opt_state: Any) -> Any:
    parts = opt_state if isinstance(opt_state, tuple) else ()
    return type(opt_state).__name__, *map(_structure, parts)


def _loop(
    problem: Problem,
    optimizer: GradientTransformation,
    empty: str | EmptyPolicy,
    state: State,
    tol: float,
    max_steps: int,
) -> tuple[State, list[Tensor], bool, bool]:
    acc = accumulation_dtype(problem.points, state.centroids, problem.weights)
    eps = torch.finfo(acc).eps
    variance = _mean_variance(problem, state.centroids.to(acc)).detach()
    last = problem.temperature_at(state.step + max_steps)
    history: list[Tensor] = []
    converged = failed = False
    while len(history) < max_steps and not converged and not failed:
        old, c = state, state.centroids.detach()
        state, stats, residual = one_update(problem, optimizer, empty, old)
        active = slice(None) if problem.active is None else problem.active
        finite = state.centroids[active].isfinite().all() & stats.loss.isfinite()
        if not finite:
            state, failed = old, True
            break
        history.append(stats.loss.detach())
        floor = ((eps * c[active].to(acc)) ** 2).sum()
        floor = floor + eps**2 * 64 * c.numel() * variance
        limit = torch.maximum(tol * variance, floor)
        settled = last is None or bool(problem.temperature_at(old.step) == last)
        converged = settled and bool((residual <= limit) & limit.isfinite())
    return state, history, converged, failed


def _result(
    problem: Problem,
    derivative: str,
    start: int,
    dtype: torch.dtype,
    max_steps: int,
    state: State,
    history: list[Tensor],
    converged: bool,
    failed: bool,
) -> FitResult:
    """One more pass, at the centroids as they are returned, with their gradients."""
    temperature = problem.temperature_at(max(state.step - 1, start))
    solved = True
    if derivative != "unrolled":
        c, solved = attach(problem, state.centroids, temperature, derivative)
        state = detached(state)._replace(centroids=c)
    centroids = state.centroids.to(dtype)
    stats = problem.statistics(centroids, temperature)
    loss = stats.loss.detach()
    failed = failed or not bool(loss.isfinite())
    failed = failed or (temperature is not None and not bool(temperature > 0))
    padding = [loss] * (max_steps + 1 - len(history))
    empty = stats.counts == 0
    if problem.active is not None:
        empty = empty & problem.active
    status = Status.NON_FINITE if failed else Status.MAX_STEPS
    if converged and not failed:
        status = Status.CONVERGED
    if empty.any():
        status |= Status.EMPTY_CLUSTER
    if not solved:
        status |= Status.LINEAR_SOLVE
    return FitResult(
        centroids=centroids,
        labels=problem.labels(centroids),
        loss=stats.loss,
        counts=stats.counts,
        residual=residual_of(stats).detach(),
        history=torch.stack([h.to(loss.dtype) for h in history] + padding),
        num_steps=state.step - start,
        status=status,
        temperature=temperature,
        state=state,
    )


def _mean_variance(problem: Problem, c: Tensor) -> Tensor:
    """The weighted variance of the features, averaged over them."""
    x, _, w, _ = prepared(problem.points, c, problem.weights, problem.active)
    origin = anchor(c, problem.active)
    mean = origin + (w[:, None] * (x - origin)).sum(0, keepdim=True) / w.sum()
    return (w[:, None] * (x - mean) ** 2).sum() / (w.sum() * x.shape[1])
