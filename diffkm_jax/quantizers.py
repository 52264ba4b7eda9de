"""Vector quantization: the nearest centroid as a value, with a declared gradient.

The nearest centroid of a point is constant between ties, so that a loss of it tells an
encoder nothing. `quantize` takes the rule that puts a gradient there as a function;
what moves the centroids is their own loss, which is k-means'.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from diffkm_jax._blocks import fill_inert, weigh
from diffkm_jax._checks import as_problem, check_callable, check_floating, check_shape
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._geometry import centered
from diffkm_jax._pass import hard_pass
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances import squared_euclidean

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["Quantized", "nsvq", "quantize", "rotation_trick", "straight_through_vector"]

Method = Callable[[jax.Array, jax.Array], jax.Array]


class Quantized(NamedTuple):
    """Points replaced by values of a codebook, and the losses that train it.

    Both losses have the value of `kmeans_loss`, and sum over the points.

    Attributes:
        values: What stands for the points, [n, d], in data units.
        labels: Index of the nearest centroid, [n], int32.
        codebook_loss: Σ w ‖x − c‖², [], in squared data units; its gradient moves the
            centroids and not the points.
        commitment_loss: The same, []; its gradient moves the points and not the
            centroids.
    """

    values: Float[Array, "n d"]
    labels: Int[Array, " n"]
    codebook_loss: Float[Array, ""]
    commitment_loss: Float[Array, ""]


export.register_namedtuple_serialization(Quantized, serialized_name="diffkm.Quantized")


def straight_through_vector(
    points: Float[ArrayLike, "*batch d"], nearest: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch d"]:
    """The nearest centroid as a value, with the gradient of the point itself.

    The gradient in `points` is the cotangent, as if nothing had been quantized: biased
    by design, reverse mode only. That in `nearest` is zero.

    Args:
        points: Data, [..., d], floating, in data units.
        nearest: Its nearest centroids, [..., d], floating, in data units.

    Returns:
        Exactly `nearest`, [..., d], in its dtype.

    Raises:
        TypeError: `points` or `nearest` is not floating, or forward mode is asked for.
        ValueError: `points` has no coordinate, or `nearest` another shape.

    Example:
        >>> x, q = jnp.array([0.75, 2.5]), jnp.array([1.0, 2.0])
        >>> cost = lambda x: jnp.sum(dk.straight_through_vector(x, q) ** 2)
        >>> float(cost(x)), jax.grad(cost)(x).tolist()  # Those at q.
        (5.0, [2.0, 4.0])

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937
    """
    points, nearest = _as_pair(points, nearest)
    return _straight_through(points.astype(nearest.dtype), nearest)


@jax.custom_vjp
def _straight_through(points: jax.Array, nearest: jax.Array) -> jax.Array:
    del points  # The value does not depend on it.
    return nearest


def _straight_through_forward(points: jax.Array, nearest: jax.Array):
    # The decorated function, so that a second derivative meets the rule again.
    return _straight_through(points, nearest), None


def _straight_through_backward(_: None, cotangent: jax.Array):
    return cotangent, None


_straight_through.defvjp(_straight_through_forward, _straight_through_backward)


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
        points: Data, [..., d], floating, in data units.
        nearest: Its nearest centroids, [..., d], floating, in data units.

    Returns:
        Exactly `nearest`, [..., d], in its dtype.

    Raises:
        TypeError: `points` or `nearest` is not floating, or forward mode is asked for.
        ValueError: `points` has no coordinate, or `nearest` another shape.

    Example:
        >>> x, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
        >>> gradient = jax.grad(lambda x: dk.rotation_trick(x, q)[1])(x)
        >>> np.allclose(gradient, [2.0, 0.0], atol=1e-6)  # From along q to along x.
        True

    Source: Fifty et al. 2024, https://arxiv.org/abs/2410.06424
    """
    return _rotate(*_as_pair(points, nearest))


@jax.custom_vjp
def _rotate(points: jax.Array, nearest: jax.Array) -> jax.Array:
    del points
    return nearest


