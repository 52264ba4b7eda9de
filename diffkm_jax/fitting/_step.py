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
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted, shown
from diffkm_jax._mesh import vary_as
from diffkm_jax._pass import has_means, total_loss
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax._sharding import check_replicated, over_rows
from diffkm_jax._units import in_true_unit, in_unit
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting._empty import (
    EmptyPolicy,
    fill_farthest,
    rows_of_policy,
    set_rows,
)
from diffkm_jax.fitting._state import (
    State,
    moved,
    remainder_of,
    retracted,
    zero_inactive,
)
from diffkm_jax.fitting._units import counts_in_true_unit, counts_in_unit
from diffkm_jax.optimizers import is_per_count, newton
from diffkm_jax.statistics import Statistics, pull_of, residual_of, statistics_of

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float


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


@hinted
def update(
    points: Float[ArrayLike, "n d"],
    state: State,
    *,
    optimizer: optax.GradientTransformation | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    temperature: ArrayLike | optax.Schedule | None = None,
    distance: Distance = squared_euclidean,
    empty: str | EmptyPolicy = "keep",
    block_size: int | None = None,
    axis_name: Axis = None,
) -> tuple[State, Statistics]:
    """One pass over the points and one step of the optimizer.

    The optimizer is called as `optimizer.update(gradient, opt_state, centroids,
    counts=, shifts=, value=, grad=, value_fn=)`, with the gradient of the loss (a sum
    over points) in the centroids; `counts` and `shifts` are None for a distance that
    has no means. Under `cosine` centroids are made unit rows before the step and after
    it, and shifts are those of unit rows. The gradient of the new centroids is that of
    the formulas: through the pass and through the optimizer, labels held constant.

    A batch that is not finite leaves centroids and optimizer state as they were, and
    the fact in `loss`: one bad row would else stay in running counts for ever.

    Args:
        points: A batch or all of the data, [n, d], real, in data units.
        state: The `State` of `init` or of the last update, of the same optimizer.
        optimizer: Any optax transformation, static by identity; None is `newton()`.
        weights: Non-negative, [n], any unit; None is ones.
        active: Clusters that exist, [k], bool; the others do not move. None is all.
        temperature: Positive scalar in the unit of `distance`, or a schedule of
            `state.step` (static by identity); None is the hard assignment.
        distance: Function of two arrays [..., d]; static by identity, or a tree of
            arrays, as `mahalanobis(P)`.
        empty: What becomes of active clusters without weight: `"keep"` leaves them;
            `"farthest"` sets the i-th of them to the point of the i-th largest cost;
            or a function of (new centroids, counts, rows [k, d], costs [k]), the rows
            those of largest cost, that returns centroids. A row that is set has its
            optimizer state zeroed and derivative zero.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; or
            under `jax.jit`, where an Auto mesh hides it, the `NamedSharding` of points.

    Returns:
        The new state, and the `Statistics` at where the state given stood, its
        centroids and `remainder` together.

    Raises:
        TypeError: An array or `temperature` is not real, `active` is not bool,
            `distance` no function, `optimizer` no optax transformation, or `state` no
            `State`.
        ValueError: A shape does not fit; `temperature` is a number and not positive
            and finite, or not a scalar; `empty` is unknown; `block_size` is below 1;
            `state` is of another optimizer; `distance` has no means and the optimizer
            needs counts, as `newton` and `macqueen` do; `points` is a NumPy array with
            a row outside the domain of `distance`; `axis_name` is not an axis of the
            shard_map around.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> state, stats = dk.update(x, dk.init(x[1:3]))
        >>> state.centroids.tolist(), float(stats.loss)  # The new ones, the old loss.
        ([[0.5], [9.5]], 2.0)

    Source: Bottou & Bengio 1995,
        https://leon.bottou.org/papers/bottou-bengio-95
    """
    if not isinstance(state, State):
        hint = "pass result.state" if hasattr(state, "state") else "init(centroids)"
        raise TypeError(f"state must be a State, got {type(state).__name__}: {hint}")
    state = state._replace(remainder=remainder_of(state))
    algorithm, problem, _ = as_algorithm(
        points,
        state.centroids,
        optimizer=optimizer,
        weights=weights,
        active=active,
        temperature=temperature,
        distance=distance,
        empty=empty,
        block_size=block_size,
        axis_name=axis_name,
    )
    check_state(state, algorithm.optimizer)
    check_replicated(algorithm.plan, problem, state)
    return _update(algorithm, problem, state)


