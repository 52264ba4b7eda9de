"""Distances of vectors anywhere: metrics, and what is a metric's square."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._numerics import polar, safe_sqrt
from diffkm_torch.distances._distance import operands


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.squared_euclidean`: x, y [..., d] to Σ (x − y)²."""
    x, y = operands(x, y)
    return ((x - y) ** 2).sum(-1)


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.euclidean`: x, y [..., d] to ‖x − y‖, gradient 0 at x = y."""
    return safe_sqrt(squared_euclidean(x, y))


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.manhattan`: x, y [..., d] to Σ |x − y|."""
    x, y = operands(x, y)
    return (x - y).abs().sum(-1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.cosine`: x, y [..., d] to 1 − x·y / (‖x‖ ‖y‖)."""
    (x_scale, _, x), (y_scale, _, y) = map(polar, operands(x, y))
    # Not 1 − x̂·ŷ, which is left with nothing but rounding where the two are close.
    distance = 0.5 * ((x - y) ** 2).sum(-1)
    zero = (x_scale == 0) | (y_scale == 0)
    # A NaN in the other vector stays one.
    return torch.where(zero[..., 0], 1 + (distance - distance), distance)
