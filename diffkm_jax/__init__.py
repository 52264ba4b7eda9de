"""Differentiable k-means in JAX: losses, assignments, optimizers and fits.

In the examples of the docstrings `import jax, jax.numpy as jnp, numpy as np, optax` and
`import diffkm_jax as dk` have run, and `es` is `dk.estimators`; in those of the torch
package also `import torch, diffkm_torch as dt`.

Points, centroids and weights that are integers or bools become the default float.
"""

from importlib.metadata import version

import diffkm_jax._public
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
from diffkm_jax.sharding import fit_sharded, fit_specs
from diffkm_jax.statistics import Statistics, assign, statistics
from diffkm_jax.storage import load, save
from diffkm_jax.streaming import StreamResult, fit_stream

__version__ = version("diffkm")

__all__ = [
    "Certificate",
    "FitResult",
    "LookupFreeQuantized",
    "Quantized",
    "Report",
    "ScalarQuantized",
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
    "diveq",
    "ema",
    "entmax",
    "entmax15",
    "entmax_loss",
    "estimators",
    "euclidean",
    "evaluate",
    "finite_scalar_quantize",
    "finite_scalar_values",
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
    "gumbel_top_k",
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
    "random_points",
    "reassign",
    "reinmax",
    "reinmax_cv",
    "reinmax_rao",
    "residual_quantize",
    "rotation_trick",
    "sampled_straight_through",
    "save",
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
    "tune",
    "update",
]

diffkm_jax._public.show_public(__name__)
