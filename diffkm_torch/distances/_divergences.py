"""Bregman divergences of positive vectors, which are not symmetric."""

from __future__ import annotations

from torch import Tensor

from diffkm_torch.distances._distance import operands
from diffkm_torch.distances._ratios import sum_itakura_saito, sum_kullback_leibler


def kl_divergence(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.kl_divergence`: x, y [..., d] to Σ x log(x/y) − x + y."""
    return sum_kullback_leibler(*operands(x, y))


def itakura_saito(x: Tensor, y: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.itakura_saito`: x, y [..., d] to Σ x/y − log(x/y) − 1."""
    return sum_itakura_saito(*operands(x, y))
