"""The squared Mahalanobis distance, with a precision that is differentiated too."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from diffkm_torch._checks import check_floating, check_shape
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._products import product
from diffkm_torch.distances._distance import operands


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """What `mahalanobis` returns: a function of x, y [..., d], with its P, [d, d]."""

    precision: Tensor

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """The squared Mahalanobis distance of `x` and `y`, [...]."""
        x, y = operands(x, y)
        p, d = self.precision, self.precision.shape[0]
        if x.shape[-1] != d:
            found = f"{tuple(p.shape)} for vectors of size {x.shape[-1]}"
            raise ValueError(f"precision must be [d, d], got shape {found}")
        dtype = accumulation_dtype(x, p)
        e = (x - y).to(dtype)
        rows = e.reshape(math.prod(e.shape[:-1]), d)
        return (product(rows, p.to(dtype)).reshape(e.shape) * e).sum(-1)


def mahalanobis(precision: Tensor) -> Mahalanobis:
    """Mirrors `diffkm_jax.mahalanobis`: P [d, d] to the distance (x − y)ᵀ P (x − y)."""
    check_floating("precision", precision)
    d = precision.shape[0] if precision.ndim else 0
    check_shape("precision", precision, (d, d), "square, [d, d]")
    return Mahalanobis(precision)
