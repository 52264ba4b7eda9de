"""Distances between vectors, elementwise over the last axis, safe where they vanish.

All of them broadcast like `x - y`, accumulate in float32 or wider, return that dtype,
and have finite gradients of every order at x = y. Arguments and errors are the same
for each, and listed once, in `squared_euclidean`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import (
    accumulation_dtype,
    as_points_and_centroids,
    check_callable,
    check_floating,
    check_shape,
)

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float

__all__ = [
    "Distance",
    "cosine",
    "euclidean",
    "itakura_saito",
    "kl_divergence",
    "mahalanobis",
    "manhattan",
    "pairwise",
    "squared_euclidean",
]


class Distance(Protocol):
    """A function of two arrays [..., d] that returns distances [...]."""

    def __call__(self, x: ArrayLike, y: ArrayLike, /) -> jax.Array:
        """The distance of `x` and `y` over the last axis."""
        ...


def _operands(x: ArrayLike, y: ArrayLike) -> tuple[jax.Array, jax.Array]:
    x, y = jnp.asarray(x), jnp.asarray(y)
    check_floating("x", x)
    check_floating("y", y)
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1]:
        shapes = f"{x.shape} and {y.shape}"
        raise ValueError(f"x and y must share their last axis d, got shapes {shapes}")
    dtype = accumulation_dtype(x, y)
    try:
        shape = jnp.broadcast_shapes(x.shape, y.shape)
    except ValueError as error:
        shapes = f"{x.shape} and {y.shape}"
        raise ValueError(f"x and y must broadcast, got shapes {shapes}") from error
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)


def _safe_sqrt(squared: jax.Array) -> jax.Array:
    """The square root with gradient 0 at 0, where the true one is infinite."""
    positive = squared > 0
    root = jnp.sqrt(jnp.where(positive, squared, 1))
    # NaN is not positive either, and must not become 0.
    return jnp.where(positive, root, lax.stop_gradient(squared))


def squared_euclidean(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The squared Euclidean distance, Σ (x − y)², from the differences themselves.

    The gradient is 2 (x − y) in `x` and its negative in `y`.

    Args:
        x: Vectors, [..., d], floating, in data units.
        y: Vectors, [..., d], floating, in data units; broadcasts against `x`.

    Returns:
        Distances, [...], in squared data units, float64 if either argument is, else
        float32.

    Raises:
        TypeError: `x` or `y` is not floating.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([3.0, 4.0]), jnp.zeros(2)
        >>> value, gradient = jax.value_and_grad(dk.squared_euclidean)(x, y)
        >>> float(value), gradient.tolist()
        (25.0, [6.0, 8.0])

    Source: Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489
    """
    x, y = _operands(x, y)
    return jnp.sum((x - y) ** 2, axis=-1)