def _rotate_forward(points: jax.Array, nearest: jax.Array):
    return _rotate(points, nearest), (points, nearest)


def _rotate_backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    # Held constant, so that a second derivative goes through the cotangent only.
    points, nearest = lax.stop_gradient(residuals)
    dtype = accumulation_dtype(points, nearest)
    ratio, r, x, q = _rotation(points.astype(dtype), nearest.astype(dtype))
    g = cotangent.astype(dtype)
    r_g, q_g = (jnp.sum(a * g, axis=-1, keepdims=True) for a in (r, q))
    return (ratio * (g - 2 * r * r_g + 2 * x * q_g)).astype(points.dtype), None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def _rotation(points: jax.Array, nearest: jax.Array):
    """The factor [..., 1] and the vectors r, x̂, q̂ [..., d] of the map."""
    limits = jnp.finfo(points.dtype)
    x_scale, x_length, x = _polar(points)
    q_scale, q_length, q = _polar(nearest)
    usable = (x_scale > 0) & jnp.isfinite(x_length)
    ratio = q_scale / jnp.where(usable, x_scale, 1) * (q_length / x_length)
    ratio = jnp.where(usable, jnp.minimum(ratio, limits.max), 1)
    x = jnp.where(usable, x, 0)
    squared = jnp.sum((x + q) ** 2, axis=-1, keepdims=True)
    # Nearer to opposite than √ε, rounding would decide where r points.
    dropped = ~usable | (squared < limits.eps)
    r = jnp.where(dropped, 0, (x + q) / jnp.sqrt(jnp.where(dropped, 1, squared)))
    return ratio, r, x, q


def _polar(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The norm of x as a product of two, [..., 1], and its direction, [..., d].

    The first is about the largest entry, in whose units squares neither overflow nor
    underflow. Norm, direction and their gradients are zero at zero.
    """
    tiny = float(jnp.finfo(x.dtype).tiny)
    scale = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    zero = scale < tiny
    # A division is by the reciprocal, which must not underflow either.
    scale = jnp.minimum(scale, 0.25 / tiny)
    x = jnp.where(zero, 0, x / jnp.where(zero, 1, scale))
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(zero, 1, squared))
    return jnp.where(zero, 0, scale), length, x / length


def quantize(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    method: Method = straight_through_vector,
    weights: Float[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Replaces every point by its nearest centroid, with the gradient of a method.

    The gradient of the values in `points` is that of `method`, and in `centroids`
    zero. Those of the losses are exact: the one in the centroids of `codebook_loss` is
    that of `kmeans_loss`, 2 n_j (c_j − mean of cluster j); the one in the points of
    `commitment_loss` is 2 w (x − c); both have ‖x − c‖² in the weights. A VQ-VAE adds
    to its own loss both, the second times a factor.

    Args:
        points: Data, [n, d], floating, in data units.
        centroids: Centroids, [k, d], floating, in data units.
        method: Function of points and their nearest centroids, both [n, d], to values
            [n, d]; `straight_through_vector`, `rotation_trick` or another.
        weights: Non-negative, [n], any unit, of the losses; a row of weight 0 is inert,
            and what is not finite in it is taken to be its nearest centroid. None is
            ones.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        The values, [n, d], from the two methods exactly the nearest centroids and in
        their dtype; labels, [n], int32, ties to the lowest index; and both losses, [],
        float64 if any array is, else float32.

    Raises:
        TypeError: An array is not floating, `active` is not bool, or `method` no
            function.
        ValueError: A shape does not fit, that of the method's values included, or
            `block_size` is below 1.

    Example:
        >>> x, c = jnp.array([[0.5], [8.0]]), jnp.array([[0.0], [9.0]])
        >>> q = dk.quantize(x, c)
        >>> q.values.tolist(), q.labels.tolist(), float(q.commitment_loss)
        ([[0.0], [9.0]], [0, 1], 1.25)
        >>> jax.grad(lambda c: dk.quantize(x, c).codebook_loss)(c).tolist()
        [[-1.0], [2.0]]

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937
    """
    check_callable("method", method)
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=squared_euclidean,
        weights=weights,
        active=active,
        block_size=block_size,
    )
    points = problem.points
    x, nearest, *others = _encode(plan, problem, centroids)
    nearest = lax.stop_gradient(nearest).astype(centroids.dtype)
    values = method(x.astype(points.dtype), nearest)
    if values.shape != points.shape:
        shapes = f"{values.shape} for points {points.shape}"
        raise ValueError(f"method must keep the shape of the points, got {shapes}")
    return Quantized(values, *others)


