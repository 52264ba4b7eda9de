"""All distances of points and centroids, and a distance's result, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkm_torch._checks import as_points_and_centroids, check_callable
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import hinted
from diffkm_torch.distances._distance import Distance
from diffkm_torch.distances._metrics import squared_euclidean


@hinted
def pairwise(
    points: Tensor, centroids: Tensor, *, distance: Distance = squared_euclidean
) -> Tensor:
    """Mirrors `diffkm_jax.pairwise`: points [n, d], centroids [k, d] to [n, k]."""
    points, centroids = as_points_and_centroids(points, centroids)
    check_callable("distance", distance, 2)
    return evaluate(distance, points[:, None, :], centroids[None, :, :])


def evaluate(distance: Distance, x: Tensor, y: Tensor) -> Tensor:
    """The distances of x and y [..., d], [...], checked: floating, float32 or wider."""
    found = _checked(distance(x, y), x, y)
    sizes, d = torch.broadcast_shapes(x.shape, y.shape), x.shape[-1]
    if len(set(sizes)) < len(sizes):
        # Equal sizes would hide a sum over another axis than the last.
        with torch.no_grad():
            a, b = x.new_ones(d + 1, 1, d), y.new_ones(1, d + 2, d)
            _checked(distance(a, b), a, b)
    wide = found.dtype == torch.float64
    return found if wide else found.to(accumulation_dtype(x, y))


def _checked(found: Any, x: Tensor, y: Tensor) -> Tensor:
    """What a distance returned for x and y, if it is a real tensor [...]."""
    shape = tuple(torch.broadcast_shapes(x.shape, y.shape)[:-1])
    if not isinstance(found, Tensor):
        kind = type(found).__name__
        raise TypeError(f"distance must return an array of shape {shape}, got {kind}")
    if tuple(found.shape) != shape:
        arguments = f"arguments of shapes {tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(
            f"distance must return shape {shape} for {arguments}, by a sum over the "
            f"last axis only, got shape {tuple(found.shape)}"
        )
    if found.is_complex():
        raise TypeError(f"distance must return a real array, got dtype {found.dtype}")
    return found
