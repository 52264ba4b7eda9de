"""The PyTorch reference of diffkm: the same functions, by autograd, to be read."""

from diffkm_torch.assignments import hard, softmax, straight_through
from diffkm_torch.distances import (
    cosine,
    euclidean,
    itakura_saito,
    kl_divergence,
    mahalanobis,
    manhattan,
    pairwise,
    squared_euclidean,
)
from diffkm_torch.fitting import FitResult, State, Status, fit, init, update
from diffkm_torch.losses import assigned_loss, kmeans_loss, soft_kmeans_loss
from diffkm_torch.optimizers import macqueen, newton, sgd
from diffkm_torch.statistics import Statistics, assign, statistics

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
    "hard",
    "init",
    "itakura_saito",
    "kl_divergence",
    "kmeans_loss",
    "macqueen",
    "mahalanobis",
    "manhattan",
    "newton",
    "pairwise",
    "sgd",
    "soft_kmeans_loss",
    "softmax",
    "squared_euclidean",
    "statistics",
    "straight_through",
    "update",
]
