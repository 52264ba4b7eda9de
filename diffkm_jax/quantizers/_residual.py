"""Several codebooks for one point: residual and product quantization."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import fill_inert
from diffkm_jax._checks import (
    as_array,
    as_real,
    as_tree,
    check_block_size,
    check_callable,
    check_shape,
)
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.quantizers._leading import flattened
from diffkm_jax.quantizers._quantize import Method, applied, quantize
from diffkm_jax.quantizers._quantized import Quantized
from diffkm_jax.quantizers._vector_maps import straight_through_vector

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float


@hinted
def residual_quantize(
    points: Float[ArrayLike, "*batch d"],
    codebooks: Float[ArrayLike, "s k d"],
    *,
    method: Method = straight_through_vector,
    distance: Distance = squared_euclidean,
    weights: Float[ArrayLike, "*batch"] | None = None,
    active: Bool[ArrayLike, "s k"] | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Replaces every point by a sum of codes, each nearest to what is left of it.

    Stage i, of s, takes the nearest code to the point minus the codes of the stages
    before, which are held constant. The gradient of the values in `points` is that of
    `method`, once, from the points to the sum; in `codebooks` zero. Those of the losses
    are exact, and those of `quantize` in every stage: a codebook trains by
    `codebook_loss`, or by `update` of what the stages before left, as with `ema`.

    Args:
        points: Data, [..., d], real, in data units.
        codebooks: The centroids of every stage, [s, k, d], real, in data units.
        method: Function of points and what they are replaced by, both [..., d], to
            values [..., d]; `straight_through_vector`, `rotation_trick` or another.
        distance: Function of two arrays [..., d], of labels and losses, also where
            coordinates of what is left are negative; static by identity, or a tree of
            arrays.
        weights: Non-negative, [...], any unit, of losses and counts; a row of weight 0
            is inert, and what is not finite in it is taken to be its value. None is
            ones.
        active: Codes that exist, [s, k], bool, at least one true in every stage: so
            that sizes may differ. None is all.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        A `Quantized`: values, [..., d], from the two methods exactly the sums, in the
        dtype of `codebooks`; labels, [..., s], int32; both losses, [], summed over
        stages; and counts, [s, k].

    Raises:
        TypeError: An array is not real, `active` is not bool, or `method` or
            `distance` no function.
        ValueError: A shape does not fit, that of the method's values included, or
            `block_size` is below 1.

    Example:
        >>> x = jnp.array([[1.0], [4.0]])
        >>> codebooks = jnp.array([[[0.0], [4.0]], [[0.0], [0.75]]])
        >>> q = dk.residual_quantize(x, codebooks)
        >>> q.values.tolist(), q.labels.tolist()
        ([[0.75], [4.0]], [[0, 1], [1, 0]])
        >>> codebooks[jnp.arange(2), q.labels].sum(-2).tolist()  # Of labels alone.
        [[0.75], [4.0]]

    Source: Zeghidour et al. 2021, https://arxiv.org/abs/2107.03312
    """
    check_callable("method", method, 2)
    rows, w, shape = _as_points(points, weights)
    *leading, d = shape
    codebooks = as_real("codebooks", codebooks)
    layout = f"[s, k, d] with d = {d} as in points {shape}"
    check_shape("codebooks", codebooks, (None, None, d), layout)
    active = _as_options(codebooks, active, distance, block_size)
    x, total, found = _residual(
        block_size, rows, codebooks, as_tree(distance), w, active
    )
    x = x.astype(rows.dtype)
    values = applied(method, x.reshape(shape), total.reshape(shape))
    return found._replace(
        values=values,
        labels=found.labels.T.reshape(*leading, len(codebooks)),
        codebook_loss=jnp.sum(found.codebook_loss),
        commitment_loss=jnp.sum(found.commitment_loss),
    )


