"""Differentiable k-means in JAX: losses, assignments, optimizers and fits."""

from diffkm_jax.assignments import hard, softmax, straight_through
from diffkm_jax.distances import (
    cosine,
    euclidean,
    itakura_saito,
    kl_divergence,
    mahalanobis,
    manhattan,
    pairwise,
    squared_euclidean,
)
from diffkm_jax.fitting import (
    FitResult,
    State,
    Status,
    fit,
    fit_restarts,
    init,
    update,
)
from diffkm_jax.initializers import kmeans_plus_plus, random_points
from diffkm_jax.losses import assigned_loss, kmeans_loss, soft_kmeans_loss
from diffkm_jax.optimizers import macqueen, newton
from diffkm_jax.statistics import Statistics, assign, statistics

__all__ = [
    "FitResult",
    "State",
    "Statistics",
    "Status",
    "assign",
    "assigned_loss",
    "cosine",
    "euclidean",
    "fit",
    "fit_restarts",
    "hard",
    "init",
    "itakura_saito",
    "kl_divergence",
    "kmeans_loss",
    "kmeans_plus_plus",
    "macqueen",
    "mahalanobis",
    "manhattan",
    "newton",
    "pairwise",
    "random_points",
    "soft_kmeans_loss",
    "softmax",
    "squared_euclidean",
    "statistics",
    "straight_through",
    "update",
]
