"""Gradient estimators as records: the mirror of `diffkm_jax.estimators`."""

from diffkm_torch.estimators._attach import attach
from diffkm_torch.estimators._enumeration import exact
from diffkm_torch.estimators._estimator import Estimator
from diffkm_torch.estimators._perturbed import blackbox, implicit_mle
from diffkm_torch.estimators._reparameterized import (
    decoupled_gumbel_softmax,
    gumbel_rao,
    gumbel_softmax,
)
from diffkm_torch.estimators._score_function import disarm, rebar, reinforce, rloo
from diffkm_torch.estimators._straight_through import (
    gapped_straight_through,
    reinmax,
    sampled_straight_through,
    straight_through,
)

__all__ = [
    "Estimator",
    "attach",
    "blackbox",
    "decoupled_gumbel_softmax",
    "disarm",
    "exact",
    "gapped_straight_through",
    "gumbel_rao",
    "gumbel_softmax",
    "implicit_mle",
    "rebar",
    "reinforce",
    "reinmax",
    "rloo",
    "sampled_straight_through",
    "straight_through",
]
