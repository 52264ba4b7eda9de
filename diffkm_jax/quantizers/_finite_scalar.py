"""Finite scalar quantization: every coordinate rounded to one of a few levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from diffkm_jax._checks import as_array, as_real, check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted, shown
from diffkm_jax.quantizers._vector_maps import straight_through_vector

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike
    from jaxtyping import Array, Float, Int

# How much of the outermost half steps the bound leaves out.
MARGIN = 1e-3


class ScalarQuantized(NamedTuple):
    """Points with every coordinate rounded to one of its levels.

    Attributes:
        values: What stands for the points, [..., d], from −1 to 1, no unit.
        labels: Index in the implicit codebook of all combinations of levels, [...],
            int32; the first coordinate varies fastest.
    """

    values: Float[Array, "*batch d"]
    labels: Int[Array, "*batch"]


export.register_namedtuple_serialization(
    ScalarQuantized, serialized_name="diffkm.ScalarQuantized"
)


@hinted
def finite_scalar_quantize(
    points: Float[ArrayLike, "*batch d"], *, levels: Sequence[int]
) -> ScalarQuantized:
    """Rounds every coordinate to one of a few levels: a codebook without parameters.

    Coordinate i with L levels is bounded to z = h tanh(x + tan(o/h)) − o, in which
    h = 0.999 (L − 1)/2, and o is 1/2 if L is even and else 0; rounded; and divided by
    the integer part of L/2. The gradient is exact but for the rounding, which is taken
    for the identity: h (1 − tanh²) over that integer times the cotangent. Biased by
    design, reverse mode only.

    Args:
        points: Data, [..., d], real, no unit: around 0, and of the size of 1.
        levels: Numbers of levels of the d coordinates, at least 2 each and at most 2³¹
            combinations; static. Above 1000 the outermost are never reached.

    Returns:
        A `ScalarQuantized`: values in the dtype of `points`, and labels. A coordinate
        that is NaN has the value NaN, and in the label its lowest level.

    Raises:
        TypeError: `points` is not real, `levels` no sequence of integers, or forward
            mode is asked for.
        ValueError: A level is below 2, `levels` is empty or has more than 2³¹
            combinations, or `points` not as many coordinates.

    Example:
        >>> x = jnp.array([[-2.0, 0.1], [0.2, 2.0]])
        >>> q = dk.finite_scalar_quantize(x, levels=(3, 5))
        >>> q.values.tolist(), q.labels.tolist()
        ([[-1.0, 0.0], [0.0, 1.0]], [6, 13])
        >>> dk.finite_scalar_values(q.labels, levels=(3, 5)).tolist()
        [[-1.0, 0.0], [0.0, 1.0]]

    Source: Mentzer et al. 2023, https://arxiv.org/abs/2309.15505, with its code
    """
    levels = _as_levels(levels)
    points = as_real("points", points)
    if points.ndim == 0 or points.shape[-1] != len(levels):
        layout = f"[..., d] with d = {len(levels)} as levels {levels}"
        raise ValueError(f"points must be {layout}, got shape {points.shape}")
    number = np.asarray(levels)
    offset = np.where(number % 2 == 0, 0.5, 0.0)
    half = (number - 1) * (1 - MARGIN) / 2
    dtype = accumulation_dtype(points)
    half, offset, shift = (
        _along_last(a, points.ndim, dtype)
        for a in (half, offset, np.tan(offset / half))
    )
    bounded = half * jnp.tanh(points.astype(dtype) + shift) - offset
    rounded = jnp.round(bounded)
    width = _along_last(number // 2, points.ndim, dtype)
    inverse = _along_last(1 / (number // 2), points.ndim, dtype)
    values = straight_through_vector(inverse * bounded, _as_values(rounded, levels))
    digits = jnp.where(jnp.isnan(rounded), 0, rounded + width).astype(jnp.int32)
    places = _along_last(_places(levels), points.ndim, jnp.int32)
    labels = jnp.sum(digits * places, axis=-1, dtype=jnp.int32)
    return ScalarQuantized(values.astype(points.dtype), labels)


@hinted
def finite_scalar_values(
    labels: Int[ArrayLike, "*batch"],
    *,
    levels: Sequence[int],
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch d"]:
    """The values that `finite_scalar_quantize` gives the labels: its inverse.

    They are constant: there is no gradient in labels.

    Args:
        labels: Indices of combinations of levels, [...], integers from 0 to their
            number, exclusive, no unit.
        levels: Numbers of levels of the d coordinates, static.
        dtype: Of the result, floating; None is the default float.

    Returns:
        Values, [..., d], from −1 to 1: exactly those of `finite_scalar_quantize` on
        points of this dtype.

    Raises:
        TypeError: `labels` are no integers, `levels` no sequence of integers, or
            `dtype` is not floating.
        ValueError: A level is below 2, or `levels` is empty or has more than 2³¹
            combinations.

    Example:
        >>> dk.finite_scalar_values(jnp.arange(4), levels=(2, 2)).tolist()
        [[-1.0, -1.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]]

    Source: Mentzer et al. 2023, https://arxiv.org/abs/2309.15505
    """
    levels = _as_levels(levels)
    labels = as_labels(labels)
    found = as_float_dtype(dtype)
    wide = accumulation_dtype(jnp.zeros((), found))
    number = np.asarray(levels)
    ndim = labels.ndim + 1
    places, base, width = (
        _along_last(a, ndim, jnp.int32) for a in (_places(levels), number, number // 2)
    )
    steps = labels[..., None] // places % base - width
    return _as_values(steps.astype(wide), levels).astype(found)


def _as_values(steps: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Whole steps from the middle as values from −1 to 1, everywhere the same ones.

    Of a quotient XLA makes a product with a reciprocal in some programs, and in others
    not.
    """
    width = np.asarray(levels) // 2
    ends = jnp.abs(steps) == _along_last(width, steps.ndim, steps.dtype)
    # A product that should be 1 may be rounded to less.
    inverse = _along_last(1 / width, steps.ndim, steps.dtype)
    return jnp.where(ends, jnp.sign(steps), steps * inverse)


def as_labels(labels: ArrayLike) -> jax.Array:
    """The labels as an array: int32."""
    labels = as_array("labels", labels, what="an array of integers")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    return labels.astype(jnp.int32)


def as_float_dtype(dtype: Any) -> jnp.dtype:
    """The dtype, checked: floating; the default float for None."""
    found = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"dtype must be floating, got {found}")
    return found


def _as_levels(levels: Any) -> tuple[int, ...]:
    if not isinstance(levels, Sequence) or isinstance(levels, str):
        found = shown(levels)
        raise TypeError(f"levels must be a tuple of integers (static), got {found}")
    for level in levels:
        check_integer("levels", level, minimum=2)
    levels = tuple(map(int, levels))
    if not levels or math.prod(levels) > 2**31:
        limit = "one level or more, of at most 2³¹ combinations"
        raise ValueError(f"levels must be {limit}, got {levels}")
    return levels


def _places(levels: tuple[int, ...]) -> np.ndarray:
    """What a step of each coordinate adds to the label."""
    return np.cumprod([1, *levels[:-1]])


def _along_last(constant: np.ndarray, ndim: int, dtype: Any) -> jax.Array:
    return jnp.asarray(constant.reshape((1,) * (ndim - 1) + (-1,)), dtype)
