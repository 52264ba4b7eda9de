"""Fits: one step, which is one pass and one step of an optimizer, and a loop."""

from diffkm_torch.fitting._fit import fit
from diffkm_torch.fitting._reassign import reassign
from diffkm_torch.fitting._state import FitResult, State, Status, init
from diffkm_torch.fitting._step import update

__all__ = ["FitResult", "State", "Status", "fit", "init", "reassign", "update"]
