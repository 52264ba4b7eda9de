"""Distances between vectors: the mirror of `diffkm_jax.distances`, by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_points_and_centroids,
    check_callable,
    check_floating,
    check_shape,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._products import product

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

Distance = Callable[[Tensor, Tensor], Tensor]


def _operands(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    check_floating("x", x)
    check_floating("y", y)
    shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must share their last axis d, got shapes {shapes}")
    dtype = accumulation_dtype(x, y)
    try:
        shape = torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError as error:
        raise ValueError(f"x and y must broadcast, got shapes {shapes}") from error
    return x.to(dtype).expand(shape), y.to(dtype).expand(shape)


def _safe_sqrt(squared: Tensor) -> Tensor:
    """The square root with gradient 0 at 0, where the true one is infinite."""
    positive = squared > 0
    return torch.where(
        positive, torch.where(positive, squared, 1).sqrt(), squared.detach()
    )


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.squared_euclidean`: x, y [..., d] to Σ (x − y)²."""
    x, y = _operands(x, y)
    return ((x - y) ** 2).sum(-1)


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.euclidean`: x, y [..., d] to ‖x − y‖, gradient 0 at x = y."""
    return _safe_sqrt(squared_euclidean(x, y))


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.manhattan`: x, y [..., d] to Σ |x − y|."""
    x, y = _operands(x, y)
    return (x - y).abs().sum(-1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.cosine`: x, y [..., d] to 1 − x·y / (‖x‖ ‖y‖)."""
    x, y = _operands(x, y)
    return 1 - (_unit(x) * _unit(y)).sum(-1)


def _unit(x: Tensor) -> Tensor:
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest == 0, 1, largest)
    norm = _safe_sqrt((x * x).sum(-1, keepdim=True))
    zero = norm == 0
    return torch.where(zero, 0, x / torch.where(zero, 1, norm))


def kl_divergence(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.kl_divergence`: x, y [..., d] to Σ x log(x/y) − x + y."""
    x, y = _operands(x, y)
    positive = x > 0
    safe_x, safe_y = torch.where(positive, x, 1), torch.where(positive, y, 1)
    present = safe_x * (safe_x.log() - safe_y.log()) - safe_x + safe_y
    return torch.where(positive, present, y + (x - x)).sum(-1)


def itakura_saito(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.itakura_saito`: x, y [..., d] to Σ x/y − log(x/y) − 1."""
    x, y = _operands(x, y)
    return (x / y - (x.log() - y.log()) - 1).sum(-1)


def mahalanobis(precision: Tensor) -> Distance:
    """Mirrors `diffkm_jax.mahalanobis`: P [d, d] to the distance (x − y)ᵀ P (x − y)."""
    check_floating("precision", precision)
    d = precision.shape[0] if precision.ndim else 0
    check_shape("precision", precision, (d, d), "square, [d, d]")

    def squared_mahalanobis(x: Tensor, y: Tensor) -> Tensor:
        """The squared Mahalanobis distance of `x` and `y`, [...]."""
        x, y = _operands(x, y)
        if x.shape[-1] != d:
            found = f"{tuple(precision.shape)} for vectors of size {x.shape[-1]}"
            raise ValueError(f"precision must be [d, d], got shape {found}")
        dtype = accumulation_dtype(x, precision)
        e = (x - y).to(dtype)
        rows = e.reshape(math.prod(e.shape[:-1]), d)
        return (product(rows, precision.to(dtype)).reshape(e.shape) * e).sum(-1)

    return squared_mahalanobis


def pairwise(
    points: Tensor, centroids: Tensor, *, distance: Distance = squared_euclidean
) -> Tensor:
    """Mirrors `diffkm_jax.pairwise`: points [n, d], centroids [k, d] to [n, k]."""
    points, centroids = as_points_and_centroids(points, centroids)
    check_callable("distance", distance)
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
