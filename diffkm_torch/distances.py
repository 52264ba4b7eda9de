"""Distances between vectors: the mirror of `diffkm_jax.distances`, by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_points_and_centroids,
    as_real,
    check_callable,
    check_floating,
    check_shape,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import polar, safe_sqrt
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
    x, y = as_real("x", x), as_real("y", y)
    shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must share their last axis d, got shapes {shapes}")
    dtype = accumulation_dtype(x, y)
    try:
        torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError as error:
        raise ValueError(f"x and y must broadcast, got shapes {shapes}") from error
    return x.to(dtype), y.to(dtype)


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.squared_euclidean`: x, y [..., d] to Σ (x − y)²."""
    x, y = _operands(x, y)
    return ((x - y) ** 2).sum(-1)


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.euclidean`: x, y [..., d] to ‖x − y‖, gradient 0 at x = y."""
    return safe_sqrt(squared_euclidean(x, y))


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.manhattan`: x, y [..., d] to Σ |x − y|."""
    x, y = _operands(x, y)
    return (x - y).abs().sum(-1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.cosine`: x, y [..., d] to 1 − x·y / (‖x‖ ‖y‖)."""
    (x_scale, _, x), (y_scale, _, y) = map(polar, _operands(x, y))
    # Not 1 − x̂·ŷ, which is left with nothing but rounding where the two are close.
    distance = 0.5 * ((x - y) ** 2).sum(-1)
    zero = (x_scale == 0) | (y_scale == 0)
    # A NaN in the other vector stays one.
    return torch.where(zero[..., 0], 1 + (distance - distance), distance)


def kl_divergence(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.kl_divergence`: x, y [..., d] to Σ x log(x/y) − x + y."""
    x, y = _operands(x, y)
    absent = x <= 0
    safe_x, safe_y = (torch.where(absent, 1, a) for a in (x, y))
    near, s, r = _series(safe_x, safe_y)
    far = safe_x * _log_quotient(safe_x, safe_y) - (safe_x - safe_y)
    # 2 (1 + s)(s + s³ R) − 2 s in units of (x + y)/2, of which x − y is 2 s.
    series = (safe_x - safe_y) * s * (1 + s * (1 + s) * r)
    present = torch.where(near, series, far)
    return torch.where(absent, y, present).sum(-1)


def itakura_saito(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.itakura_saito`: x, y [..., d] to Σ x/y − log(x/y) − 1."""
    x, y = _operands(x, y)
    near, s, r = _series(x, y)
    far = (x - y) / y - _log_quotient(x, y)
    # 2 s / (1 − s), which is x/y − 1, less 2 (s + s³ R).
    return torch.where(near, 2 * s**2 * (1 / (1 - s) - s * r), far).sum(-1)


def _series(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where x is near y > 0, s = (x − y)/(x + y), and R of log(x/y) = 2 (s + s³ R).

    R = 1/3 + s²/5 + s⁴/7 + …; what the divergences take off the logarithm drops out
    before it is rounded, so that nothing cancels. Elsewhere s is 0.
    """
    near = (x - y).abs() <= 0.25 * x + 0.25 * y
    # In units of about y, whose square is in range.
    unit = torch.exp2(2.0 - torch.frexp(y.detach()).exponent.to(y.dtype))
    unit = unit.clamp(max=1 / torch.finfo(y.dtype).tiny)
    x, y = (torch.where(near, a * unit, 1) for a in (x, y))
    s = (x - y) / (x + y)
    # |s| ≤ 1/4: what is left out is less than a rounding.
    n = 12 if x.dtype == torch.float64 else 5
    square, r = s * s, torch.zeros_like(s)
    for q in reversed(range(n)):
        r = r * square + 1 / (2 * q + 3)
    return near, s, r


def _log_quotient(x: Tensor, y: Tensor) -> Tensor:
    """The logarithm of x/y to a rounding of 1, of any x and y."""
    # With x = m 2ᵉ: no large logarithms are subtracted, and no quotient overflows. Of
    # halves, because a derivative divides by 2ᵉ.
    (m_x, e_x), (m_y, e_y) = (torch.frexp(0.5 * a) for a in (x, y))
    return (e_x - e_y).to(x.dtype) * math.log(2) + (m_x.log() - m_y.log())


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


@hinted
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
