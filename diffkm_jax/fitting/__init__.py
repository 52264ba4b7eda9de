"""Fits: one step, which is one pass and one step of an optimizer, and a loop."""

from diffkm_jax.fitting._bounded import fit_bounded
from diffkm_jax.fitting._bounded_assign import assign_bounded, soft_assign_bounded
from diffkm_jax.fitting._fit import fit
from diffkm_jax.fitting._minibatch import fit_minibatch
from diffkm_jax.fitting._reassign import reassign
from diffkm_jax.fitting._restarts import fit_restarts
from diffkm_jax.fitting._state import FitResult, State, init
from diffkm_jax.fitting._status import Status
from diffkm_jax.fitting._update import update

__all__ = [
    "FitResult",
    "State",
    "Status",
    "assign_bounded",
    "fit",
    "fit_bounded",
    "fit_minibatch",
    "fit_restarts",
    "init",
    "reassign",
    "soft_assign_bounded",
    "update",
]
