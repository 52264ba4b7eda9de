"""The distances between all rows of two arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_points_and_centroids, check_callable
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted
from diffkm_jax.distances._distance import Distance
from diffkm_jax.distances._metrics import squared_euclidean

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


@hinted
def pairwise(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    distance: Distance = squared_euclidean,
) -> Float[Array, "n k"]:
    """The distance of every point to every centroid, as one [n, k] array.

    The gradient is that of `distance`. The losses and `assign` never build this array.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        distance: Any function of this module, or of the same form.

    Returns:
        Distances, [n, k], in the unit of `distance`, float64 if either argument is,
        else float32.

    Raises:
        TypeError: `points` or `centroids` is not real, or `distance` no function
            or one that returns no real array.
        ValueError: `points` is not [n, d] or `centroids` not [k, d] with the same d, or
            what `distance` returns has another shape than [...] for two [..., d].

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([[0.0], [10.0]])
        >>> dk.pairwise(x, c, distance=dk.manhattan).tolist()
        [[0.0, 10.0], [1.0, 9.0], [9.0, 1.0]]

    Source: the notation of `scipy.cluster.vq.vq(obs, code_book)`,
        https://docs.scipy.org/doc/scipy/reference/generated/scipy.cluster.vq.vq.html
    """
    points, centroids = as_points_and_centroids(points, centroids)
    check_callable("distance", distance, 2)
    return evaluate(distance, points[:, None, :], centroids[None, :, :])


def evaluate(distance: Distance, x: jax.Array, y: jax.Array) -> jax.Array:
    """The distances of x and y [..., d], [...], checked: floating, float32 or wider."""
    found = _checked(distance(x, y), x, y)
    sizes, d = jnp.broadcast_shapes(x.shape, y.shape), x.shape[-1]
    if len(set(sizes)) < len(sizes):
        # Equal sizes would hide a sum over another axis than the last.
        a = jax.ShapeDtypeStruct((d + 1, 1, d), x.dtype)
        b = jax.ShapeDtypeStruct((1, d + 2, d), y.dtype)
        _checked(jax.eval_shape(distance, a, b), a, b)
    wide = found.dtype == jnp.float64
    return found if wide else found.astype(accumulation_dtype(x, y))


def _checked(found: Any, x: Any, y: Any) -> Any:
    """What a distance returned for x and y, if it is a real array [...]."""
    shape = jnp.broadcast_shapes(x.shape, y.shape)[:-1]
    if not (hasattr(found, "shape") and hasattr(found, "dtype")):
        kind = type(found).__name__
        raise TypeError(f"distance must return an array of shape {shape}, got {kind}")
    if found.shape != shape:
        arguments = f"arguments of shapes {x.shape} and {y.shape}"
        raise ValueError(
            f"distance must return shape {shape} for {arguments}, by a sum over the "
            f"last axis only, got shape {found.shape}"
        )
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise TypeError(f"distance must return a real array, got dtype {found.dtype}")
    return found
