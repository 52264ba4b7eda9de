"""The start by k-means++: rows of the data far from each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import psum
from diffkm_jax._checks import check_integer
from diffkm_jax._geometry import matmul
from diffkm_jax._hints import hinted
from diffkm_jax._mesh import vary_as
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax._sharding import over_rows
from diffkm_jax.distances import squared_euclidean
from diffkm_jax.initializers._rows import as_rows, draw, take, usable_rows

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, PRNGKeyArray


@hinted
def kmeans_plus_plus(
    key: PRNGKeyArray,
    points: Float[ArrayLike, "n d"],
    k: int,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    num_candidates: int | None = None,
    axis_name: Axis = None,
) -> Float[Array, "k d"]:
    """Draws k rows of the data far from each other, by greedy k-means++.

    The first row is drawn in proportion to the weights, each further one in proportion
    to weight times squared distance to the rows chosen so far, as the best of several
    candidates: the one that leaves the smallest loss. The gradient is that of a
    gather: the rows drawn get the cotangent, the weights none.

    Args:
        key: A JAX random key.
        points: Data, [n, d], real, in data units.
        k: Number of centroids, static, at most n.
        weights: Non-negative, [n], any unit; a row of weight 0 is never drawn. None is
            ones.
        num_candidates: Candidates for each row, static; None is 2 + ⌊log k⌋, as in
            scikit-learn; 1 is plain k-means++.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; or
            under `jax.jit`, where an Auto mesh hides it, the `NamedSharding` of points.

    Returns:
        Centroids, [k, d], in the dtype of `points`. Where the data have fewer than k
        different rows, all of them are there and some repeated; rows are the same that
        rounding makes so, where an origin near the data is subtracted. All NaN where
        the sum of their squares is not finite, so that no fit from there passes for
        one: of rows with a weight that are not finite, or in float32 some 10¹⁹/√n
        apart.

    Raises:
        TypeError: `key` is no random key, `points` or `weights` is not real, or `k` or
            `num_candidates` no integer.
        ValueError: A shape does not fit, `k` is below 1 or above n, or
            `num_candidates` is below 1.

    Example:
        >>> x = jnp.array([[0.0], [0.0], [0.0], [9.0]])
        >>> start = dk.kmeans_plus_plus(jax.random.key(0), x, 2)
        >>> sorted(start.tolist())  # No row is drawn again, nor a copy of it.
        [[0.0], [9.0]]

    Source: Arthur & Vassilvitskii 2007,
        https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """
    plan, problem = as_rows(key, points, k, weights, axis_name)
    if num_candidates is None:
        num_candidates = default_candidates(k)
    check_integer("num_candidates", num_candidates, minimum=1)
    return plus_plus(plan, k, num_candidates, key, problem)


def default_candidates(k: int) -> int:
    """Candidates for each row."""
    return 2 + int(math.log(k))


@over_rows(3)
def plus_plus(
    plan: Plan, k: int, num_candidates: int, key: jax.Array, problem: Problem
) -> jax.Array:
    """The rows chosen, [k, d]."""
    axis = plan.axis_name
    x, mass = usable_rows(plan, problem)
    # ‖x_i − x_j‖² = 2 (h_i + h_j − x_i·x_j) with h = ‖x‖²/2: one product for all.
    half = 0.5 * jnp.sum(x * x, axis=1)
    eps = jnp.finfo(x.dtype).eps

    def choose(i: jax.Array, carry: tuple[jax.Array, jax.Array]):
        chosen, closest = carry
        key_i = jax.random.fold_in(key, i)
        candidates = draw(key_i, mass * closest, mass, num_candidates, axis)
        rows = take(x, candidates, axis)
        size = 0.5 * jnp.sum(rows * rows, axis=1)
        cross = matmul(rows, x.T)
        squared = 2 * jnp.maximum(half[None] + size[:, None] - cross, 0)
        # The k-means loss that each candidate would leave; the best of them is taken.
        losses = jnp.sum(mass[None] * jnp.minimum(squared, closest[None]), axis=1)
        first = jnp.argmin(psum(losses, axis))
        # Off by ε (h_i + h_j), which is half of the digits of rows so near.
        near = squared[first] <= jnp.sqrt(eps) * (half + size[first])
        new = lax.cond(
            psum(jnp.sum(near.astype(jnp.int32)), axis) == 1,
            lambda: jnp.where(near, 0, squared[first]),
            # From the differences: exactly zero at copies of a row, never drawn again.
            lambda: squared_euclidean(x, rows[first]),
        )
        chosen = chosen.at[i].set(candidates[first])
        return chosen, jnp.minimum(closest, new)

    first = draw(jax.random.fold_in(key, 0), mass, mass, 1, axis)
    row = take(x, first, axis)[0]
    chosen = vary_as(jnp.zeros(k, jnp.int32).at[0].set(first[0]), row)
    start = chosen, vary_as(squared_euclidean(x, row), chosen)
    chosen, closest = lax.fori_loop(1, k, choose, start)
    rows = take(problem.points, chosen, axis)
    # No square above is more than 4 (h_i + h_j).
    finite = jnp.isfinite(psum(jnp.sum(mass * (closest + 8 * half)), axis))
    return jnp.where(finite, rows, jnp.nan)
