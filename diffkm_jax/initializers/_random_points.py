"""The start that draws rows of the data in proportion to their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import gather
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted
from diffkm_jax._mesh import index_on, size_of
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax._sharding import over_rows
from diffkm_jax.initializers._rows import as_rows, take

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, PRNGKeyArray


@hinted
def random_points(
    key: PRNGKeyArray,
    points: Float[ArrayLike, "n d"],
    k: int,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    axis_name: Axis = None,
) -> Float[Array, "k d"]:
    """Draws k different rows of the data, in proportion to their weights.

    The gradient is that of a gather: the rows drawn get the cotangent, the weights
    none.

    Args:
        key: A JAX random key.
        points: Data, [n, d], real, in data units.
        k: Number of centroids, static, at most n.
        weights: Non-negative, [n], any unit; a row of weight 0 is never drawn: where
            fewer than k rows have weight, the first one drawn is repeated. None is
            ones.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; or
            under `jax.jit`, where an Auto mesh hides it, the `NamedSharding` of points.

    Returns:
        Centroids, [k, d], in the dtype of `points`; all NaN if a weight is.

    Raises:
        TypeError: `key` is no random key, `points` or `weights` is not real, or `k` no
            integer.
        ValueError: A shape does not fit, or `k` is below 1 or above n.

    Example:
        >>> x, w = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([0.0, 1.0, 1.0])
        >>> start = dk.random_points(jax.random.key(0), x, 2, weights=w)
        >>> sorted(start.tolist())  # The only two rows with a weight.
        [[1.0], [9.0]]

    Source: Forgy 1965; Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489
    """
    plan, problem = as_rows(key, points, k, weights, axis_name)
    return _random_points(plan, k, key, problem)


@over_rows(2)
def _random_points(plan: Plan, k: int, key: jax.Array, problem: Problem) -> jax.Array:
    points, weights, axis = problem.points, problem.weights, plan.axis_name
    m = len(points)
    n = m * size_of(axis)
    if weights is None:
        index = jax.random.choice(key, n, (k,), replace=False).astype(jnp.int32)
        return take(points, index, axis)
    # The k largest of log w + Gumbel noise: k draws without replacement.
    w = weights.astype(accumulation_dtype(weights))
    # In float32 whatever the data are, and of all rows wherever they are, so that a key
    # means the same rows.
    noise = jax.random.gumbel(key, (n,), jnp.float32)
    device = index_on(axis)
    noise = lax.dynamic_slice_in_dim(noise, device * m, m)
    logs = lax.stop_gradient(jnp.log(w)).astype(noise.dtype)
    logits, index = lax.top_k(logs + noise, min(k, m))
    every, rows = gather((logits, index + device * m), axis)
    logits, best = lax.top_k(every.reshape(-1), k)
    index = rows.reshape(-1)[best]
    index = jnp.where(jnp.isfinite(logits), index, index[0])
    failed = gather(jnp.isnan(w).any(), axis).any()
    return jnp.where(failed, jnp.nan, take(points, index, axis))
