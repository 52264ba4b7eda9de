"""Gradient estimators as records: the mirror of `diffkm_jax.estimators`."""

from diffkm_torch.estimators._pathwise import (
    blackbox,
    decoupled_gumbel_softmax,
    gapped_straight_through,
    gumbel_rao,
    gumbel_softmax,
    implicit_mle,
    reinmax,
    sampled_straight_through,
    straight_through,
)
from diffkm_torch.estimators._record import Estimator, attach
from diffkm_torch.estimators._score import disarm, exact, rebar, reinforce, rloo

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
