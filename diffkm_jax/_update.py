"""One update: a pass over the points, a step of the optimizer, a policy for the empty.

What is static about it is in `Options`, what is traced in `Data`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import export, lax

from diffkm_jax._checks import accumulation_dtype
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.losses import general_statistics
from diffkm_jax.statistics import Statistics, assign

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, Int

EmptyPolicy = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


class State(NamedTuple):
    """Where a fit stands; with it a fit can go on.

    Attributes:
        centroids: [k, d], in the accumulation dtype, in data units.
        opt_state: The optimizer's own state.
        step: Number of updates so far, [], int32: the argument of a temperature
            schedule.
    """

    centroids: Float[Array, "k d"]
    opt_state: Any
    step: Int[Array, ""]


export.register_namedtuple_serialization(State, serialized_name="diffkm.State")


def seen(centroids: jax.Array, active: jax.Array | None) -> jax.Array:
    """Centroids as an optimizer sees them: zero where inactive, whatever they hold."""
    return centroids if active is None else jnp.where(active[:, None], centroids, 0)


def initial(
    centroids: jax.Array,
    optimizer: optax.GradientTransformation,
    active: jax.Array | None = None,
) -> State:
    """The state of step 0."""
    opt_state = optimizer.init(seen(centroids, active))
    return State(centroids, opt_state, jnp.zeros((), jnp.int32))


class Options(NamedTuple):
    """What is static about a fit; functions count by identity."""

    optimizer: optax.GradientTransformation
    distance: Distance
    empty: str | EmptyPolicy
    schedule: Callable[[jax.Array], ArrayLike] | None
    block_size: int | None
    axis_name: str | None
    derivative: str = "none"


class Data(NamedTuple):
    """What is traced about a fit; `temperature` is None under a schedule."""

    points: jax.Array
    weights: jax.Array | None
    active: jax.Array | None
    temperature: jax.Array | None


def temperature_at(options: Options, data: Data, step: jax.Array) -> jax.Array | None:
    """The temperature of a step, or None for the hard assignment."""
    if options.schedule is None:
        return data.temperature
    dtype = accumulation_dtype(data.points, data.weights)
    return jnp.asarray(options.schedule(step), dtype)


def pass_over(
    options: Options, data: Data, centroids: jax.Array, temperature: jax.Array | None
) -> Statistics:
    """The statistics of the data at some centroids."""
    return general_statistics(
        data.points,
        centroids,
        options.distance,
        weights=data.weights,
        temperature=temperature,
        active=data.active,
        block_size=options.block_size,
        axis_name=options.axis_name,
    )


def step_of(stats: Statistics) -> jax.Array:
    """A full step, shifts_j / counts_j, [k, d]; zero for clusters without weight."""
    counts = stats.counts[:, None]
    positive = counts > 0
    return jnp.where(positive, stats.shifts / jnp.where(positive, counts, 1), 0)


def residual_of(stats: Statistics) -> jax.Array:
    """Σ_j ‖shifts_j / counts_j‖² over clusters with weight: the size of a full step."""
    return jnp.sum(step_of(stats) ** 2)


def one_update(
    options: Options, data: Data, state: State
) -> tuple[State, Statistics, jax.Array]:
    """The state after an update, the statistics before it, and the residual of these.

    A relocation counts as a step in the residual, so that a fit does not end on one.
    """
    c, dtype = state.centroids, state.centroids.dtype
    temperature = temperature_at(options, data, state.step)
    stats = used = pass_over(options, data, c, temperature)
    moved, rows = None, c
    if options.empty == "farthest":
        used, moved, rows = _farthest(options, data, c, temperature, stats)

    def value_fn(params: jax.Array, counts: Any = None) -> jax.Array:
        del counts  # Named, because optax passes on only the arguments it finds.
        return pass_over(options, data, params, temperature).loss.astype(dtype)

    gradient = (-2 * used.shifts).astype(dtype)
    squared = options.distance is squared_euclidean
    # Wrapped here: a wrapper made at every call would be a new program at every call.
    optimizer = optax.with_extra_args_support(options.optimizer)
    visible = seen(c, data.active)
    updates, opt_state = optimizer.update(
        gradient,
        state.opt_state,
        visible,
        counts=used.counts.astype(dtype) if squared else None,
        value=stats.loss.astype(dtype),
        grad=gradient,
        value_fn=value_fn,
    )
    new = jnp.asarray(optax.apply_updates(visible, updates), dtype)
    residual = residual_of(used)
    if callable(options.empty):
        costly, costs, _ = _costliest(options, data, c)
        rows = options.empty(new, stats.counts, costly, costs).astype(dtype)
        if data.active is not None:
            rows = jnp.where(data.active[:, None], rows, new)
        moved = jnp.any(rows != new, axis=1)
        residual += jnp.sum((rows - new).astype(residual.dtype) ** 2)
    if moved is not None:
        rows = lax.stop_gradient(rows.astype(dtype))
        new = jnp.where(moved[:, None], rows, new)
        fresh = optimizer.init(seen(new, data.active))
        opt_state = _forget(opt_state, fresh, moved, c.shape)
    if data.active is not None:
        new = jnp.where(data.active[:, None], new, c)
    return State(new, opt_state, state.step + 1), stats, residual


def _farthest(
    options: Options,
    data: Data,
    c: jax.Array,
    temperature: jax.Array | None,
    stats: Statistics,
) -> tuple[Statistics, jax.Array, jax.Array]:
    """Gives the i-th empty cluster the i-th costliest point, and takes it elsewhere.

    Returns the statistics as if that point had been in the empty cluster, which
    clusters were filled, and their new centroids.
    """
    empty = stats.counts == 0
    if data.active is not None:
        empty &= data.active

    def move() -> tuple[Statistics, jax.Array, jax.Array]:
        rows, costs, weights = _costliest(options, data, c)
        rank = jnp.cumsum(empty) - 1
        i = jnp.clip(rank, 0, len(rows) - 1)
        # A point that costs nothing sits on a centroid: moving it would go on for ever.
        filled = empty & (rank == i) & (costs[i] > 0)
        given = jnp.zeros(len(rows), bool).at[i].max(filled)
        taken = Data(rows, jnp.where(given, weights, 0), data.active, None)
        lost = pass_over(options._replace(axis_name=None), taken, c, temperature)
        one = weights[i].astype(stats.counts.dtype)
        shift = rows[i].astype(stats.shifts.dtype) - c.astype(stats.shifts.dtype)
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


def _costliest(
    options: Options, data: Data, c: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k points of largest cost [k, d], their costs and weights [k].

    Fewer than k, where there are fewer points. A point of weight zero costs −∞.
    """
    distance, axis_name = options.distance, options.axis_name
    x = data.points
    labels = assign(
        x, c, active=data.active, distance=distance, block_size=options.block_size
    )
    costs = distance(x, c[labels])
    n = x.shape[0]
    weights = jnp.ones(n, costs.dtype) if data.weights is None else data.weights
    costs = jnp.where(weights == 0, -jnp.inf, costs)
    costs, index = lax.top_k(costs, min(len(c), n))
    found = x[index], costs, weights[index]
    if axis_name is None:
        return found

    def gather(a: jax.Array) -> jax.Array:
        # By psum, not all_gather, so that the result is the same on every device.
        every = jnp.zeros((lax.axis_size(axis_name), *a.shape), a.dtype)
        mine = every.at[lax.axis_index(axis_name)].set(a)
        return lax.psum(mine, axis_name).reshape(-1, *a.shape[1:])

    rows, costs, weights = jax.tree.map(gather, found)
    costs, index = lax.top_k(costs, min(len(c), len(costs)))
    return rows[index], costs, weights[index]


def _forget(
    opt_state: Any, fresh: Any, moved: jax.Array, shape: tuple[int, ...]
) -> Any:
    """What an optimizer knows of moved rows, as in a fresh state.

    Those of leaves [..., k, d] and of leaves [k] that are called counts.
    """

    def clear(path: tuple, leaf: jax.Array, new: jax.Array) -> jax.Array:
        if leaf.shape[-2:] == shape:
            return jnp.where(moved[:, None], new, leaf)
        counts = isinstance(path[-1], jax.tree_util.GetAttrKey)
        counts = counts and path[-1].name == "counts"
        if counts and leaf.shape == shape[:1]:
            return jnp.where(moved, new, leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(clear, opt_state, fresh)
