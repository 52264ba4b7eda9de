"""The PyTorch reference of diffkm: the same functions, by autograd, to be read."""

try:
    import torch as torch
except ImportError as error:
    raise ImportError(
        "diffkm_torch needs PyTorch, which is not installed: "
        'pip install "diffkm[torch]"; its CPU build alone is much smaller'
    ) from error

from importlib.metadata import version

from diffkm_torch import estimators
from diffkm_torch.assignments import (
    blackbox,
    conditional_gumbel,
    decoupled_gumbel_softmax,
    entmax,
    entmax15,
    entmax_loss,
    gapped_straight_through,
    gumbel_rao,
    gumbel_softmax,
    hard,
    implicit_mle,
    perturbed_argmax,
    reinmax,
    reinmax_cv,
    reinmax_rao,
    sampled_straight_through,
    sinkhorn,
    softmax,
    sparsemax,
    straight_through,
)
from diffkm_torch.distances import (
    bregman,
    cosine,
    euclidean,
    itakura_saito,
    kl_divergence,
    mahalanobis,
    manhattan,
    pairwise,
    squared_euclidean,
)
from diffkm_torch.fitting import (
    FitResult,
    State,
    Status,
    assign_bounded,
    fit,
    fit_bounded,
    init,
    reassign,
    soft_assign_bounded,
    update,
)
from diffkm_torch.losses import assigned_loss, kmeans_loss, soft_kmeans_loss
from diffkm_torch.modules import KMeansLoss, VectorQuantizer
from diffkm_torch.optimizers import ema, macqueen, newton, sgd
from diffkm_torch.quantizers import (
    Quantized,
    nsvq,
    quantize,
    rotation_trick,
    straight_through_vector,
)
from diffkm_torch.statistics import Statistics, assign, statistics

__version__ = version("diffkm")

__all__ = [
    "FitResult",
    "KMeansLoss",
    "Quantized",
    "State",
    "Statistics",
    "Status",
    "VectorQuantizer",
    "assign",
    "assign_bounded",
    "assigned_loss",
    "blackbox",
    "bregman",
    "conditional_gumbel",
    "cosine",
    "decoupled_gumbel_softmax",
    "ema",
    "entmax",
    "entmax15",
    "entmax_loss",
    "estimators",
    "euclidean",
    "fit",
    "fit_bounded",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_softmax",
    "hard",
    "implicit_mle",
    "init",
    "itakura_saito",
    "kl_divergence",
    "kmeans_loss",
    "macqueen",
    "mahalanobis",
    "manhattan",
    "newton",
    "nsvq",
    "pairwise",
    "perturbed_argmax",
    "quantize",
    "reassign",
    "reinmax",
    "reinmax_cv",
    "reinmax_rao",
    "rotation_trick",
    "sampled_straight_through",
    "sgd",
    "sinkhorn",
    "soft_assign_bounded",
    "soft_kmeans_loss",
    "softmax",
    "sparsemax",
    "squared_euclidean",
    "statistics",
    "straight_through",
    "straight_through_vector",
    "update",
]
