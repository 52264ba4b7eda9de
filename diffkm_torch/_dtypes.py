"""The dtype in which sums, losses and softmaxes are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Float64 if any of the tensors is, else float32: the dtype of sums and losses."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32
