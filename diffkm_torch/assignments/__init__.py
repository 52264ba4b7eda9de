"""Mirrors `diffkm_jax.assignments`: maps from logits [..., k] to rows."""

from diffkm_torch.assignments._conditional import (
    conditional_gumbel,
    gumbel_rao,
    reinmax_cv,
    reinmax_rao,
)
from diffkm_torch.assignments._entmax import entmax
from diffkm_torch.assignments._fenchel_young import entmax_loss
from diffkm_torch.assignments._gumbel import decoupled_gumbel_softmax, gumbel_softmax
from diffkm_torch.assignments._gumbel_top_k import gumbel_top_k
from diffkm_torch.assignments._perturbed import blackbox, implicit_mle, perturbed_argmax
from diffkm_torch.assignments._sinkhorn import sinkhorn
from diffkm_torch.assignments._softmax import hard, softmax
from diffkm_torch.assignments._sparse import entmax15, sparsemax
from diffkm_torch.assignments._straight_through import (
    gapped_straight_through,
    reinmax,
    sampled_straight_through,
    straight_through,
)
from diffkm_torch.assignments._subsets import (
    simple,
    straight_through_top_k,
    subset_marginals,
)
from diffkm_torch.assignments._top_k import soft_top_k, top_k

__all__ = [
    "blackbox",
    "conditional_gumbel",
    "decoupled_gumbel_softmax",
    "entmax",
    "entmax15",
    "entmax_loss",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_softmax",
    "gumbel_top_k",
    "hard",
    "implicit_mle",
    "perturbed_argmax",
    "reinmax",
    "reinmax_cv",
    "reinmax_rao",
    "sampled_straight_through",
    "simple",
    "sinkhorn",
    "soft_top_k",
    "softmax",
    "sparsemax",
    "straight_through",
    "straight_through_top_k",
    "subset_marginals",
    "top_k",
]
