"""Points replaced by values of a codebook: `quantize` and NSVQ, with their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from diffkm_jax._blocks import (
    fill_inert,
    fill_rows,
    finite_costs,
    psum,
    rows_of,
    weigh,
)
from diffkm_jax._checks import as_floating, check_callable, check_shape
from diffkm_jax._geometry import centered
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import polar
from diffkm_jax._pass import sums_and_labels
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._sharding import ROWS, SAME, over_rows
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.distances._pairwise import evaluate
from diffkm_jax.quantizers._vector_maps import straight_through_vector

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int

Method = Callable[[jax.Array, jax.Array], jax.Array]


class Quantized(NamedTuple):
    """Points replaced by values of a codebook, and the losses that train it.

    Both losses have the value of `kmeans_loss`, and sum over the points.

    Attributes:
        values: What stands for the points, [n, d], in data units.
        labels: Index of the nearest centroid, [n], int32.
        codebook_loss: Σ w distance(x, c), if squared ‖x − c‖², [], in the unit of the
            distance; its gradient moves the centroids and not the points.
        commitment_loss: The same, []; its gradient moves the points and not the
            centroids.
    """

    values: Float[Array, "n d"]
    labels: Int[Array, " n"]
    codebook_loss: Float[Array, ""]
    commitment_loss: Float[Array, ""]


export.register_namedtuple_serialization(Quantized, serialized_name="diffkm.Quantized")


@hinted
def quantize(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    method: Method = straight_through_vector,
    distance: Distance = squared_euclidean,
    weights: Float[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
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

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        method: Function of points and their nearest centroids, both [n, d], to values
            [n, d]; `straight_through_vector`, `rotation_trick` or another.
        distance: Function of two arrays [..., d], of labels and losses; static by
            identity, or a tree of arrays.
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
        TypeError: An array is not real, `active` is not bool, or `method` or
            `distance` no function.
        ValueError: A shape does not fit, that of the method's values included,
            `block_size` is below 1, or a NumPy array has a row outside the domain of
            `distance`.

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
        distance=distance,
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


@hinted
def nsvq(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    noise: Float[ArrayLike, "n d"],
    *,
    distance: Distance = squared_euclidean,
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
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        noise: Standard normal draws, [n, d], floating, no unit; only their directions
            matter.
        distance: Function of two arrays [..., d], of labels and losses; static by
            identity, or a tree of arrays.
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
        TypeError: An array is not real, `noise` is not floating, `active` not bool, or
            `distance` no function.
        ValueError: A shape does not fit, `block_size` is below 1, or a NumPy array has
            a row outside the domain of `distance`.

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
        distance=distance,
        weights=weights,
        active=active,
        block_size=block_size,
    )
    points, noise = problem.points, as_floating("noise", noise)
    check_shape("noise", noise, points.shape, f"[n, d] as points {points.shape}")
    x, nearest, *others = _encode(plan, problem, centroids)
    scale, length, _ = polar(x - nearest)
    values = x + scale * length * polar(noise.astype(x.dtype))[2]
    return Quantized(values.astype(points.dtype), *others)


@over_rows(1, (ROWS, ROWS, ROWS, SAME, SAME))
def _encode(plan: Plan, problem: Problem, centroids: jax.Array):
    """Points and nearest centroids [n, d], labels [n], and the two losses."""
    # The value of both losses is the same; each holds one side of it constant.
    held = problem._replace(points=lax.stop_gradient(problem.points))
    (codebook_loss, _, _), labels = sums_and_labels(plan, held, centroids)
    nearest = rows_of(centered(problem, centroids)[0], labels)
    acc, fixed = nearest.dtype, lax.stop_gradient(nearest)
    w = None if problem.weights is None else problem.weights.astype(acc)
    x = fill_inert(problem.points.astype(acc), w, fixed, squares=False)

    def costs(x: jax.Array) -> jax.Array:
        return evaluate(problem.distance, x, fixed)

    finite = x if w is None else fill_rows(x, w, costs(x), fixed)
    commitment_loss = jnp.sum(weigh(w, finite_costs(costs(finite), w)))
    commitment_loss = psum(commitment_loss, plan.axis_name)
    return x, nearest, labels, codebook_loss, commitment_loss
