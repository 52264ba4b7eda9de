"""Maps from logits [..., k] to rows of an assignment matrix, each with its gradient.

A logit of −inf is never chosen. A row of nothing else has no draw: soft maps return NaN
in it, discrete ones cluster 0; its gradient is zero, and other rows do not notice.
A logit or noise of +inf, and noise of −inf, count as the limit of large ones: a relaxed
row is one-hot with gradient zero. What −inf of one excludes, +inf of the other does not
bring back.
"""

from diffkm_jax.assignments._conditional import conditional_gumbel, gumbel_rao
from diffkm_jax.assignments._entmax import entmax
from diffkm_jax.assignments._fenchel_young import entmax_loss
from diffkm_jax.assignments._gumbel import decoupled_gumbel_softmax, gumbel_softmax
from diffkm_jax.assignments._gumbel_top_k import gumbel_top_k
from diffkm_jax.assignments._halfway import reinmax_cv, reinmax_rao
from diffkm_jax.assignments._perturbed import blackbox, implicit_mle, perturbed_argmax
from diffkm_jax.assignments._sinkhorn import sinkhorn
from diffkm_jax.assignments._softmax import hard, softmax
from diffkm_jax.assignments._sparse import entmax15, sparsemax
from diffkm_jax.assignments._straight_through import (
    gapped_straight_through,
    reinmax,
    sampled_straight_through,
    straight_through,
)
from diffkm_jax.assignments._subsets import (
    simple,
    straight_through_top_k,
    subset_marginals,
)
from diffkm_jax.assignments._top_k import soft_top_k, top_k

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
