"""The start by k-means‖: k-means++ in a few passes, for many points and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import psum, sum_by_label
from diffkm_jax._checks import check_block_size, check_integer
from diffkm_jax._hints import hinted
from diffkm_jax._mesh import vary_as
from diffkm_jax._pass import nearest_labels
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax._sharding import over_rows
from diffkm_jax.distances import squared_euclidean
from diffkm_jax.initializers._kmeans_plus_plus import default_candidates, plus_plus
from diffkm_jax.initializers._rows import as_rows, draw, take, usable_rows

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, PRNGKeyArray


@hinted
def kmeans_parallel(
    key: PRNGKeyArray,
    points: Float[ArrayLike, "n d"],
    k: int,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    num_rounds: int = 5,
    oversampling: int | None = None,
    block_size: int | None = None,
    axis_name: Axis = None,
) -> Float[Array, "k d"]:
    """Draws k rows of the data far from each other, by k-means‖.

    Each round draws rows in proportion to weight times squared distance to the rows
    drawn so far, many at once; of all of these, each with the weight of the points that
    are nearest to it, k-means++ draws k. That takes `num_rounds` passes over the points
    where k-means++ takes k, and as many exchanges between devices. Unlike the paper, a
    round draws `oversampling` rows with replacement, and not each row by itself with
    the expected number that many, so that shapes are static. The gradient is that of a
    gather: the rows drawn get the cotangent, the weights none.

    Args:
        key: A JAX random key.
        points: Data, [n, d], real, in data units.
        k: Number of centroids, static, at most n.
        weights: Non-negative, [n], any unit; a row of weight 0 is never drawn. None is
            ones.
        num_rounds: Number of passes, static.
        oversampling: Rows that a round draws, static; None is 2 k.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; or
            under `jax.jit`, where an Auto mesh hides it, the `NamedSharding` of points.

    Returns:
        Centroids, [k, d], in the dtype of `points`; where the rows drawn are fewer than
        k different ones, some are repeated. All NaN where the sum of their squares is
        not finite, as of `kmeans_plus_plus`.

    Raises:
        TypeError: `key` is no random key, `points` or `weights` is not real, or `k`,
            `num_rounds`, `oversampling` or `block_size` no integer.
        ValueError: A shape does not fit, `k` is below 1 or above n, `num_rounds`,
            `oversampling` or `block_size` is below 1, or the rounds draw fewer than k
            rows; or `axis_name` is not an axis of the shard_map around.

    Example:
        >>> x = jnp.array([[0.0], [0.0], [0.0], [9.0]])
        >>> start = dk.kmeans_parallel(jax.random.key(0), x, 2)
        >>> sorted(start.tolist())
        [[0.0], [9.0]]

    Source: Bahmani et al. 2012, https://arxiv.org/abs/1203.6402
    """
    plan, problem = as_rows(key, points, k, weights, axis_name, block_size)
    check_block_size(block_size)
    check_integer("num_rounds", num_rounds, minimum=1)
    oversampling = 2 * k if oversampling is None else oversampling
    check_integer("oversampling", oversampling, minimum=1)
    if num_rounds * oversampling + 1 < k:
        raise ValueError(
            f"oversampling must be such that {num_rounds} rounds draw k = {k} rows or "
            f"more, got {oversampling}"
        )
    return _kmeans_parallel(plan, k, num_rounds, oversampling, key, problem)


@over_rows(4)
def _kmeans_parallel(
    plan: Plan,
    k: int,
    num_rounds: int,
    oversampling: int,
    key: jax.Array,
    problem: Problem,
) -> jax.Array:
    axis = plan.axis_name
    x, mass = usable_rows(plan, problem)
    near = Problem(x, problem.distance)
    index = draw(jax.random.fold_in(key, 0), mass, mass, 1, axis)
    closest = squared_euclidean(x, take(x, index, axis)[0])

    def oversample(carry: tuple[jax.Array, jax.Array], i: jax.Array):
        closest, label = carry
        key_i = jax.random.fold_in(key, i + 1)
        index = draw(key_i, mass * closest, mass, oversampling, axis)
        rows = take(x, index, axis)
        new = nearest_labels(plan, near, rows)
        squared = squared_euclidean(x, rows[new])
        label = jnp.where(squared < closest, 1 + i * oversampling + new, label)
        return (jnp.minimum(closest, squared), label), index

    start = vary_as((closest, jnp.zeros(len(x), jnp.int32)), closest, key)
    rounds = jnp.arange(num_rounds, dtype=jnp.int32)
    (closest, label), drawn = lax.scan(oversample, start, rounds)
    index = jnp.concatenate([index, drawn.reshape(-1)])
    counts = psum(sum_by_label(mass, label, len(index)), axis)
    # Rows that were drawn twice have the weight of one of them.
    candidates = Problem(take(problem.points, index, axis), problem.distance, counts)
    alone = Plan(plan.block_size)
    key = jax.random.fold_in(key, num_rounds + 1)
    chosen = plus_plus(alone, k, default_candidates(k), key, candidates)
    finite = jnp.isfinite(psum(jnp.sum(mass * closest), axis))
    return jnp.where(finite, chosen, jnp.nan)
