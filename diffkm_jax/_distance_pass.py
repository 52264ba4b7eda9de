"""The pass of a distance without a rule: autodiff of it at the nearest centroid.

So arrays that the distance closes over have gradients too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from diffkm_jax._blocks import (
    block_for,
    fill_rows,
    finite_costs,
    gather,
    over_points,
    psum,
    rows_of,
    weigh,
)
from diffkm_jax._expansion import expand
from diffkm_jax._geometry import centered, largest, masked, nearest
from diffkm_jax._mesh import vary_as
from diffkm_jax._numerics import quotient
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._sharding import over_rows
from diffkm_jax._tangents import combine, partition
from diffkm_jax.distances import euclidean, manhattan, pairwise, squared_euclidean
from diffkm_jax.distances._forms import named
from diffkm_jax.distances._pairwise import evaluate


def distance_loss(
    plan: Plan,
    problem: Problem,
    centroids: jax.Array,
    offsets: jax.Array | None = None,
) -> jax.Array:
    """Σ w min_j distance_ij, [], or its free energy, of distances plus offsets.

    Offsets [k] are zeros, or None, and are there to be differentiated in.
    """
    if offsets is None:
        offsets = jnp.zeros(len(centroids), problem.dtype(centroids))
    if problem.temperature is not None:
        return _soft_loss(plan, problem, centroids, offsets)
    if named(problem.distance) in (euclidean, manhattan):
        return _held_loss(plan, problem, centroids, offsets)
    return _hard_loss(plan, problem, centroids, offsets, differentiable=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _held_loss(
    plan: Plan, problem: Problem, centroids: jax.Array, offsets: jax.Array
) -> jax.Array:
    """The hard loss without what autodiff needs; for what closes over nothing."""
    if named(problem.distance) is not manhattan:
        return _hard_loss(plan, problem, centroids, offsets, differentiable=False)
    # Of which the scores are the distances, to their last digit; the offsets are zeros.
    score, size, m = _scores(problem, centroids)

    def block(x: jax.Array, w: jax.Array | None):
        cost = -largest(masked(score(x), problem.active))
        return jnp.sum(weigh(w, finite_costs(cost, w))), None

    size = plan.block_size or size
    return psum(over_points(block, problem, size, m, squares=False)[0], plan.axis_name)


@partial(_held_loss.defjvp, symbolic_zeros=True)
def _held_rule(plan: Plan, primals: tuple, tangents: tuple):
    moving, fixed, dmoving = partition(primals, tangents)

    def loss(moving: tuple) -> jax.Array:
        return _hard_loss(plan, *combine(moving, fixed), differentiable=True)

    return jax.jvp(loss, (moving,), (dmoving,))


def _hard_loss(
    plan: Plan,
    problem: Problem,
    centroids: jax.Array,
    offsets: jax.Array,
    *,
    differentiable: bool,
) -> jax.Array:
    c, origin = centered(problem, centroids)
    # Danskin: the derivative of a minimum is that of what attains it, with the label
    # held constant. A derivative of `min` would split ties. The labels have a pass of
    # their own, which no derivative takes again.
    fill = heaviest(problem, origin)
    labels = distance_labels(plan, problem, centroids, fill)
    alone = problem._replace(points=fill, weights=None)
    of_fill = c[distance_labels(plan, alone, centroids)]

    def block(x: jax.Array, w: jax.Array | None, label: jax.Array):
        # A gather whose derivative is a sum in pieces.
        rows = rows_of if differentiable else _plain_rows
        own = rows(c, label)
        if w is not None:
            least = lax.stop_gradient(evaluate(problem.distance, x, own))
            x = fill_rows(x, w, least, fill)
            own = fill_rows(own, w, least, of_fill)
        cost = evaluate(problem.distance, x, own) + rows(offsets, label)
        return jnp.sum(weigh(w, cost)), None

    size = plan.block_size or block_for(1, c.shape[1])
    total, _ = over_points(
        block,
        problem,
        size,
        fill,
        labels,
        squares=False,
        differentiable=differentiable,
    )
    return psum(total, plan.axis_name)


def _soft_loss(
    plan: Plan, problem: Problem, centroids: jax.Array, offsets: jax.Array
) -> jax.Array:
    c, origin = centered(problem, centroids)
    t, fill = problem.temperature, heaviest(problem, origin)

    def costs(x: jax.Array) -> jax.Array:
        if named(problem.distance) is manhattan:
            return offsets[:, None] - _manhattan_scores(x, c)
        return (pairwise(x, c, distance=problem.distance) + offsets[None, :]).T

    def held_score(x: jax.Array) -> jax.Array:
        return masked(-lax.stop_gradient(costs(x)), problem.active)

    def block(x: jax.Array, w: jax.Array | None):
        if w is not None:
            # In a block without a row of weight zero, nothing is computed twice.
            least = lax.cond(
                jnp.any(w == 0),
                lambda: vary_as(largest(held_score(x)), w),
                lambda: vary_as(jnp.zeros_like(w), x, c, offsets, problem.active),
            )
            x = fill_rows(x, w, least, fill)
        score = masked(-costs(x), problem.active)
        best = lax.stop_gradient(score.max(axis=0))
        best = jnp.where(jnp.isfinite(best), best, 0)
        # Less the best before it is scaled, which may overflow, and out where r = 0.
        gap = score - best[None]
        low = lax.stop_gradient(gap < -1000 * t)
        score = jnp.where(low, -jnp.inf, quotient(jnp.where(low, 0, gap), t))
        free = -(best + t * jax.nn.logsumexp(score, axis=0))
        return jnp.sum(weigh(w, free)), None

    size = plan.block_size or block_for(1, c.size)
    total, _ = over_points(
        block, problem, size, fill, squares=False, differentiable=True
    )
    return psum(total, plan.axis_name)


def _plain_rows(values: jax.Array, label: jax.Array) -> jax.Array:
    return values[label]


def heaviest(problem: Problem, origin: jax.Array) -> jax.Array:
    """The point of the largest weight, [1, d], or the origin where none has any.

    What stands for rows of weight zero: where distances have derivatives at the data,
    they have them there, and perhaps not at a centroid.
    """
    weights = problem.weights
    i = 0 if weights is None else jnp.argmax(weights)
    point = lax.stop_gradient(problem.points[i][None].astype(origin.dtype))
    return point if weights is None else jnp.where(weights[i] > 0, point, origin)


@over_rows(1)
def heaviest_of_all(plan: Plan, problem: Problem, origin: jax.Array) -> jax.Array:
    """The same of the points on all devices."""
    weights, point = problem.weights, heaviest(problem, origin)
    largest = jnp.ones((), origin.dtype) if weights is None else weights.max()
    points, largest = gather((point, largest), plan.axis_name)
    return points[jnp.argmax(largest)]


def distance_sums(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss [], counts [k], and −½ ∂loss/∂centroids [k, d]."""
    acc = problem.dtype(centroids)
    offsets = jnp.zeros(len(centroids), acc)

    def loss(c: jax.Array, offsets: jax.Array) -> jax.Array:
        return distance_loss(plan, problem, c, offsets)

    # The derivative in an offset added to all distances of a cluster is its count.
    value_and_grad = jax.value_and_grad(loss, argnums=(0, 1))
    value, (gradient, counts) = value_and_grad(centroids, offsets)
    return value, counts, -0.5 * gradient.astype(value.dtype)


