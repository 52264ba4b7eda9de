"""Fits: one step, which is one pass and one step of an optimizer, and a loop."""

from diffkm_torch.fitting._bounded import (
    assign_bounded,
    fit_bounded,
    soft_assign_bounded,
)
from diffkm_torch.fitting._fit import fit
from diffkm_torch.fitting._reassign import reassign
from diffkm_torch.fitting._state import FitResult, State, Status, init
from diffkm_torch.fitting._step import update

__all__ = [
    "FitResult",
    "State",
    "Status",
    "assign_bounded",
    "fit",
    "fit_bounded",
    "init",
    "reassign",
    "soft_assign_bounded",
    "update",
]
