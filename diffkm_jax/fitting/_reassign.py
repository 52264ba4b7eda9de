"""Clusters that have had few points, set to rows of a batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._blocks import gather
from diffkm_jax._checks import as_active, as_array, as_points_and_centroids, as_scalar
from diffkm_jax._hints import hinted, shown
from diffkm_jax._problem import Problem
from diffkm_jax.fitting._empty import is_counts, is_empty, set_rows
from diffkm_jax.fitting._state import State, retracted, where_active
from diffkm_jax.fitting._step import Algorithm, Step, check_state
from diffkm_jax.initializers._rows import take
from diffkm_jax.optimizers import macqueen

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float, Int


@hinted
def reassign(
    points: Float[ArrayLike, "m d"],
    state: State,
    index: Int[ArrayLike, " j"],
    *,
    optimizer: optax.GradientTransformation | None = None,
    ratio: ArrayLike = 0.01,
    min_count: ArrayLike | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
) -> State:
    """Sets clusters that have had few points to rows of a batch.

    Those are the clusters whose running count is below `ratio` times the largest, the
    lowest m/2 of them at most. The i-th takes row `index[i]`, with the smallest running
    count of the others; what an optimizer knows of it else is as at the start. The
    gradient is the identity in the other centroids, and zero in those that are set.

    With a `min_count` it is the clusters whose running count is below that, and they
    begin with twice that: so one that gets no point is set anew after log 2 / (1 − γ)
    steps of `ema(γ)`, 69 at 0.99, and not at once, and one that gets some soon moves.

    Args:
        points: A batch, [m, d], real, in data units.
        state: The `State` after an update by this optimizer.
        index: Rows of the batch, different ones and in random order, [j], integers of
            no unit: `jax.random.permutation(key, m)`. Rows that are not finite are left
            out. Clusters beyond the j-th stay.
        optimizer: One that keeps counts, as `macqueen()`, which None is, or `ema()`.
        ratio: Non-negative scalar, no unit; 0 sets none. Not used with a `min_count`.
        min_count: Non-negative scalar, in the unit of the weights, of a batch for `ema`
            and of all batches for `macqueen`; may be traced; 0 sets none. None is the
            rule of `ratio`.
        active: Clusters that exist, [k], bool; None is all.

    Returns:
        The `State`, of the same step.

    Raises:
        TypeError: An array is not real, `index` no integers, or `state` no `State`.
        ValueError: A shape does not fit, `ratio` or `min_count` is a negative number,
            or the state is not of the optimizer, or has no counts.

    Example:
        >>> x, optimizer = jnp.array([[0.0], [1.0], [9.0]]), dk.macqueen()
        >>> state = dk.init(jnp.array([[3.0], [99.0]]), optimizer=optimizer)
        >>> state, _ = dk.update(x, state, optimizer=optimizer)
        >>> dk.reassign(x, state, jnp.array([2, 0, 1])).centroids[1].tolist()
        [9.0]

    Source: the rule of scikit-learn's MiniBatchKMeans,
        https://scikit-learn.org/stable/modules/clustering.html#mini-batch-kmeans; of
        codebooks Dhariwal et al. 2020, https://arxiv.org/abs/2005.00341
    """
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, as of update, got {shown(state)}")
    optimizer = macqueen() if optimizer is None else optimizer
    points, centroids = as_points_and_centroids(points, state.centroids)
    active = as_active(active, len(centroids))
    index = as_index(index)
    ratio = as_scalar("ratio", ratio, points, centroids, zero=True)
    if min_count is not None:
        min_count = as_scalar("min_count", min_count, points, centroids, zero=True)
    check_state(state, optimizer)
    finite = jnp.isfinite(points).all(axis=1)
    index, number = usable_first(index, finite, len(centroids))
    rows = jnp.where(finite[:, None], points, 0)[index].astype(centroids.dtype)
    given = Rule(ratio, min_count), active, len(points) // 2
    return reassigned(optimizer, state, rows, *given, number)


class Rule(NamedTuple):
    """Which clusters are to be set: by one of the two.

    Attributes:
        ratio: Of their running count to the largest, [].
        min_count: Of it in the unit of the weights, [], or None.
    """

    ratio: Any = None
    min_count: Any = None


def as_index(index: ArrayLike) -> jax.Array:
    """The rows of a batch, checked: integers, [j]."""
    index = as_array("index", index)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim != 1:
        got = f"shape {index.shape}, dtype {index.dtype}"
        raise TypeError(f"index must be integers [j], got {got}")
    return index


def usable_first(
    index: jax.Array, usable: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """The first k rows of an index, and how many of all are usable: those are first.

    The others are as if there were none.
    """
    last = ~usable[index]
    first = index[jnp.argsort(last)[:k]].astype(jnp.int32)
    return first, (~last).sum(dtype=jnp.int32)


@partial(jax.jit, static_argnums=0)
def reassigned(
    optimizer: optax.GradientTransformation,
    state: State,
    rows: jax.Array,
    rule: Rule,
    active: jax.Array | None,
    limit: jax.Array | int,
    usable: jax.Array | None = None,
) -> State:
    """The state with at most `limit` clusters set to the first usable rows, [j, d]."""
    k = len(state.centroids)
    counts = counts_of(state.opt_state, k)
    exists = jnp.ones(k, bool) if active is None else active
    if rule.min_count is None:
        largest = jnp.max(counts, where=exists, initial=0)
        share = rule.ratio.astype(counts.dtype)
        low = exists & (counts < share * largest) & (counts < largest)
    else:
        low = is_below(counts, rule.min_count, active)
    order = jnp.argsort(jnp.where(low, counts, jnp.inf))
    low &= jnp.zeros(k, bool).at[order].set(jnp.arange(k, dtype=jnp.int32) < limit)
    which = jnp.cumsum(low, dtype=jnp.int32) - 1
    low &= which < (len(rows) if usable is None else usable)
    if len(rows) == 0:
        return state
    if rule.min_count is None:
        begin = jnp.min(counts, where=exists & ~low, initial=jnp.inf)
    else:
        begin = 2 * rule.min_count.astype(counts.dtype)
    rows = rows[jnp.clip(which, 0, len(rows) - 1)]
    weights = jnp.full(k, begin)
    return set_rows(low, rows, weights, state, optimizer, active)


def is_below(
    counts: jax.Array, min_count: jax.Array, active: jax.Array | None
) -> jax.Array:
    """Which active clusters have had less, [k]."""
    low = counts < min_count.astype(counts.dtype)
    return where_active(active, low, jnp.zeros_like(low))


def restarted(
    algorithm: Algorithm,
    problem: Problem,
    found: Step,
    min_count: jax.Array,
    index: jax.Array,
) -> Step:
    """A step, with clusters set to rows of its points, of all devices, by an index."""
    axis, active = algorithm.plan.axis_name, problem.active
    dtype, k = found.state.centroids.dtype, len(found.state.centroids)

    def restart() -> State:
        usable = jnp.ones(len(problem.points), bool)
        if problem.weights is not None:
            usable = problem.weights > 0
        usable = gather(usable, axis).reshape(-1)
        chosen, number = usable_first(index, usable, k)
        rows = take(problem.points, chosen, axis).astype(dtype)
        state = reassigned(
            algorithm.optimizer,
            found.state,
            rows,
            Rule(min_count=min_count),
            active,
            usable.sum(dtype=jnp.int32) // 2,
            number,
        )
        return _retracted(problem, state, found.state)

    low = is_below(counts_of(found.state.opt_state, k), min_count, active)
    state = lax.cond(found.finite & low.any(), restart, lambda: found.state)
    return found._replace(state=state)


def _retracted(problem: Problem, state: State, old: State) -> State:
    """The state with the rows that were set where those of its distance are."""
    is_set = jnp.any(state.centroids != old.centroids, axis=1)[:, None]
    state = retracted(problem, state, old)
    c = jnp.where(is_set, state.centroids, old.centroids)
    return state._replace(centroids=c)


def refilled(
    algorithm: Algorithm,
    batch_size: int,
    key: jax.Array,
    batch: Problem,
    before: State,
    found: Step,
    ratio: jax.Array,
) -> Step:
    """A step by a batch, with clusters set to random rows of it where that is due.

    Every 10 k rows, and after a step before which a cluster had had no point.
    """
    axis, k = algorithm.plan.axis_name, len(before.centroids)
    period = -(-10 * k // batch_size)
    due = is_empty(counts_of(before.opt_state, k), batch.active).any()
    due |= (before.step + 1) % period == 0

    def refill() -> State:
        usable = jnp.ones(len(batch.points), bool)
        if batch.weights is not None:
            usable = batch.weights > 0
        usable = gather(usable, axis).reshape(-1)
        limit = len(usable) // 2
        # Of the step after this, and folded once more: no batch is drawn by that.
        key_k = jax.random.fold_in(jax.random.fold_in(key, before.step + 1), k)
        noise = jax.random.uniform(key_k, usable.shape, jnp.float32)
        index = jnp.argsort(jnp.where(usable, noise, 2))[: min(k, limit)]
        rows = take(batch.points, index.astype(jnp.int32), axis)
        given = rows.astype(before.centroids.dtype), Rule(ratio), batch.active
        number = usable.sum(dtype=jnp.int32)
        return reassigned(algorithm.optimizer, found.state, *given, limit, number)

    state = lax.cond(due & found.finite, refill, lambda: found.state)
    return found._replace(state=state)


def counts_of(opt_state: Any, k: int) -> jax.Array:
    """The running counts in the state of an optimizer, [k]."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        if is_counts(path, leaf, k):
            return leaf
    raise ValueError(
        "optimizer must keep running counts for a reassignment, as macqueen() or ema()"
    )
