"""One step of a fit: a pass, a step of the optimizer, and what becomes of the empty."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._checks import as_scalar
from diffkm_jax._mesh import vary_as
from diffkm_jax._pass import has_means, total_loss
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._statistics import Statistics, pull_of, residual_of, statistics_of
from diffkm_jax._units import in_true_unit
from diffkm_jax.fitting._empty import (
    Costliest,
    EmptyPolicy,
    costliest,
    fill_farthest,
    rows_of_policy,
    set_rows,
)
from diffkm_jax.fitting._state import (
    State,
    moved,
    retracted,
    zero_inactive,
)
from diffkm_jax.optimizers import is_per_count

if TYPE_CHECKING:
    from jax.typing import ArrayLike


class Algorithm(NamedTuple):
    """What is static about a step; functions count by identity.

    Attributes:
        plan: Of its pass.
        optimizer: Any optax transformation.
        empty: What becomes of clusters without weight, as in `update`.
        schedule: Temperature as a function of the step, or None where the temperature
            of the problem holds at every step.
    """

    plan: Plan
    optimizer: optax.GradientTransformation
    empty: str | EmptyPolicy
    schedule: Callable[[jax.Array], ArrayLike] | None


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
    residual: jax.Array
    finite: jax.Array


@partial(jax.jit, static_argnums=0)
def step(algorithm: Algorithm, problem: Problem, state: State) -> Step:
    """One step, of a state that has its remainder, by a pass over the points."""
    plan = algorithm.plan
    old, state, problem = state, *prepared(algorithm, problem, state)
    c = state.centroids
    return step_by(
        algorithm,
        problem,
        old,
        state,
        statistics_of(plan, problem, c),
        lambda: costliest(plan, problem, c),
        lambda params: total_loss(plan, problem, params),
    )


def prepared(
    algorithm: Algorithm, problem: Problem, state: State
) -> tuple[State, Problem]:
    """A state where its distance has centroids, and the problem of the step from it."""
    state = retracted(problem, state, state)
    problem = at_step(algorithm, problem, state.step)
    return state, problem._replace(remainder=lax.stop_gradient(state.remainder))


def step_by(
    algorithm: Algorithm,
    problem: Problem,
    old: State,
    state: State,
    stats: Statistics,
    costly: Callable[[], Costliest],
    total: Callable[[jax.Array], jax.Array] | None,
) -> Step:
    """One step by what a pass has found, which alone has read the points.

    Args:
        algorithm: What is static about the step.
        problem: The problem, but for its points.
        old: The state, and what is kept of it where the step is not finite.
        state: The same, prepared.
        stats: The statistics of all points at this state.
        costly: The points of largest cost there.
        total: The loss at other centroids, for optimizers that search along a line;
            None where it is not to be had.
    """
    empty, plan = algorithm.empty, algorithm.plan
    c, dtype, active = state.centroids, state.centroids.dtype, problem.active
    used = stats
    filled, rows, weights = None, c, jnp.zeros_like(stats.counts)
    if empty == "farthest":
        used, filled, rows = fill_farthest(plan, problem, c, stats, costly)
        weights = used.counts  # Of a filled cluster that of its one point.

    def as_optimized(sums: jax.Array) -> jax.Array:
        """As true weights make it, but where a step is the same in every unit."""
        if is_per_count(algorithm.optimizer):
            return sums
        return in_true_unit(sums, problem)

    def value_fn(params: jax.Array, counts: Any = None, shifts: Any = None):
        # Named, because optax passes on only the arguments it finds.
        del counts, shifts
        if total is None:
            raise ValueError(
                "optimizer must not search along a line (value_fn) where a step is of "
                "a pass over batches, whose loss elsewhere is not known"
            )
        return as_optimized(total(params).astype(dtype))

    gradient = as_optimized((-pull_of(problem, c, used)).astype(dtype))
    # Newton's step is shifts / counts, and only that of a distance that has means.
    means = has_means(problem)
    # Wrapped here: a wrapper made at every call would be a new program at every call.
    optimizer = optax.with_extra_args_support(algorithm.optimizer)
    visible = zero_inactive(c, active)
    updates, opt_state = optimizer.update(
        gradient,
        state.opt_state,
        visible,
        counts=as_optimized(used.counts.astype(dtype)) if means else None,
        shifts=as_optimized(used.shifts.astype(dtype)) if means else None,
        value=as_optimized(stats.loss.astype(dtype)),
        grad=gradient,
        value_fn=value_fn,
    )
    state = retracted(problem, moved(state, jnp.asarray(updates, dtype), active), state)
    state = state._replace(opt_state=opt_state)
    residual = residual_of(problem, c, used)
    if callable(empty):
        new = zero_inactive(state.centroids, active)
        counts = in_true_unit(stats.counts, problem)
        rows = rows_of_policy(empty, costly(), new, counts, active)
        # Rows that the policy left alone keep their derivative and optimizer state.
        filled = jnp.any(rows != new, axis=1)
        residual += jnp.sum((rows - new).astype(residual.dtype) ** 2)
    if filled is not None:
        new = set_rows(filled, rows, as_optimized(weights), state, optimizer, active)
        state = retracted(problem, new, state)
    held = jnp.isfinite(zero_inactive(state.centroids, active)).all()
    finite = jnp.isfinite(stats.loss) & held
    old = jax.tree.map(vary_as, old, state)
    kept = lax.cond(finite, lambda: state, lambda: old)
    return Step(kept._replace(step=old.step + 1), stats, residual, finite)


def at_step(algorithm: Algorithm, problem: Problem, index: jax.Array) -> Problem:
    """The problem at the temperature of a step."""
    if algorithm.schedule is None:
        return problem
    temperature: Any = algorithm.schedule(index)
    temperature = as_scalar("temperature", temperature, problem.points, problem.weights)
    return problem._replace(temperature=temperature)


def at_last(
    algorithm: Algorithm, problem: Problem, start: State, state: State
) -> Problem:
    """The problem at the last step taken between two states; the first, if none was."""
    return at_step(algorithm, problem, jnp.maximum(state.step - 1, start.step))


def check_state(state: State, optimizer: optax.GradientTransformation) -> None:
    """Raises unless the state is one of the optimizer."""
    expected = jax.tree.structure(jax.eval_shape(optimizer.init, state.centroids))
    found = jax.tree.structure(state.opt_state)
    if expected != found:
        raise ValueError(
            f"state must be of the optimizer given, whose state is {expected}, "
            f"got {found}; to start anew, pass its centroids"
        )
