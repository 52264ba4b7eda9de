"""One step of a fit: a pass, a step of the optimizer, and what becomes of the empty."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_problem, as_scalar
from diffkm_torch._hints import hinted, shown
from diffkm_torch._pass import has_means
from diffkm_torch._problem import Problem
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.fitting._empty import (
    EmptyPolicy,
    fill_farthest,
    rows_of_policy,
    set_rows,
)
from diffkm_torch.fitting._processes import summed
from diffkm_torch.fitting._reassign import as_index, counts_of, restarted
from diffkm_torch.fitting._state import (
    State,
    check_state,
    moved,
    remainder_of,
    retracted,
    select,
    zero_inactive,
)
from diffkm_torch.fitting._units import (
    counts_in_true_unit,
    counts_in_unit,
    in_true_unit,
    in_unit,
)
from diffkm_torch.optimizers import GradientTransformation, is_per_count, newton
from diffkm_torch.statistics import (
    Statistics,
    loss_of,
    pull_of,
    residual_of,
    statistics_of,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Schedule = Callable[[int], float | Tensor]
Temperature = float | Tensor | Schedule | None


class Algorithm(NamedTuple):
    """What is the same at every step.

    Attributes:
        optimizer: A pair (init, update).
        empty: What becomes of clusters without weight, as in `update`.
        schedule: Temperature as a function of the step, or None where the temperature
            of the problem holds at every step.
        group: Processes by all of whose points a step is, or None for this one alone;
            with no derivative, and no rule for the empty.
    """

    optimizer: GradientTransformation
    empty: str | EmptyPolicy
    schedule: Schedule | None
    group: ProcessGroup | None = None


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
    min_count: float | Tensor | None = None,
    index: Tensor | None = None,
    block_size: int | None = None,
) -> tuple[State, Statistics]:
    """Mirrors `diffkm_jax.update`: one pass, and one step of the optimizer."""
    if not isinstance(state, State):
        hint = "pass result.state" if hasattr(state, "state") else "init(centroids)"
        raise TypeError(f"state must be a State, got {type(state).__name__}: {hint}")
    state = state._replace(remainder=remainder_of(state))
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
    restart = _as_restart(min_count, index, problem, state)
    found = updated(algorithm, in_unit(problem, state.centroids), state)
    if restart is None:
        return found.state, found.stats
    new = restarted(algorithm.optimizer, problem, found.state, *restart)
    # A batch that is not finite has no row to be set to.
    return select(found.finite, new, found.state), found.stats


def _as_restart(
    min_count: float | Tensor | None,
    index: Tensor | None,
    problem: Problem,
    state: State,
) -> tuple[Tensor, Tensor] | None:
    """Both arguments, checked, or None."""
    if index is None and min_count is None:
        return None
    if index is None:
        raise ValueError("index must be given with min_count, got None")
    if min_count is None:
        raise ValueError("min_count must be given with index, got None")
    counts_of(state)
    dtype = problem.dtype(state.centroids)
    return as_scalar("min_count", min_count, dtype, zero=True), as_index(index)


def updated(
    algorithm: Algorithm,
    problem: Problem,
    state: State,
    stats: Statistics | None = None,
) -> Step:
    """A step of a problem that has its unit; state and statistics are in the true.

    It is by the statistics of its nearest centroids, or by those given.
    """
    optimizer = algorithm.optimizer
    opt_state = counts_in_unit(optimizer, state.opt_state, problem)
    found = step(algorithm, problem, state._replace(opt_state=opt_state), stats)
    opt_state = counts_in_true_unit(optimizer, found.state.opt_state, problem)
    return found._replace(
        state=found.state._replace(opt_state=opt_state),
        stats=Statistics(*(in_true_unit(a, problem) for a in found.stats)),
    )


class Step(NamedTuple):
    """What a step finds.

    Attributes:
        state: After it; but for the number of steps that before it, if the loss or a
            centroid was not finite.
        stats: The statistics before it.
        residual: Of these; a relocation counts in it, so that no fit ends on one.
        finite: Whether the step was taken.
    """

    state: State
    stats: Statistics
    residual: Tensor
    finite: Tensor


def step(
    algorithm: Algorithm,
    problem: Problem,
    state: State,
    stats: Statistics | None = None,
) -> Step:
    """One step, of a state that has its remainder; by statistics that may be given."""
    optimizer, empty = algorithm.optimizer, algorithm.empty
    old = state
    state = retracted(problem, state, state)
    c, active = state.centroids, problem.active
    problem = at_step(algorithm, problem, state.step)
    problem = problem._replace(remainder=state.remainder)
    stats = statistics_of(problem, c) if stats is None else stats
    stats = used = summed(stats, algorithm.group)
    filled, rows, weights = None, c, torch.zeros_like(stats.counts)
    if empty == "farthest":
        used, filled, rows = fill_farthest(problem, c, stats)
        weights = used.counts  # Of a filled cluster that of its one point.
    new = _optimize(optimizer, problem, state, used)
    residual = residual_of(problem, c, used)
    if callable(empty):
        before, counts = zero_inactive(new.centroids, active), stats.counts
        counts = in_true_unit(counts, problem)
        rows = rows_of_policy(empty, problem, c, before, counts)
        filled = (rows != before).any(1)
        residual = residual + ((rows - before) ** 2).sum()
    if filled is not None:
        weights = as_optimized(optimizer, weights, problem)
        new = set_rows(filled, rows, weights, new, optimizer, active)
        new = retracted(problem, new, new)
    held = zero_inactive(new.centroids, active).isfinite().all()
    finite = stats.loss.isfinite() & held
    # By a choice of values, so that an update compiles to one graph.
    kept = select(finite, new._replace(step=()), old._replace(step=()))
    return Step(kept._replace(step=new.step), stats, residual, finite)


def as_optimized(
    optimizer: GradientTransformation, sums: Tensor, problem: Problem
) -> Tensor:
    """Sums as true weights make them, but where a step is the same in every unit."""
    return sums if is_per_count(optimizer) else in_true_unit(sums, problem)


def _optimize(
    optimizer: GradientTransformation, problem: Problem, state: State, stats: Statistics
) -> State:
    """The state after a step of the optimizer alone."""
    dtype = state.centroids.dtype

    def seen(sums: Tensor) -> Tensor:
        return as_optimized(optimizer, sums.to(dtype), problem)

    def value_fn(params: Tensor, counts: Any = None, shifts: Any = None) -> Tensor:
        del counts, shifts  # Named, as in JAX, where only what is named is passed on.
        return seen(loss_of(problem, params))

    gradient = seen(-pull_of(problem, state.centroids, stats))
    # Newton's step is shifts / counts, and only that of a distance that has means.
    means = has_means(problem)
    updates, opt_state = optimizer.update(
        gradient,
        state.opt_state,
        zero_inactive(state.centroids, problem.active),
        counts=seen(stats.counts) if means else None,
        shifts=seen(stats.shifts) if means else None,
        value=seen(stats.loss),
        grad=gradient,
        value_fn=value_fn,
    )
    new = retracted(problem, moved(state, updates, problem.active), state)
    return new._replace(opt_state=opt_state, step=state.step + 1)


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