def nsvq(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    noise: Float[ArrayLike, "n d"],
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Moves every point by noise as long as its quantization error.

    The value is x + ‖x − q‖ v/‖v‖, with q the nearest centroid and v the noise. It is
    random, and not q; but its gradient, exact with the labels held constant, moves
    points and centroids alike: with cotangent g, s = ⟨v, g⟩/‖v‖ and unit vector e along
    x − q, it is g + s e in the point and −s e in its centroid. Where x = q, e is zero;
    where v = 0, the value is x. The losses are those of `quantize`.

    Args:
        points: Data, [n, d], floating, in data units.
        centroids: Centroids, [k, d], floating, in data units.
        noise: Standard normal draws, [n, d], floating, no unit; only their directions
            matter.
        weights: Non-negative, [n], any unit, of the losses; a row of weight 0 is inert,
            and what is not finite in it is taken to be its nearest centroid. None is
            ones.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        The values, [n, d], in the dtype of `points`; labels, [n], int32, ties to the
        lowest index; and both losses, [], float64 if points, centroids or weights are,
        else float32.

    Raises:
        TypeError: An array is not floating, or `active` is not bool.
        ValueError: A shape does not fit, or `block_size` is below 1.

    Example:
        >>> x, v = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 2.0]])
        >>> c = jnp.zeros((1, 2))
        >>> dk.nsvq(x, c, v).values.tolist()  # By the error, 3, along the noise.
        [[3.0, 3.0]]
        >>> float(jax.grad(lambda c: dk.nsvq(x, c, v).values[0, 1])(c)[0, 0])
        -1.0

    Source: Vali & Bäckström 2022, https://doi.org/10.1109/ACCESS.2022.3147670
    """
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=squared_euclidean,
        weights=weights,
        active=active,
        block_size=block_size,
    )
    points, noise = problem.points, jnp.asarray(noise)
    check_floating("noise", noise)
    check_shape("noise", noise, points.shape, f"[n, d] as points {points.shape}")
    x, nearest, *others = _encode(plan, problem, centroids)
    scale, length, _ = _polar(x - nearest)
    values = x + scale * length * _polar(noise.astype(x.dtype))[2]
    return Quantized(values.astype(points.dtype), *others)


@partial(jax.jit, static_argnums=0)
def _encode(plan: Plan, problem: Problem, centroids: jax.Array):
    """Points and nearest centroids [n, d], labels [n], and the two losses."""
    held = problem._replace(points=lax.stop_gradient(problem.points))
    codebook_loss, _, _, labels = hard_pass(plan, held, centroids)
    nearest = centered(problem, centroids)[0][labels]
    acc, fixed = nearest.dtype, lax.stop_gradient(nearest)
    w = None if problem.weights is None else problem.weights.astype(acc)
    x = fill_inert(problem.points.astype(acc), w, fixed)
    commitment_loss = jnp.sum(weigh(w, jnp.sum((x - fixed) ** 2, axis=1)))
    return x, nearest, labels, codebook_loss, commitment_loss


def _as_pair(points: ArrayLike, nearest: ArrayLike) -> tuple[jax.Array, jax.Array]:
    points, nearest = jnp.asarray(points), jnp.asarray(nearest)
    check_floating("points", points)
    check_floating("nearest", nearest)
    if points.ndim == 0 or points.shape[-1] == 0:
        found = f"got shape {points.shape}"
        raise ValueError(f"points must be [..., d] with d at least 1, {found}")
    layout = f"[..., d] as points {points.shape}"
    check_shape("nearest", nearest, points.shape, layout)
    return points, nearest
