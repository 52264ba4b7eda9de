"""Clusters without weight: where they are set, and what the optimizer then knows.

Two policies. `"farthest"` acts before the optimizer, on the statistics, so that the
cluster that loses a point loses it in the same step. A function acts after the
optimizer, on the new centroids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._blocks import gather
from diffkm_jax._pass import nearest_labels
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._statistics import Statistics, statistics_of
from diffkm_jax.distances._forms import embedded
from diffkm_jax.fitting._state import State, remainder_of, where_active, zero_inactive

EmptyPolicy = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


class Costliest(NamedTuple):
    """Points in the order of their costs, the largest first.

    Attributes:
        rows: [m, d].
        costs: [m], −∞ for a point of weight zero.
        weights: [m].
    """

    rows: jax.Array
    costs: jax.Array
    weights: jax.Array


def is_empty(counts: jax.Array, active: jax.Array | None) -> jax.Array:
    """Which active clusters have no weight, [k]."""
    return where_active(active, counts == 0, jnp.zeros_like(counts, bool))


def fill_farthest(
    plan: Plan,
    problem: Problem,
    c: jax.Array,
    stats: Statistics,
    costly: Callable[[], Costliest],
) -> tuple[Statistics, jax.Array, jax.Array]:
    """Gives the i-th empty cluster the i-th costliest point, and takes it elsewhere.

    Returns the statistics as if that point had been in the empty cluster, which
    clusters were filled, and their new centroids.
    """
    empty = is_empty(stats.counts, problem.active)

    def move() -> tuple[Statistics, jax.Array, jax.Array]:
        rows, costs, weights = costly()
        rank = jnp.cumsum(empty) - 1
        i = jnp.clip(rank, 0, len(rows) - 1)
        # A point that costs nothing sits on a centroid: moving it would go on for ever.
        filled = empty & (rank == i) & (costs[i] > 0)
        given = jnp.zeros(len(rows), bool).at[i].max(filled)
        moved = problem._replace(points=rows, weights=jnp.where(given, weights, 0))
        # Every device has all the rows already: no sum over the mesh.
        lost = statistics_of(plan._replace(axis_name=None), moved, c)
        # A cluster of one point of weight w: n = w, u = w (x − c).
        acc = stats.shifts.dtype
        one = weights[i].astype(acc)
        rows = embedded(problem.distance, rows.astype(acc))
        shift = rows[i] - embedded(problem.distance, c.astype(acc))
        shift -= problem.remainder.astype(acc)
        left = stats.counts - lost.counts
        # Rounding must not pass for weight in a cluster that gave all it had.
        left = jnp.where(left > 8 * jnp.finfo(left.dtype).eps * stats.counts, left, 0)
        counts = jnp.where(filled, one, left)
        shifts = jnp.where(
            filled[:, None], one[:, None] * shift, stats.shifts - lost.shifts
        )
        return Statistics(stats.loss, counts, shifts), filled, rows[i].astype(c.dtype)

    def keep() -> tuple[Statistics, jax.Array, jax.Array]:
        return stats, jnp.zeros_like(empty), c

    return lax.cond(empty.any(), move, keep)


def rows_of_policy(
    policy: EmptyPolicy,
    costly: Costliest,
    new: jax.Array,
    counts: jax.Array,
    active: jax.Array | None,
) -> jax.Array:
    """The centroids that a function of the new ones, [k, d], makes of them.

    The costliest points that it is shown are those before the step.
    """
    rows = policy(new, counts, costly.rows, costly.costs).astype(new.dtype)
    return where_active(active, rows, new)


def costliest(plan: Plan, problem: Problem, c: jax.Array) -> Costliest:
    """The k points of largest cost; fewer, where there are fewer points."""
    x, n = problem.points, problem.points.shape[0]
    costs = problem.distance(x, c[nearest_labels(plan, problem, c)])
    weights = problem.weights
    weights = jnp.ones(n, costs.dtype) if weights is None else weights
    costs = jnp.where(weights == 0, -jnp.inf, costs)
    # Before any mesh: no device has more than k of the k costliest points.
    costs, index = lax.top_k(costs, min(len(c), n))
    found = Costliest(x[index], costs, weights[index])
    if plan.axis_name is None:
        return found
    every = gather(found, plan.axis_name)
    every = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), every)
    return costliest_of(every, len(c))


def costliest_of(found: Costliest, k: int) -> Costliest:
    """The k of largest cost, at most, of those found."""
    costs, index = lax.top_k(found.costs, min(k, len(found.costs)))
    return Costliest(found.rows[index], costs, found.weights[index])


def is_counts(path: tuple, leaf: jax.Array, k: int) -> bool:
    """Whether a leaf of an optimizer's state is the running counts, [k]."""
    name = getattr(path[-1], "name", None) if path else None
    return name == "counts" and jnp.shape(leaf) == (k,)


def set_rows(
    filled: jax.Array,
    rows: jax.Array,
    weights: jax.Array,
    state: State,
    optimizer: optax.GradientTransformation,
    active: jax.Array | None,
) -> State:
    """The state with the filled rows set, held constant, and forgotten by optimizers.

    What an optimizer knows of a row is in leaves [..., k, d]: there it is as in a fresh
    state. And in leaves [k] that are called counts: there it is the weight of the point
    that the row was set to, which the next batch is to be averaged with.
    """
    c, shape = state.centroids, state.centroids.shape
    on = filled[:, None]
    c = jnp.where(on, lax.stop_gradient(rows.astype(c.dtype)), c)

    def forget(path: tuple, leaf: jax.Array, fresh: jax.Array) -> jax.Array:
        if leaf.shape[-2:] == shape:
            return jnp.where(on, fresh, leaf)
        if is_counts(path, leaf, shape[0]):
            return jnp.where(filled, weights.astype(leaf.dtype), leaf)
        return leaf

    fresh = optimizer.init(zero_inactive(c, active))
    opt_state = jax.tree_util.tree_map_with_path(forget, state.opt_state, fresh)
    remainder = jnp.where(on, 0, remainder_of(state))
    return state._replace(centroids=c, opt_state=opt_state, remainder=remainder)
