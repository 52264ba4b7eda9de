"""NSVQ and DiVeQ: points moved as far as their quantization error is long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax import lax

from diffkm_jax._checks import as_floating, as_real, as_scalar, check_shape
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import polar
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.quantizers._encode import encode
from diffkm_jax.quantizers._leading import as_given, as_rows
from diffkm_jax.quantizers._quantized import Quantized

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float


@hinted
def nsvq(
    points: Float[ArrayLike, "*batch d"],
    centroids: Float[ArrayLike, "k d"],
    noise: Float[ArrayLike, "*batch d"],
    *,
    distance: Distance = squared_euclidean,
    weights: Float[ArrayLike, "*batch"] | None = None,
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
        points: Data, [..., d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        noise: Standard normal draws, [..., d], floating, no unit; only their
            directions matter.
        distance: Function of two arrays [..., d], of labels and losses; static by
            identity, or a tree of arrays.
        weights: Non-negative, [...], any unit, of losses and counts; a row of weight 0
            is inert, and what is not finite in it is taken to be its nearest centroid.
            None is ones.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        The values, [..., d], in the dtype of `points`; labels, [...], int32, ties to
        the lowest index; both losses, [], and the counts, [k], float64 if points,
        centroids or weights are, else float32.

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
    return moved(
        lambda noise, error: noise,
        points,
        centroids,
        noise,
        distance=distance,
        weights=weights,
        active=active,
        block_size=block_size,
    )


@hinted
def diveq(
    points: Float[ArrayLike, "*batch d"],
    centroids: Float[ArrayLike, "k d"],
    noise: Float[ArrayLike, "*batch d"],
    *,
    scale: ArrayLike = 0.03,
    distance: Distance = squared_euclidean,
    weights: Float[ArrayLike, "*batch"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Moves every point by its quantization error, nearly to its nearest centroid.

    The value is x + ‖q − x‖ v/‖v‖, with q the nearest centroid and v = q − x + scale
    times the noise: near q where the noise is small, and q, to rounding, without any.
    The gradient is that of the length ‖q − x‖, the labels and the direction held
    constant, and moves points and centroids alike: with cotangent g, s = ⟨v, g⟩/‖v‖
    and unit vector e along x − q, it is g + s e in the point and −s e in its centroid;
    that in `noise` and `scale` is zero. Where x = q, e is zero. The losses are those of
    `quantize`, and not needed: this value trains the codebook.

    Args:
        points: Data, [..., d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        noise: Standard normal draws, [..., d], floating, no unit.
        scale: Scalar, not negative, in data units: of the noise; may be traced. The
            default is about the root of 10⁻³, the variance that the authors advise.
        distance: Function of two arrays [..., d], of labels and losses; static by
            identity, or a tree of arrays.
        weights: Non-negative, [...], any unit, of losses and counts; a row of weight 0
            is inert, and what is not finite in it is taken to be its nearest centroid.
            None is ones.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        The values, [..., d], in the dtype of `points`; labels, [...], int32, ties to
        the lowest index; both losses, [], and the counts, [k], float64 if points,
        centroids or weights are, else float32.

    Raises:
        TypeError: An array is not real, `noise` is not floating, `scale` not real,
            `active` not bool, or `distance` no function.
        ValueError: A shape does not fit, `scale` is not a scalar, or a number and
            negative, `block_size` is below 1, or a NumPy array has a row outside the
            domain of `distance`.

    Example:
        >>> x, v = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 2.0]])
        >>> c = jnp.zeros((1, 2))
        >>> dk.diveq(x, c, v, scale=0.0).values.tolist()
        [[0.0, 0.0]]
        >>> [f"{a:.1f}" for a in dk.diveq(x, c, v, scale=2.0).values[0]]  # By (−3, 4).
        ['1.2', '2.4']

    Source: Vali, Bäckström & Solin 2025, https://arxiv.org/abs/2509.26469
    """
    dtypes = as_real("points", points), as_real("centroids", centroids)
    factor = as_scalar("scale", scale, *dtypes, zero=True)
    return moved(
        lambda noise, error: lax.stop_gradient(
            factor.astype(error.dtype) * noise - error
        ),
        points,
        centroids,
        noise,
        distance=distance,
        weights=weights,
        active=active,
        block_size=block_size,
    )


def moved(
    direction: Callable[[jax.Array, jax.Array], jax.Array],
    points: ArrayLike,
    centroids: ArrayLike,
    noise: ArrayLike,
    *,
    weights: ArrayLike | None,
    **options: Any,
) -> Quantized:
    """Points moved by ‖x − q‖ along a direction: of the noise and the error x − q."""
    rows, of_rows, shape = as_rows(points, weights, centroids)
    plan, problem, centroids = as_problem(rows, centroids, weights=of_rows, **options)
    noise = as_floating("noise", noise)
    check_shape("noise", noise, shape, f"[..., d] as points {shape}")
    found = encode(plan, problem, centroids, None)
    x, nearest = (as_given(a, shape[:-1]) for a in (found.points, found.codes))
    scale, length, _ = polar(x - nearest)
    along = direction(noise.astype(x.dtype), x - nearest)
    values = x + scale * length * polar(along)[2]
    values = values.astype(problem.points.dtype)
    return Quantized(values, as_given(found.labels, shape[:-1]), *found[3:])
