"""Mirrors `diffkm_jax.distances`, by autograd."""

from diffkm_torch.distances._bregman import bregman
from diffkm_torch.distances._distance import Distance
from diffkm_torch.distances._divergences import itakura_saito, kl_divergence
from diffkm_torch.distances._mahalanobis import mahalanobis
from diffkm_torch.distances._metrics import (
    cosine,
    euclidean,
    manhattan,
    squared_euclidean,
)
from diffkm_torch.distances._pairwise import pairwise

__all__ = [
    "Distance",
    "bregman",
    "cosine",
    "euclidean",
    "itakura_saito",
    "kl_divergence",
    "mahalanobis",
    "manhattan",
    "pairwise",
    "squared_euclidean",
]
