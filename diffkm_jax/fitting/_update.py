"""One update: the checks of a step, and the step in the unit of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import optax

from diffkm_jax._checks import as_scalar
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted, shown
from diffkm_jax._problem import Axis, Problem
from diffkm_jax._sharding import check_replicated, over_rows
from diffkm_jax._statistics import Statistics
from diffkm_jax._units import in_true_unit, in_unit
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting._empty import EmptyPolicy
from diffkm_jax.fitting._reassign import as_index, counts_of, restarted
from diffkm_jax.fitting._state import State, remainder_of
from diffkm_jax.fitting._step import Algorithm, Step, check_state, step
from diffkm_jax.fitting._units import counts_in_true_unit, counts_in_unit
from diffkm_jax.optimizers import newton

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float, Int


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
    min_count: ArrayLike | None = None,
    index: Int[ArrayLike, " j"] | None = None,
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
        min_count: Non-negative scalar, in the unit of the weights, may be traced: after
            the step, clusters whose running count is below it are set to rows of the
            batch as `reassign` does it, but never to one of weight 0, of which none is
            counted in m either; for an optimizer that counts. None sets none.
        index: Rows of the batch (of all devices) for that, different ones and in random
            order, [j], integers of no unit: `jax.random.permutation(key, n)`.
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
            needs counts, as `newton` and `macqueen` do; there is one of `min_count` and
            `index` without the other, or both for an optimizer that keeps no counts;
            `min_count` is a negative number; `points` is a NumPy array with
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
    restart = _as_restart(min_count, index, problem, state)
    check_replicated(algorithm.plan, problem, (state, restart))
    found = updated(algorithm, problem, state, restart)
    return found.state, found.stats


def _as_restart(
    min_count: ArrayLike | None,
    index: ArrayLike | None,
    problem: Problem,
    state: State,
) -> tuple[jax.Array, jax.Array] | None:
    """Both arguments, checked, or None."""
    if index is None and min_count is None:
        return None
    if index is None:
        raise ValueError("index must be given with min_count, got None")
    if min_count is None:
        raise ValueError("min_count must be given with index, got None")
    counts_of(state.opt_state, len(state.centroids))
    given = min_count, problem.points, problem.weights, state.centroids
    return as_scalar("min_count", *given, zero=True), as_index(index)


@over_rows(1)
def updated(
    algorithm: Algorithm,
    problem: Problem,
    state: State,
    restart: tuple[jax.Array, jax.Array] | None = None,
) -> Step:
    """A step with weights in a unit, and what it finds as the true weights make it."""
    optimizer = algorithm.optimizer
    problem = in_unit(algorithm.plan, problem, state.centroids)
    opt_state = counts_in_unit(optimizer, state.opt_state, problem)
    found = step(algorithm, problem, state._replace(opt_state=opt_state))
    opt_state = counts_in_true_unit(optimizer, found.state.opt_state, problem)
    found = found._replace(
        state=found.state._replace(opt_state=opt_state),
        stats=in_true_unit(found.stats, problem),
    )
    return found if restart is None else restarted(algorithm, problem, found, *restart)


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
