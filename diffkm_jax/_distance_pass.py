"""The pass of a distance without a rule: autodiff of it at the nearest centroid.

So arrays that the distance closes over have gradients too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import block_for, fill_rows, over_points, psum, rows_of, weigh
from diffkm_jax._geometry import centered, largest, masked, nearest
from diffkm_jax._mesh import vary_as
from diffkm_jax._numerics import quotient
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances import pairwise
from diffkm_jax.distances._pairwise import evaluate


def distance_loss(
    plan: Plan,
    problem: Problem,
    centroids: jax.Array,
    offsets: jax.Array | None = None,
) -> jax.Array:
    """Σ w min_j (distance_ij + offset_j), [], or its free energy."""
    c, m = centered(problem, centroids)
    t = problem.temperature
    offsets = jnp.zeros(len(c), c.dtype) if offsets is None else offsets
    fill = heaviest(problem, m)

    def costs(x: jax.Array) -> jax.Array:
        return (pairwise(x, c, distance=problem.distance) + offsets[None, :]).T

    def held_score(x: jax.Array) -> jax.Array:
        return masked(-lax.stop_gradient(costs(x)), problem.active)

    of_fill = nearest(held_score(fill))

    def hard(x: jax.Array, w: jax.Array | None):
        # Danskin: the derivative of a minimum is that of what attains it, with the
        # label held constant. A derivative of `min` would split ties.
        score = held_score(x)
        label = nearest(score)
        if w is not None:
            least = largest(score)
            x = fill_rows(x, w, least, fill)
            label = jnp.where(jnp.isfinite(least) | (w != 0), label, of_fill)
        own = rows_of(c, label)
        cost = evaluate(problem.distance, x, own) + rows_of(offsets, label)
        return jnp.sum(weigh(w, cost)), None

    def soft(x: jax.Array, w: jax.Array | None):
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

    total, _ = over_points(
        hard if t is None else soft,
        problem,
        plan.block_size or block_for(1, c.size),
        fill,
        squares=False,
        differentiable=True,
    )
    return psum(total, plan.axis_name)


def heaviest(problem: Problem, origin: jax.Array) -> jax.Array:
    """The point of the largest weight, [1, d], or the origin where none has any.

    What stands for rows of weight zero: where distances have derivatives at the data,
    they have them there, and perhaps not at a centroid.
    """
    weights = problem.weights
    i = 0 if weights is None else jnp.argmax(weights)
    point = lax.stop_gradient(problem.points[i][None].astype(origin.dtype))
    return point if weights is None else jnp.where(weights[i] > 0, point, origin)


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


def distance_labels(plan: Plan, problem: Problem, centroids: jax.Array) -> jax.Array:
    """The index of the nearest centroid of every point, [n]."""
    c, m = centered(problem, centroids)

    def block(x: jax.Array, w: jax.Array | None):
        del w
        score = -pairwise(x, c, distance=problem.distance).T
        return (), nearest(masked(score, problem.active))

    block_size = plan.block_size or block_for(1, c.size)
    return over_points(block, problem, block_size, m, squares=False)[1]