def distance_labels(
    plan: Plan, problem: Problem, centroids: jax.Array, fill: jax.Array | None = None
) -> jax.Array:
    """The index of the nearest centroid of every point, [n]."""
    problem, centroids, fill = lax.stop_gradient((problem, centroids, fill))
    score, size, m = _scores(problem, centroids)

    def block(x: jax.Array, w: jax.Array | None):
        del w
        return (), nearest(masked(lax.stop_gradient(score(x)), problem.active))

    size, fill = plan.block_size or size, m if fill is None else fill
    return over_points(block, problem, size, fill, squares=False)[1]


def _scores(
    problem: Problem, centroids: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], int, jax.Array]:
    """Scores [k, block] of a block, the nearest largest, its size, and an origin."""
    distance = named(problem.distance)
    if distance is euclidean:
        # The root changes no order: the product of the squared distance finds it.
        squared = problem._replace(distance=Partial(squared_euclidean), remainder=None)
        given = expand(squared, centroids)
        form, (k, d) = given.form, given.rows.shape
        return partial(form.scores, e=given.expansion), block_for(k, d), given.anchor
    c, m = centered(problem, centroids)
    if distance is manhattan:
        return partial(_manhattan_scores, c=c), 512, m
    every = partial(pairwise, distance=problem.distance)
    return lambda x: -every(x, c).T, block_for(1, c.size), m


@jax.custom_jvp
def _manhattan_scores(x: jax.Array, c: jax.Array) -> jax.Array:
    """−Σ |x − c|, [k, block]."""

    def by_cluster(x: jax.Array, c: jax.Array) -> jax.Array:
        # A loop over clusters reads the points of a block from where they are, points
        # on the minor axis, and its body is one vectorized sum. In pieces of at most
        # 32 coordinates, so that the program does not grow with their number.
        (k, d), n = c.shape, x.shape[0]
        pieces = max(1, (d + 31) // 32)
        size = (d + pieces - 1) // pieces
        padding = ((0, 0), (0, pieces * size - d))
        x, c = (jnp.pad(a, padding).T.reshape(pieces, size, len(a)) for a in (x, c))

        def piece(score: jax.Array, parts: tuple) -> tuple[jax.Array, None]:
            x, c = parts

            def cluster(given: tuple) -> jax.Array:
                score, own = given
                return score - sum(jnp.abs(x[i] - own[i]) for i in range(size))

            return lax.map(cluster, (score, c.T)), None

        start = vary_as(jnp.zeros((k, n), x.dtype), x, c)
        return lax.scan(piece, start, (x, c))[0]

    return lax.platform_dependent(x, c, cpu=by_cluster, default=_by_pair)


def _by_pair(x: jax.Array, c: jax.Array) -> jax.Array:
    return -pairwise(x, c, distance=manhattan).T


@_manhattan_scores.defjvp
def _manhattan_rule(primals: tuple, tangents: tuple):
    return _manhattan_scores(*primals), jax.jvp(_by_pair, primals, tangents)[1]
