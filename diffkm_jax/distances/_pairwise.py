"""The distances between all rows of two arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkm_jax._checks import as_points_and_centroids, check_callable
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
        TypeError: `points` or `centroids` is not real, or `distance` no function.
        ValueError: `points` is not [n, d] or `centroids` not [k, d] with the same d.

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([[0.0], [10.0]])
        >>> dk.pairwise(x, c, distance=dk.manhattan).tolist()
        [[0.0, 10.0], [1.0, 9.0], [9.0, 1.0]]

    Source: the notation of `scipy.cluster.vq.vq(obs, code_book)`,
        https://docs.scipy.org/doc/scipy/reference/generated/scipy.cluster.vq.vq.html
    """
    points, centroids = as_points_and_centroids(points, centroids)
    check_callable("distance", distance)
    return distance(points[:, None, :], centroids[None, :, :])
