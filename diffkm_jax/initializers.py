"""Where a fit starts: rows of the data, drawn at random."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import weigh
from diffkm_jax._checks import as_points, as_weights, check_integer, check_key
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._geometry import anchor, matmul
from diffkm_jax._hints import hinted
from diffkm_jax._mesh import vary_as
from diffkm_jax._numerics import unit_of
from diffkm_jax.distances import squared_euclidean

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["kmeans_plus_plus", "random_points"]


def _checked(
    key: jax.Array, points: ArrayLike, k: int, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array | None]:
    check_key(key)
    points = as_points(points)
    n = len(points)
    check_integer("k", k, minimum=1, maximum=n, why=" (the number of points)")
    return points, as_weights(weights, n)


@hinted
def random_points(
    key: PRNGKeyArray,
    points: Float[ArrayLike, "n d"],
    k: int,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
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
    points, weights = _checked(key, points, k, weights)
    return _random_points(key, points, weights, k)


@partial(jax.jit, static_argnames="k")
def _random_points(
    key: jax.Array, points: jax.Array, weights: jax.Array | None, k: int
) -> jax.Array:
    if weights is None:
        return points[jax.random.choice(key, len(points), (k,), replace=False)]
    # The k largest of log w + Gumbel noise: k draws without replacement.
    w = weights.astype(accumulation_dtype(weights))
    # In float32 whatever the data are, so that a key means the same rows.
    noise = jax.random.gumbel(key, w.shape, jnp.float32)
    logs = lax.stop_gradient(jnp.log(w)).astype(noise.dtype)
    logits, index = lax.top_k(logs + noise, k)
    rows = points[jnp.where(jnp.isfinite(logits), index, index[0])]
    return jnp.where(jnp.isnan(w).any(), jnp.nan, rows)


@hinted
def kmeans_plus_plus(
    key: PRNGKeyArray,
    points: Float[ArrayLike, "n d"],
    k: int,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    num_candidates: int | None = None,
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
    points, weights = _checked(key, points, k, weights)
    if num_candidates is None:
        num_candidates = 2 + int(math.log(k))
    check_integer("num_candidates", num_candidates, minimum=1)
    return _kmeans_plus_plus(key, points, weights, k, num_candidates)


@partial(jax.jit, static_argnames=("k", "num_candidates"))
def _kmeans_plus_plus(
    key: jax.Array,
    points: jax.Array,
    weights: jax.Array | None,
    k: int,
    num_candidates: int,
) -> jax.Array:
    acc = accumulation_dtype(points, weights)
    w = None if weights is None else lax.stop_gradient(weights).astype(acc)
    x = lax.stop_gradient(points).astype(acc)
    if w is None:
        x = x - anchor(x, None)
    else:
        w = w / unit_of(jnp.max(w))
        # A row of weight zero is never drawn, and must not enter whatever it holds.
        x = jnp.where((w > 0)[:, None], x - anchor(x, w > 0), 0)
    # ‖x_i − x_j‖² = 2 (h_i + h_j − x_i·x_j) with h = ‖x‖²/2: one product for all.
    half = 0.5 * jnp.sum(x * x, axis=1)
    mass = jnp.ones(len(x), acc) if w is None else w
    eps = jnp.finfo(acc).eps

    def draw(key: jax.Array, potential: jax.Array, num: int) -> jax.Array:
        """Rows in proportion to their potential, or to their weight if all is 0."""
        potential = jnp.where(potential.sum() > 0, potential, mass)
        cumulative = jnp.cumsum(potential)
        # In float32 here too.
        u = jax.random.uniform(key, (num,), jnp.float32).astype(acc) * cumulative[-1]
        index = jnp.searchsorted(cumulative, u, side="right").astype(jnp.int32)
        index = jnp.minimum(index, len(x) - 1)
        # Rounding in the sums must not choose a row of weight zero.
        usable = potential[index] > 0

        def others() -> jax.Array:
            return jnp.where(usable, index, jnp.argmax(potential).astype(jnp.int32))

        return lax.cond(usable.all(), lambda: index, others)

    def choose(i: jax.Array, carry: tuple[jax.Array, jax.Array]):
        chosen, closest = carry
        candidates = draw(jax.random.fold_in(key, i), weigh(w, closest), num_candidates)
        cross = matmul(x[candidates], x.T)
        squared = 2 * jnp.maximum(half[None] + half[candidates][:, None] - cross, 0)
        # The k-means loss that each candidate would leave; the best of them is taken.
        losses = jnp.sum(mass[None] * jnp.minimum(squared, closest[None]), axis=1)
        first = jnp.argmin(losses)
        best = candidates[first]
        # Off by ε (h_i + h_j), which is half of the digits of rows so near.
        near = squared[first] <= jnp.sqrt(eps) * (half + half[best])
        new = lax.cond(
            jnp.sum(near.astype(jnp.int32)) == 1,
            lambda: jnp.where(near, 0, squared[first]),
            # From the differences: exactly zero at copies of a row, never drawn again.
            lambda: squared_euclidean(x, x[best]),
        )
        return chosen.at[i].set(best), jnp.minimum(closest, new)

    first = draw(jax.random.fold_in(key, 0), mass, 1)[0]
    chosen = jnp.zeros(k, jnp.int32).at[0].set(first)
    closest = squared_euclidean(x, x[first])
    start = vary_as((chosen, closest), key, x, mass)
    rows = points[lax.fori_loop(1, k, choose, start)[0]]
    # No square above is more than 4 (h_i + h_j).
    finite = jnp.isfinite(jnp.sum(mass * (closest + 8 * half)))
    return jnp.where(finite, rows, jnp.nan)
