"""Gradient estimators as records: the mirror of `diffkm_jax.estimators`."""

from diffkm_torch.estimators._attach import attach, over_rows
from diffkm_torch.estimators._binary import arm, arms, bernoulli, disarm
from diffkm_torch.estimators._control_variates import rebar, relax
from diffkm_torch.estimators._enumeration import exact
from diffkm_torch.estimators._estimator import Estimator
from diffkm_torch.estimators._perturbed import blackbox, implicit_mle
from diffkm_torch.estimators._reparameterized import (
    decoupled_gumbel_softmax,
    gumbel_rao,
    gumbel_softmax,
)
from diffkm_torch.estimators._score_function import reinforce, rloo
from diffkm_torch.estimators._stein import rodeo
from diffkm_torch.estimators._straight_through import (
    gapped_straight_through,
    reinmax,
    reinmax_cv,
    reinmax_rao,
    sampled_straight_through,
    straight_through,
)
from diffkm_torch.estimators._subsets import gumbel_top_k, simple
from diffkm_torch.estimators._unordered import unordered_set

__all__ = [
    "Estimator",
    "arm",
    "arms",
    "attach",
    "bernoulli",
    "blackbox",
    "decoupled_gumbel_softmax",
    "disarm",
    "exact",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_softmax",
    "gumbel_top_k",
    "implicit_mle",
    "over_rows",
    "rebar",
    "reinforce",
    "reinmax",
    "reinmax_cv",
    "reinmax_rao",
    "relax",
    "rloo",
    "rodeo",
    "sampled_straight_through",
    "simple",
    "straight_through",
    "unordered_set",
]
