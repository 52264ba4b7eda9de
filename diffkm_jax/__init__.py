"""Differentiable k-means in JAX: losses, assignments, optimizers and fits.

In the examples of the docstrings `import jax, jax.numpy as jnp, numpy as np, optax` and
`import diffkm_jax as dk` have run, and `es` is `dk.estimators`; in those of the torch
package also `import torch, diffkm_torch as dt`.

Points, centroids and weights that are integers or bools become the default float.
"""

from importlib.metadata import version

from diffkm_jax import estimators
from diffkm_jax.assignments import (
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
from diffkm_jax.diagnostics import (
    Certificate,
    Report,
    certificate,
    evaluate,
    is_discrete,
    tune,
)
from diffkm_jax.distances import (
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
from diffkm_jax.fitting import (
    FitResult,
    State,
    Status,
    assign_bounded,
    fit,
    fit_bounded,
    fit_minibatch,
    fit_restarts,
    init,
    reassign,
    soft_assign_bounded,
    update,
)
from diffkm_jax.initializers import (
    kmeans_parallel,
    kmeans_plus_plus,
    random_points,
)
from diffkm_jax.losses import assigned_loss, kmeans_loss, soft_kmeans_loss
from diffkm_jax.optimizers import ema, macqueen, newton
from diffkm_jax.quantizers import (
    Quantized,
    nsvq,
    quantize,
    rotation_trick,
    straight_through_vector,
)
from diffkm_jax.sharding import fit_sharded, fit_specs
from diffkm_jax.statistics import Statistics, assign, statistics
from diffkm_jax.storage import load, save
from diffkm_jax.streaming import StreamResult, fit_stream

__version__ = version("diffkm")

__all__ = [
    "Certificate",
    "FitResult",
    "Quantized",
    "Report",
    "State",
    "Statistics",
    "Status",
    "StreamResult",
    "assign",
    "assign_bounded",
    "assigned_loss",
    "blackbox",
    "bregman",
    "certificate",
    "conditional_gumbel",
    "cosine",
    "decoupled_gumbel_softmax",
    "ema",
    "entmax",
    "entmax15",
    "entmax_loss",
    "estimators",
    "euclidean",
    "evaluate",
    "fit",
    "fit_bounded",
    "fit_minibatch",
    "fit_restarts",
    "fit_sharded",
    "fit_specs",
    "fit_stream",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_softmax",
    "hard",
    "implicit_mle",
    "init",
    "is_discrete",
    "itakura_saito",
    "kl_divergence",
    "kmeans_loss",
    "kmeans_parallel",
    "kmeans_plus_plus",
    "load",
    "macqueen",
    "mahalanobis",
    "manhattan",
    "newton",
    "nsvq",
    "pairwise",
    "perturbed_argmax",
    "quantize",
    "random_points",
    "reassign",
    "reinmax",
    "reinmax_cv",
    "reinmax_rao",
    "rotation_trick",
    "sampled_straight_through",
    "save",
    "sinkhorn",
    "soft_assign_bounded",
    "soft_kmeans_loss",
    "softmax",
    "sparsemax",
    "squared_euclidean",
    "statistics",
    "straight_through",
    "straight_through_vector",
    "tune",
    "update",
]
