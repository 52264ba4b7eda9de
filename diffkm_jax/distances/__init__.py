"""Distances between vectors, elementwise over the last axis, safe where they vanish.

All of them broadcast like `x - y`, accumulate in float32 or wider, return that dtype,
and have finite gradients of every order at x = y. Arguments and errors are the same
for each, and listed once, in `squared_euclidean`.
"""

from diffkm_jax.distances._bregman import bregman
from diffkm_jax.distances._distance import Distance
from diffkm_jax.distances._divergences import itakura_saito, kl_divergence
from diffkm_jax.distances._mahalanobis import mahalanobis
from diffkm_jax.distances._metrics import (
    cosine,
    euclidean,
    manhattan,
    squared_euclidean,
)
from diffkm_jax.distances._pairwise import pairwise

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
