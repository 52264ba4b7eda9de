"""The pass of a distance without a rule: autodiff of it at the nearest centroid.

So arrays that the distance closes over have gradients too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import block_for, over_points, psum, weigh
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._geometry import centered, masked, nearest
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances import pairwise


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

    def block(x: jax.Array, w: jax.Array | None):
        costs = pairwise(x, c, distance=plan.distance) + offsets[None, :]
        if t is None:
            score = masked(-lax.stop_gradient(costs).T, problem.active)
            # Danskin: the derivative of a minimum is that of what attains it, with the
            # label held constant. A derivative of `min` would split ties.
            label = nearest(score)
            cost = plan.distance(x, c[label]) + offsets[label]
        else:
            score = masked((-costs / t).T, problem.active)
            cost = -t * jax.nn.logsumexp(score, axis=0)
        return jnp.sum(weigh(w, cost)), None

    block_size = plan.block_size or block_for(1, c.size)
    total, _ = over_points(block, problem, block_size, m, differentiable=True)
    return psum(total, plan.axis_name)


def distance_sums(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss [], counts [k], and −½ ∂loss/∂centroids [k, d]."""
    acc = accumulation_dtype(problem.points, centroids, problem.weights)
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
        score = -pairwise(x, c, distance=plan.distance).T
        return (), nearest(masked(score, problem.active))

    return over_points(block, problem, plan.block_size or block_for(1, c.size), m)[1]