def euclidean(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The Euclidean distance, ‖x − y‖.

    The gradient is the unit vector (x − y)/‖x − y‖ in `x` and its negative in `y`;
    at x = y, where there is none, it is zero.

    Args:
        x: Vectors, [..., d], floating, in data units.
        y: Vectors, [..., d], floating, in data units; broadcasts against `x`.

    Returns:
        Distances, [...], in data units, float64 if either argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not floating.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> points = jnp.array([[0.0, 2.0], [0.0, 0.0]])  # The second is at y.
        >>> slope = jax.grad(lambda x: jnp.sum(dk.euclidean(x, jnp.zeros(2))))
        >>> slope(points).tolist()
        [[0.0, 1.0], [0.0, 0.0]]

    Source: Bradley, Mangasarian & Street 1996, on clustering by sums of norms,
        https://proceedings.neurips.cc/paper_files/paper/1996/hash/f4573fc71c731d5c362f0d7860945b88-Abstract.html
    """
    return _safe_sqrt(squared_euclidean(x, y))


def manhattan(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The Manhattan or L1 distance, Σ |x − y|.

    The gradient is sign(x − y) in `x` and its negative in `y`; it is zero in a
    coordinate in which the two are equal.

    Args:
        x: Vectors, [..., d], floating, in data units.
        y: Vectors, [..., d], floating, in data units; broadcasts against `x`.

    Returns:
        Distances, [...], in data units, float64 if either argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not floating.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([3.0, -4.0, 0.0]), jnp.zeros(3)
        >>> value, gradient = jax.value_and_grad(dk.manhattan)(x, y)
        >>> float(value), gradient.tolist()
        (7.0, [1.0, -1.0, 0.0])

    Source: Bradley, Mangasarian & Street 1996 (k-medians),
        https://proceedings.neurips.cc/paper_files/paper/1996/hash/f4573fc71c731d5c362f0d7860945b88-Abstract.html
    """
    x, y = _operands(x, y)
    difference = x - y
    # Not abs: its gradient at 0 is 1 here and 0 in torch.
    return jnp.sum(difference * lax.stop_gradient(jnp.sign(difference)), axis=-1)


def cosine(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The cosine distance, 1 − x·y / (‖x‖ ‖y‖).

    The gradient in `x` is −(ŷ − (x̂·ŷ) x̂)/‖x‖ with unit vectors x̂, ŷ, and likewise
    in `y`. A zero vector has distance 1 to everything, and gradient zero.

    Args:
        x: Vectors, [..., d], floating, any unit.
        y: Vectors, [..., d], floating, any unit; broadcasts against `x`.

    Returns:
        Distances, [...], between 0 and 2 up to rounding, no unit, float64 if either
        argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not floating.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> y = jnp.array([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> dk.cosine(jnp.array([2.0, 0.0]), y).tolist()  # Lengths do not matter.
        [0.0, 1.0, 2.0]

    Source: Dhillon & Modha 2001 (spherical k-means),
        https://doi.org/10.1023/A:1007612920971
    """
    x, y = _operands(x, y)
    return 1 - jnp.sum(_unit(x) * _unit(y), axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    # In units of its largest entry, whose square neither overflows nor underflows.
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(largest == 0, 1, largest)
    norm = _safe_sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    zero = norm == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, norm))


def kl_divergence(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The generalized Kullback–Leibler divergence, Σ x log(x/y) − x + y.

    On probability vectors it is the Kullback–Leibler divergence of `x` from `y`, in
    nats. The gradient is log(x/y) in `x` and 1 − x/y in `y`; a coordinate with x = 0
    contributes y, and its gradient in `x` (truly −∞) is zero.

    Args:
        x: Non-negative vectors, [..., d], floating, any unit; the points.
        y: Positive vectors, [..., d], floating, in the unit of `x`; the centroids.

    Returns:
        Divergences, [...], in nats times the unit of `x`, float64 if either argument
        is, else float32; infinite where y = 0 < x.

    Raises:
        TypeError: `x` or `y` is not floating.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
        >>> print(f"{dk.kl_divergence(x, y):.3f}")  # log 2
        0.693
        >>> jax.grad(dk.kl_divergence, argnums=1)(x, y).tolist()
        [-1.0, 1.0]

    Source: Banerjee et al. 2005, https://jmlr.org/papers/v6/banerjee05b.html
    """
    x, y = _operands(x, y)
    positive = x > 0
    safe_x = jnp.where(positive, x, 1)
    safe_y = jnp.where(positive, y, 1)
    present = safe_x * (jnp.log(safe_x) - jnp.log(safe_y)) - safe_x + safe_y
    # A NaN in x is not positive: x − x keeps it, and is 0 with gradient 0 otherwise.
    return jnp.sum(jnp.where(positive, present, y + (x - x)), axis=-1)


def itakura_saito(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The Itakura–Saito divergence, Σ x/y − log(x/y) − 1.

    The gradient is 1/y − 1/x in `x` and (y − x)/y² in `y`.

    Args:
        x: Positive vectors, [..., d], floating, any unit; the points (power spectra).
        y: Positive vectors, [..., d], floating, in the unit of `x`; the centroids.

    Returns:
        Divergences, [...], no unit, float64 if either argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not floating.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([[2.0], [200.0]]), jnp.array([[1.0], [100.0]])
        >>> [f"{v:.3f}" for v in dk.itakura_saito(x, y)]  # 1 - log 2, at any scale
        ['0.307', '0.307']

    Source: Banerjee et al. 2005, https://jmlr.org/papers/v6/banerjee05b.html
    """
    x, y = _operands(x, y)
    return jnp.sum(x / y - (jnp.log(x) - jnp.log(y)) - 1, axis=-1)


def mahalanobis(precision: Float[ArrayLike, "d d"]) -> Distance:
    """Makes the squared Mahalanobis distance, (x − y)ᵀ P (x − y), of a precision P.

    The gradient is (P + Pᵀ)(x − y) in `x`, its negative in `y`, and the outer product
    of x − y with itself in `precision`, which may be traced. Each call makes a new
    function, and functions are static by identity: build it once and keep it.

    Args:
        precision: The inverse covariance P, [d, d], floating, in inverse squared data
            units; positive semi-definite for a distance.

    Returns:
        A function of x, y [..., d] that returns distances [...], no unit, and raises
        what `squared_euclidean` raises.

    Raises:
        TypeError: `precision` is not floating.
        ValueError: `precision` is not square, or does not fit the vectors it is given.

    Example:
        >>> distance = dk.mahalanobis(jnp.diag(jnp.array([1.0, 0.25])))
        >>> x, c = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros((1, 2))
        >>> distance(x, c).tolist(), float(dk.kmeans_loss(x, c, distance=distance))
        ([1.0, 1.0], 2.0)

    Source: Mahalanobis 1936; Xing et al. 2002 (learning P for clustering),
        https://proceedings.neurips.cc/paper/2002/hash/c3e4035af2a1cde9f21e1ae1951ac80b-Abstract.html
    """
    precision = jnp.asarray(precision)
    check_floating("precision", precision)
    d = precision.shape[0] if precision.ndim else 0
    check_shape("precision", precision, (d, d), "square, [d, d]")

    def squared_mahalanobis(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
        """The squared Mahalanobis distance of `x` and `y`, [...]."""
        x, y = _operands(x, y)
        if x.shape[-1] != d:
            found = f"{precision.shape} for vectors of size {x.shape[-1]}"
            raise ValueError(f"precision must be [d, d], got shape {found}")
        dtype = accumulation_dtype(x, precision)
        e = (x - y).astype(dtype)
        product = jnp.matmul(
            e, precision.astype(dtype), precision=lax.Precision.HIGHEST
        )
        return jnp.sum(product * e, axis=-1)

    return squared_mahalanobis


def pairwise(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    distance: Distance = squared_euclidean,
) -> Float[Array, "n k"]:
    """The distance of every point to every centroid, as one [n, k] array.

    The gradient is that of `distance`. The losses and `assign` never build this array.

    Args:
        points: Data, [n, d], floating, in data units.
        centroids: Centroids, [k, d], floating, in data units.
        distance: Any function of this module, or of the same form.

    Returns:
        Distances, [n, k], in the unit of `distance`, float64 if either argument is,
        else float32.

    Raises:
        TypeError: `points` or `centroids` is not floating, or `distance` no function.
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
