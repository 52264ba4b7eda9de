"""The PyTorch reference of diffkm: the same functions, by autograd, to be read.

In the examples of the docstrings `import torch, diffkm_torch as dt` has run, and `es`
is `dt.estimators`. That a name mirrors one of `diffkm_jax` is for who reads both: only
`agreement` and `bridge` need that package.
"""

try:
    import torch as torch
except ImportError as error:
    raise ImportError(
        "diffkm_torch needs PyTorch, which is not installed: "
        'pip install "diffkm[torch]"; its CPU build alone is much smaller'
    ) from error

import sys
from importlib.metadata import version

import diffkm_torch._docstrings
import diffkm_torch._public
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
    gumbel_top_k,
    hard,
    implicit_mle,
    perturbed_argmax,
    reinmax,
    reinmax_cv,
    reinmax_rao,
    sampled_straight_through,
    simple,
    sinkhorn,
    soft_top_k,
    softmax,
    sparsemax,
    straight_through,
    straight_through_top_k,
    subset_marginals,
    top_k,
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
    LookupFreeQuantized,
    Quantized,
    ScalarQuantized,
    diveq,
    finite_scalar_quantize,
    finite_scalar_values,
    lookup_free_quantize,
    lookup_free_values,
    nsvq,
    product_quantize,
    quantize,
    residual_quantize,
    rotation_trick,
    straight_through_vector,
)
from diffkm_torch.statistics import Statistics, assign, statistics

__version__ = version("diffkm")

__all__ = [
    "FitResult",
    "KMeansLoss",
    "LookupFreeQuantized",
    "Quantized",
    "ScalarQuantized",
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
    "diveq",
    "ema",
    "entmax",
    "entmax15",
    "entmax_loss",
    "estimators",
    "euclidean",
    "finite_scalar_quantize",
    "finite_scalar_values",
    "fit",
    "fit_bounded",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_softmax",
    "gumbel_top_k",
    "hard",
    "implicit_mle",
    "init",
    "itakura_saito",
    "kl_divergence",
    "kmeans_loss",
    "lookup_free_quantize",
    "lookup_free_values",
    "macqueen",
    "mahalanobis",
    "manhattan",
    "newton",
    "nsvq",
    "pairwise",
    "perturbed_argmax",
    "product_quantize",
    "quantize",
    "reassign",
    "reinmax",
    "reinmax_cv",
    "reinmax_rao",
    "residual_quantize",
    "rotation_trick",
    "sampled_straight_through",
    "sgd",
    "simple",
    "sinkhorn",
    "soft_assign_bounded",
    "soft_kmeans_loss",
    "soft_top_k",
    "softmax",
    "sparsemax",
    "squared_euclidean",
    "statistics",
    "straight_through",
    "straight_through_top_k",
    "straight_through_vector",
    "subset_marginals",
    "top_k",
    "update",
]

diffkm_torch._docstrings.attach(sys.modules[__name__])
diffkm_torch._public.show_public(__name__)