@hinted
def product_quantize(
    points: Float[ArrayLike, "*batch d"],
    codebooks: Float[ArrayLike, "g *s k e"],
    *,
    method: Method = straight_through_vector,
    distance: Distance = squared_euclidean,
    weights: Float[ArrayLike, "*batch"] | None = None,
    active: Bool[ArrayLike, "g *s k"] | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Replaces g groups of the coordinates of every point, each by its own codebook.

    Of k codes in each group there are kᵍ together. With codebooks of s stages every
    group is quantized as by `residual_quantize`. The gradients are those of `quantize`
    or of that in each group: of the values that of `method`, of the losses exact.

    Args:
        points: Data, [..., d], real, in data units; coordinates in g groups of d/g, one
            after another.
        codebooks: The centroids of every group, [g, k, e] with e = d/g, or of every
            group and stage, [g, s, k, e], real, in data units.
        method: Function of points and what they are replaced by, both [..., g, e], to
            values [..., g, e]; `straight_through_vector`, `rotation_trick` or another.
        distance: Function of two arrays [..., e], of labels and losses; static by
            identity, or a tree of arrays.
        weights: Non-negative, [...], any unit, of losses and counts; a row of weight 0
            is inert, and what is not finite in it is taken to be its value. None is
            ones.
        active: Codes that exist, [g, k] or [g, s, k], bool, at least one true in every
            codebook; None is all.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        A `Quantized`: values, [..., d], in the dtype of `codebooks`; labels, [..., g]
        or [..., g, s], int32; both losses, [], summed over groups and stages; and
        counts, [g, k] or [g, s, k].

    Raises:
        TypeError: An array is not real, `active` is not bool, or `method` or
            `distance` no function.
        ValueError: A shape does not fit, that of the method's values included, or
            `block_size` is below 1.

    Example:
        >>> x, codes = jnp.array([[0.1, 0.9]]), jnp.array([[0.0], [1.0]])
        >>> q = dk.product_quantize(x, jnp.stack([codes, 3 * codes]))
        >>> q.values.tolist(), q.labels.tolist()
        ([[0.0, 0.0]], [[0, 0]])

    Source: Jégou, Douze & Schmid 2011, https://doi.org/10.1109/TPAMI.2010.57
    """
    check_callable("method", method, 2)
    rows, w, shape = _as_points(points, weights)
    *leading, d = shape
    codebooks = as_real("codebooks", codebooks)
    found = codebooks.shape
    if len(found) not in (3, 4) or found[0] * found[-1] != d:
        layout = f"[g, k, e] or [g, s, k, e] with g e = {d} as in points {shape}"
        raise ValueError(f"codebooks must be {layout}, got shape {found}")
    active = _as_options(codebooks, active, distance, block_size)
    g, width, staged = found[0], found[-1], len(found) == 4
    if not staged:
        codebooks = codebooks[:, None]
        active = None if active is None else active[:, None]
    rows = jnp.moveaxis(rows.reshape(-1, g, width), 1, 0)
    x, total, of_groups = _product(
        block_size, rows, codebooks, as_tree(distance), w, active
    )
    x, total = (
        jnp.moveaxis(a, 0, 1).reshape(*leading, g, width)
        for a in (x.astype(rows.dtype), total)
    )
    labels = jnp.moveaxis(of_groups.labels, -1, 0)
    counts = of_groups.counts
    return of_groups._replace(
        values=applied(method, x, total).reshape(shape),
        labels=labels.reshape(*leading, *(labels.shape[1:] if staged else (g,))),
        codebook_loss=jnp.sum(of_groups.codebook_loss),
        commitment_loss=jnp.sum(of_groups.commitment_loss),
        counts=counts if staged else counts[:, 0],
    )


@partial(jax.jit, static_argnums=0)
def _residual(
    block_size: int | None,
    points: jax.Array,
    codebooks: jax.Array,
    distance: Any,
    weights: jax.Array | None,
    active: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Quantized]:
    """Points and sums of codes, [n, d], and of every stage all but its values."""
    acc = accumulation_dtype(points, codebooks, weights)
    x = points.astype(acc)

    def stage(total: jax.Array, own: tuple) -> tuple[jax.Array, Quantized]:
        found = quantize(
            x - total,
            own[0],
            distance=distance,
            weights=weights,
            active=own[1],
            block_size=block_size,
        )
        codes = lax.stop_gradient(found.values).astype(acc)
        return total + codes, found._replace(values=None)

    total, found = lax.scan(stage, jnp.zeros_like(x), (codebooks, active))
    x = fill_inert(x, weights, total, squares=False)
    return x, total.astype(codebooks.dtype), found


@partial(jax.jit, static_argnums=0)
def _product(
    block_size: int | None,
    points: jax.Array,
    codebooks: jax.Array,
    distance: Any,
    weights: jax.Array | None,
    active: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Quantized]:
    """The same of every group, [g, ...]."""
    of_one = partial(_residual, block_size)
    mapped = jax.vmap(of_one, in_axes=(0, 0, None, None, 0))
    return mapped(points, codebooks, distance, weights, active)


def _as_points(
    points: ArrayLike, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array | None, tuple[int, ...]]:
    """Points [n, d] and weights [n], checked, and the shape of the points."""
    points = as_real("points", points)
    weights = None if weights is None else as_real("weights", weights)
    return *flattened(points, weights), points.shape


def _as_options(
    codebooks: jax.Array,
    active: ArrayLike | None,
    distance: Distance,
    block_size: int | None,
) -> jax.Array | None:
    """The mask of codes, checked with the other options: None or bool."""
    check_callable("distance", distance, 2)
    check_block_size(block_size)
    shape = codebooks.shape[:-1]
    if 0 in shape:
        found = f"got shape {codebooks.shape}"
        raise ValueError(f"codebooks must have at least one row each, {found}")
    if active is None:
        return None
    active = as_array("active", active)
    if active.dtype != bool:
        raise TypeError(f"active must be bool, got dtype {active.dtype}")
    check_shape("active", active, shape, f"{shape} as codebooks {codebooks.shape}")
    return active
