"""Points of any leading axes as rows, and rows as such points."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from diffkm_jax._checks import as_centroids, as_real, check_shape

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def as_rows(
    points: ArrayLike, weights: ArrayLike | None, centroids: ArrayLike
) -> tuple[Any, Any, tuple[int, ...]]:
    """Points [n, d], weights [n], and the shape of the points, [..., d].

    Points that are [n, d] stay what they are, sharded or not, and so do their weights.
    """
    has_two = getattr(points, "ndim", None) == 2
    rows: Any = points if has_two else _as_array("points", points)
    shape = tuple(rows.shape)
    if len(shape) == 2:
        return points, weights, shape
    mass = None if weights is None else _as_array("weights", weights)
    rows, mass = flattened(rows, mass)
    d = shape[-1]
    as_centroids(centroids, d, f"[k, d] with d = {d} as in points {shape}")
    return rows, mass, shape


def flattened(points: Any, weights: Any) -> tuple[Any, Any]:
    """Points [n, d] and weights [n] of arrays [..., d] and [...], checked."""
    shape = tuple(points.shape)
    if not shape:
        raise ValueError(f"points must be [..., d], got shape {shape}")
    *leading, d = shape
    n = math.prod(leading)
    if n == 0:
        raise ValueError(f"points must have at least one row, got shape {shape}")
    if weights is not None:
        check_shape("weights", weights, tuple(leading), f"[...] as points {shape}")
        weights = weights.reshape(n)
    return points.reshape(n, d), weights


def _as_array(name: str, value: ArrayLike) -> Any:
    """The value, NumPy's as it is: its numbers are there to be checked."""
    return value if isinstance(value, np.ndarray) else as_real(name, value)


def as_given(rows: jax.Array, leading: tuple[int, ...]) -> jax.Array:
    """Rows [n, ...] with the leading axes of the points."""
    return rows if len(leading) == 1 else rows.reshape(*leading, *rows.shape[1:])
