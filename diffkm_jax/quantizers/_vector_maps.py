"""The nearest centroid as a value, with the gradient of straight-through or a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_real, check_shape
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._numerics import polar
from diffkm_jax.assignments._declared import declared, gradient_of

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def straight_through_vector(
    points: Float[ArrayLike, "*batch d"], nearest: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch d"]:
    """The nearest centroid as a value, with the gradient of the point itself.

    The gradient in `points` is the cotangent, as if nothing had been quantized: biased
    by design, reverse mode only. That in `nearest` is zero.

    Args:
        points: Data, [..., d], real, in data units.
        nearest: Its nearest centroids, [..., d], real, in data units.

    Returns:
        Exactly `nearest`, [..., d], in its dtype.

    Raises:
        TypeError: `points` or `nearest` is not real, or forward mode is asked for.
        ValueError: `points` has no coordinate, or `nearest` another shape.

    Example:
        >>> x, q = jnp.array([0.75, 2.5]), jnp.array([1.0, 2.0])
        >>> cost = lambda x: jnp.sum(dk.straight_through_vector(x, q) ** 2)
        >>> float(cost(x)), jax.grad(cost)(x).tolist()  # Those at q.
        (5.0, [2.0, 4.0])

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937
    """
    points, nearest = _as_pair(points, nearest)
    points = points.astype(nearest.dtype)
    return declared(_nearest, gradient_of(_points), points, nearest)


def _points(points: jax.Array, nearest: jax.Array) -> jax.Array:
    del nearest
    return points


def _nearest(points: jax.Array, nearest: jax.Array) -> jax.Array:
    del points
    return nearest


def rotation_trick(
    points: Float[ArrayLike, "*batch d"], nearest: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch d"]:
    """The nearest centroid as a value, with the gradient of a rotation to it.

    The value is the point x, turned and scaled to its centroid q, and the gradient in
    `points` that of this map, held constant. With unit vectors x̂, q̂, r along x̂ + q̂ and
    cotangent g it is ‖q‖/‖x‖ [g − 2 r⟨r, g⟩ + 2 x̂⟨q̂, g⟩]: biased by design, reverse
    mode only. That in `nearest` is zero.

    Where there is no such map, it is g, the straight-through gradient, at x = 0 or
    an x that is not finite; zero at q = 0; and without the term in r, which makes it
    a reflection to the same q, where q̂ = −x̂ to half the digits. The ratio of the norms
    is at most the largest number of its dtype.

    Args:
        points: Data, [..., d], real, in data units.
        nearest: Its nearest centroids, [..., d], real, in data units.

    Returns:
        Exactly `nearest`, [..., d], in its dtype.

    Raises:
        TypeError: `points` or `nearest` is not real, or forward mode is asked for.
        ValueError: `points` has no coordinate, or `nearest` another shape.

    Example:
        >>> x, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
        >>> gradient = jax.grad(lambda x: dk.rotation_trick(x, q)[1])(x)
        >>> np.allclose(gradient, [2.0, 0.0], atol=1e-6)  # From along q to along x.
        True

    Source: Fifty et al. 2024, https://arxiv.org/abs/2410.06424
    """
    return declared(_nearest, _rotated, *_as_pair(points, nearest))


def _rotated(
    cotangent: jax.Array, points: jax.Array, nearest: jax.Array
) -> tuple[jax.Array, None]:
    # Held constant, so that a second derivative goes through the cotangent only.
    points, nearest = lax.stop_gradient((points, nearest))
    dtype = accumulation_dtype(points, nearest)
    ratio, r, x, q = _rotation(points.astype(dtype), nearest.astype(dtype))
    g = cotangent.astype(dtype)
    r_g, q_g = (jnp.sum(a * g, axis=-1, keepdims=True) for a in (r, q))
    return (ratio * (g - 2 * r * r_g + 2 * x * q_g)).astype(points.dtype), None


def _rotation(points: jax.Array, nearest: jax.Array):
    """The factor [..., 1] and the vectors r, x̂, q̂ [..., d] of the map."""
    limits = jnp.finfo(points.dtype)
    x_scale, x_length, x = polar(points)
    q_scale, q_length, q = polar(nearest)
    usable = (x_scale > 0) & jnp.isfinite(x_length)
    x_scale, lengths = jnp.where(usable, x_scale, 1), q_length / x_length
    ratio = q_scale / x_scale
    # A quotient out of range may be times a small one.
    ratio = jnp.where(jnp.isinf(ratio), q_scale * lengths / x_scale, ratio * lengths)
    ratio = jnp.where(usable, jnp.minimum(ratio, limits.max), 1)
    x, q = (jnp.where(usable, a, 0) for a in (x, q))
    squared = jnp.sum((x + q) ** 2, axis=-1, keepdims=True)
    # Nearer to opposite than √ε, rounding would decide where r points.
    dropped = ~usable | (squared < limits.eps)
    r = jnp.where(dropped, 0, (x + q) / jnp.sqrt(jnp.where(dropped, 1, squared)))
    return ratio, r, x, q


def _as_pair(points: ArrayLike, nearest: ArrayLike) -> tuple[jax.Array, jax.Array]:
    points, nearest = as_real("points", points), as_real("nearest", nearest)
    if points.ndim == 0 or points.shape[-1] == 0:
        found = f"got shape {points.shape}"
        raise ValueError(f"points must be [..., d] with d at least 1, {found}")
    layout = f"[..., d] as points {points.shape}"
    check_shape("nearest", nearest, points.shape, layout)
    return points, nearest
