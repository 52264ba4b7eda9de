"""One step of a fit: a pass, a step of the optimizer, and what becomes of the empty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from diffkm_torch._checks import as_problem
from diffkm_torch._hints import hinted, shown
from diffkm_torch._problem import Problem
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.fitting._empty import (
    EmptyPolicy,
    fill_farthest,
    rows_of_policy,
    set_rows,
)
from diffkm_torch.fitting._state import State, check_state, where_active, zero_inactive
from diffkm_torch.optimizers import GradientTransformation, newton
from diffkm_torch.statistics import Statistics, loss_of, residual_of, statistics_of

Schedule = Callable[[int], float | Tensor]
Temperature = float | Tensor | Schedule | None


class Algorithm(NamedTuple):
    """What is the same at every step.

    Attributes:
        optimizer: A pair (init, update).
        empty: What becomes of clusters without weight, as in `update`.
        schedule: Temperature as a function of the step, or None where the temperature
            of the problem holds at every step.
    """

    optimizer: GradientTransformation
    empty: str | EmptyPolicy
    schedule: Schedule | None


@hinted
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
    if not isinstance(state, State):
        hint = "pass result.state" if hasattr(state, "state") else "init(centroids)"
        raise TypeError(f"state must be a State, got {type(state).__name__}: {hint}")
    algorithm, problem, _ = as_algorithm(
        points,
        state.centroids,
        optimizer=optimizer,
        empty=empty,
        temperature=temperature,
        weights=weights,
        active=active,
        distance=distance,
        block_size=block_size,
    )
    check_state(state, algorithm.optimizer)
    state, stats, _ = step(algorithm, problem, state)
    return state, stats


def step(
    algorithm: Algorithm, problem: Problem, state: State
) -> tuple[State, Statistics, Tensor]:
    """The state after a step, the statistics before it, and the residual of these.

    A relocation counts as a step in the residual, so that a fit does not end on one.
    """
    optimizer, empty, _ = algorithm
    c, active = state.centroids, problem.active
    problem = at_step(algorithm, problem, state.step)
    stats = statistics_of(problem, c)
    if empty == "farthest":
        used, filled, rows = fill_farthest(problem, c, stats)
        new = _optimize(optimizer, problem, state, used)
        residual = residual_of(used)
        new = set_rows(filled, rows, new, optimizer, active)
    else:
        new = _optimize(optimizer, problem, state, stats)
        residual = residual_of(stats)
    if callable(empty):
        rows = rows_of_policy(empty, problem, c, new.centroids, stats.counts)
        filled = (rows != new.centroids).any(1)
        residual = residual + ((rows - new.centroids) ** 2).sum()
        new = set_rows(filled, rows, new, optimizer, active)
    new = new._replace(centroids=where_active(active, new.centroids, c))
    return new, stats, residual


def _optimize(
    optimizer: GradientTransformation, problem: Problem, state: State, stats: Statistics
) -> State:
    """The state after a step of the optimizer alone; inactive rows hold anything."""
    dtype = state.centroids.dtype

    def value_fn(params: Tensor, counts: Any = None) -> Tensor:
        del counts
        return loss_of(problem, params).to(dtype)

    gradient = (-2 * stats.shifts).to(dtype)
    has_means = problem.distance is squared_euclidean
    visible = zero_inactive(state.centroids, problem.active)
    updates, opt_state = optimizer.update(
        gradient,
        state.opt_state,
        visible,
        counts=stats.counts.to(dtype) if has_means else None,
        value=stats.loss.to(dtype),
        grad=gradient,
        value_fn=value_fn,
    )
    return State(visible + updates, opt_state, state.step + 1)


def at_step(algorithm: Algorithm, problem: Problem, index: int) -> Problem:
    """The problem at the temperature of a step."""
    if algorithm.schedule is None:
        return problem
    return problem._replace(temperature=algorithm.schedule(index))


def as_algorithm(
    points: Tensor,
    centroids: Tensor,
    *,
    optimizer: GradientTransformation | None,
    empty: str | EmptyPolicy,
    temperature: Temperature,
    **of_pass: Any,
) -> tuple[Algorithm, Problem, Tensor]:
    """The arguments of a step, checked: its algorithm, its problem, the centroids."""
    schedule = temperature if callable(temperature) else None
    scalar = None if callable(temperature) else temperature
    problem, centroids = as_problem(points, centroids, temperature=scalar, **of_pass)
    if not callable(empty) and empty not in ("keep", "farthest"):
        expected = "'keep', 'farthest' or a function"
        raise ValueError(f"empty must be {expected}, got {shown(empty)}")
    if optimizer is None:
        optimizer = newton()
    if not isinstance(optimizer, GradientTransformation):
        expected = "newton(), macqueen(), sgd(...) or another GradientTransformation"
        hint = ": call it, as newton()" if callable(optimizer) else ""
        raise TypeError(f"optimizer must be {expected}, got {shown(optimizer)}{hint}")
    return Algorithm(optimizer, empty, schedule), problem, centroids
