"""What a distance is, and what it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffkm_torch._checks import as_real
from diffkm_torch._dtypes import accumulation_dtype

Distance = Callable[[Tensor, Tensor], Tensor]


def operands(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The two, checked, in the accumulation dtype."""
    x, y = as_real("x", x), as_real("y", y)
    shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must share their last axis d, got shapes {shapes}")
    dtype = accumulation_dtype(x, y)
    try:
        torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError as error:
        raise ValueError(f"x and y must broadcast, got shapes {shapes}") from error
    return x.to(dtype), y.to(dtype)