@over_rows(1)
def _update(
    algorithm: Algorithm, problem: Problem, state: State
) -> tuple[State, Statistics]:
    """A step with weights in a unit, and what it finds as the true weights make it."""
    optimizer = algorithm.optimizer
    problem = in_unit(algorithm.plan, problem, state.centroids)
    opt_state = counts_in_unit(optimizer, state.opt_state, problem)
    state, stats, *_ = step(algorithm, problem, state._replace(opt_state=opt_state))
    opt_state = counts_in_true_unit(optimizer, state.opt_state, problem)
    return state._replace(opt_state=opt_state), in_true_unit(stats, problem)


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
    """One step, of a state that has its remainder."""
    plan, empty, old = algorithm.plan, algorithm.empty, state
    state = retracted(problem, state, state)
    c, dtype, active = state.centroids, state.centroids.dtype, problem.active
    problem = at_step(algorithm, problem, state.step)
    problem = problem._replace(remainder=lax.stop_gradient(state.remainder))
    stats = used = statistics_of(plan, problem, c)
    filled, rows, weights = None, c, jnp.zeros_like(stats.counts)
    if empty == "farthest":
        used, filled, rows = fill_farthest(plan, problem, c, stats)
        weights = used.counts  # Of a filled cluster that of its one point.

    def as_optimized(sums: jax.Array) -> jax.Array:
        """As true weights make it, but where a step is the same in every unit."""
        if is_per_count(algorithm.optimizer):
            return sums
        return in_true_unit(sums, problem)

    def value_fn(params: jax.Array, counts: Any = None, shifts: Any = None):
        # Named, because optax passes on only the arguments it finds.
        del counts, shifts
        return as_optimized(total_loss(plan, problem, params).astype(dtype))

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
        rows = rows_of_policy(empty, plan, problem, c, new, counts)
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


def as_algorithm(
    points: ArrayLike,
    centroids: ArrayLike,
    *,
    optimizer: optax.GradientTransformation | None,
    empty: str | EmptyPolicy,
    temperature: Any,
    **of_pass: Any,
) -> tuple[Algorithm, Problem, jax.Array]:
    """The arguments of a step, checked: its algorithm, its problem, the centroids."""
    if not callable(empty) and empty not in ("keep", "farthest"):
        expected = "'keep', 'farthest' or a function"
        raise ValueError(f"empty must be {expected}, got {shown(empty)}")
    if optimizer is None:
        optimizer = newton()
    if not isinstance(optimizer, optax.GradientTransformation):
        hint = ": call it, as newton()" if callable(optimizer) else ""
        expected = f"an optax transformation, got {shown(optimizer)}{hint}"
        raise TypeError(f"optimizer must be {expected}")
    schedule: Any = temperature if callable(temperature) else None
    scalar: Any = None if schedule else temperature
    plan, problem, centroids = as_problem(
        points, centroids, temperature=scalar, **of_pass
    )
    return Algorithm(plan, optimizer, empty, schedule), problem, centroids


def check_state(state: State, optimizer: optax.GradientTransformation) -> None:
    """Raises unless the state is one of the optimizer."""
    expected = jax.tree.structure(jax.eval_shape(optimizer.init, state.centroids))
    found = jax.tree.structure(state.opt_state)
    if expected != found:
        raise ValueError(
            f"state must be of the optimizer given, whose state is {expected}, "
            f"got {found}; to start anew, pass its centroids"
        )
