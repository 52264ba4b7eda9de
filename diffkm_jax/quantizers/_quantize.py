"""Points replaced by their nearest centroids, or by drawn ones, with their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from jax import lax

from diffkm_jax._checks import as_floating, check_callable, check_shape
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted
from diffkm_jax._problem import Rows
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.quantizers._encode import encode
from diffkm_jax.quantizers._leading import as_given, as_rows
from diffkm_jax.quantizers._quantized import Quantized
from diffkm_jax.quantizers._vector_maps import straight_through_vector

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float

Method = Callable[[jax.Array, jax.Array], jax.Array]


@hinted
def quantize(
    points: Float[ArrayLike, "*batch d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    method: Method = straight_through_vector,
    distance: Distance = squared_euclidean,
    weights: Float[ArrayLike, "*batch"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    temperature: ArrayLike | None = None,
    noise: Float[ArrayLike, "*batch k"] | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Replaces every point by its nearest centroid, with the gradient of a method.

    The gradient of the values in `points` is that of `method`, and in `centroids`
    zero. Those of the losses are exact: the one in the centroids of `codebook_loss` is
    that of `kmeans_loss`, if squared 2 n_j (c_j − mean of cluster j); the one in the
    points of `commitment_loss` is that of the distance, if squared 2 w (x − c); both
    have the distance in the weights. A VQ-VAE adds to its own loss both, the second
    times a factor. Under `cosine` nearest are directions: a codebook of unit rows, as
    `ema` keeps it, and points of unit length are what is usual then.

    With a temperature T and standard Gumbel noise the centroid of a point is not the
    nearest but a draw from softmax(−distance / T), the one of the largest
    −distance / T + noise; values, labels, losses, counts and all gradients are those of
    the draw, and the gradient in `temperature` and `noise` is zero.

    Args:
        points: Data, [..., d], real, in data units; [d] is one point.
        centroids: Centroids, [k, d], real, in data units.
        method: Function of points and their nearest (or drawn) centroids, both [..., d]
            as the points are given, to values [..., d]; `straight_through_vector`,
            `rotation_trick` or another.
        distance: Function of two arrays [..., d], of labels and losses; static by
            identity, or a tree of arrays.
        weights: Non-negative, [...], any unit, of losses and counts; a row of weight 0
            is inert, and what is not finite in it is taken to be its centroid. None is
            ones.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        temperature: Positive scalar, in the unit of the distance, may be traced; None
            is the nearest centroid.
        noise: Standard Gumbel draws, [..., k], floating and finite, no unit, if there
            is a temperature.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        The values, [..., d], from the two methods exactly the centroids and in their
        dtype; labels, [...], int32, ties to the lowest index; both losses, [], and the
        counts, [k], float64 if points, centroids or weights are, else float32.

    Raises:
        TypeError: An array is not real, `noise` not floating, `active` not bool, or
            `method` or `distance` no function.
        ValueError: A shape does not fit, that of the method's values included; there is
            one of `temperature` and `noise` without the other; `temperature` is a
            number and not positive; `block_size` is below 1, or a NumPy array has a row
            outside the domain of `distance`.

    Example:
        >>> x, c = jnp.array([[0.5], [8.0]]), jnp.array([[0.0], [9.0]])
        >>> q = dk.quantize(x, c)
        >>> q.values.tolist(), q.labels.tolist(), float(q.commitment_loss)
        ([[0.0], [9.0]], [0, 1], 1.25)
        >>> jax.grad(lambda c: dk.quantize(x, c).codebook_loss)(c).tolist()
        [[-1.0], [2.0]]
        >>> q.counts.tolist(), float(q.usage)
        ([1.0, 1.0], 1.0)

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937;
        Roy et al. 2018 (draws), https://arxiv.org/abs/1805.11063
    """
    check_callable("method", method, 2)
    rows, of_rows, shape = as_rows(points, weights, centroids)
    for name, given, other in (
        ("noise", noise, temperature),
        ("temperature", temperature, noise),
    ):
        if given is None and other is not None:
            beside = "temperature" if name == "noise" else "noise"
            raise ValueError(f"{name} must be given with {beside}, got None")
    plan, problem, centroids = as_problem(
        rows,
        centroids,
        distance=distance,
        weights=of_rows,
        active=active,
        temperature=temperature,
        block_size=block_size,
    )
    of_draws = None
    if noise is not None:
        noise, k = as_floating("noise", noise), len(centroids)
        expected = f"[..., k] with k = {k}, as points {shape}"
        check_shape("noise", noise, (*shape[:-1], k), expected)
        of_draws = Rows(noise if len(shape) == 2 else noise.reshape(-1, k))
    found = encode(plan, problem, centroids, of_draws)
    leading = shape[:-1]
    x = as_given(found.points.astype(problem.points.dtype), leading)
    codes = lax.stop_gradient(found.codes).astype(centroids.dtype)
    values = applied(method, x, as_given(codes, leading))
    return Quantized(values, as_given(found.labels, leading), *found[3:])


def applied(method: Method, points: jax.Array, codes: jax.Array) -> jax.Array:
    """The values of a method, whose shape is checked."""
    values = method(points, codes)
    if values.shape != points.shape:
        shapes = f"{values.shape} for points {points.shape}"
        raise ValueError(f"method must keep the shape of the points, got {shapes}")
    return values
