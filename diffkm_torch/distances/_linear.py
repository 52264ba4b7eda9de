"""Forms of distances whose duals are linear in the rows: Mahalanobis and cosine."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._numerics import polar
from diffkm_torch._products import product
from diffkm_torch.distances._form import Expansion, Form


class MahalanobisForm(Form):
    """φ = xᵀPx/2 of the symmetric part of P, s = 2."""

    is_flat = True

    def __init__(self, precision: Tensor) -> None:
        self.precision = 0.5 * (precision + precision.mT)

    def _times(self, v: Tensor) -> Tensor:
        if len(self.precision) != v.shape[-1]:
            found = f"{tuple(self.precision.shape)} for vectors of size {v.shape[-1]}"
            raise ValueError(f"precision must be [d, d], got shape {found}")
        return product(v, self.precision.to(v.dtype))

    def dual(self, b: Tensor, m: Tensor) -> Tensor:
        del m
        return self._times(b)

    def offset(self, b: Tensor, m: Tensor) -> Tensor:
        del m
        return 0.5 * (b * self._times(b)).sum(1)

    def cost(self, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        del x, c
        return (e * self._times(e)).sum(-1)

    def hessian(self, c: Tensor, v: Tensor) -> Tensor:
        del c
        return self._times(v)

    def inverse_root(self, c: Tensor, v: Tensor) -> Tensor:
        del c
        return inverse_root(2 * self.precision.to(v.dtype)[None], v)

    def is_negative(self, x: Tensor, c: Tensor, labels: Tensor) -> Tensor:
        e = x - c[labels]
        size = (e * e).sum(1) * self.precision.to(e.dtype).norm()
        return self.cost(x, c, e) < -8 * torch.finfo(e.dtype).eps * size


class CosineForm(Form):
    """φ = ‖x‖²/2 of unit rows, s = 1; a row of zeros stays one, at distance 1."""

    scale = 1.0
    is_invariant = False
    is_curved = True
    is_flat = True

    def embed(self, rows: Tensor) -> Tensor:
        return polar(rows)[2]

    def retract(self, rows: Tensor, old: Tensor) -> Tensor:
        # A mean of zero has no direction.
        scale, _, unit = polar(rows)
        return torch.where(scale == 0, old, unit)

    def offset(self, b: Tensor, m: Tensor) -> Tensor:
        return self.cost(m, m + b, -b)

    def scores(self, x: Tensor, e: Expansion, *, held: bool = False) -> Tensor:
        # Rounding must not choose where all centroids are as far.
        return torch.where(is_zero_row(x), 0, super().scores(x, e, held=held))

    def cost(self, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        # Not 1 − x̂·ŷ, which is left with nothing but rounding where the two are close.
        distance = 0.5 * (e * e).sum(-1)
        zero = (is_zero_row(x) | is_zero_row(c))[..., 0]
        # A NaN in the other row stays one.
        return torch.where(zero, 1 + (distance - distance), distance)

    def pull(self, c: Tensor, shifts: Tensor, counts: Tensor) -> Tensor:
        # (I − ĉĉᵀ) shifts/‖c‖: the embedding, transposed.
        del counts
        return torch.func.vjp(self.embed, c)[1](shifts)[0]

    def step_cost(self, c: Tensor, step: Tensor) -> Tensor:
        return 0.5 * ((self.retract(c + step, c) - c) ** 2).sum()

    def mass(self, c: Tensor, shifts: Tensor, counts: Tensor) -> Tensor:
        # At rest the Hessian is the length of the sum of unit rows, and less.
        return (shifts + counts[:, None] * c).norm(dim=1)

    def outside(self, rows: Tensor) -> Tensor:
        # As to `polar`, which takes a subnormal number for zero.
        return (rows.abs() < torch.finfo(rows.dtype).tiny).all(1)


def is_zero_row(rows: Tensor) -> Tensor:
    """Which unit rows [..., d] are rows of zeros, [..., 1]."""
    return (rows * rows).sum(-1, keepdim=True) < 0.5


def inverse_root(matrix: Tensor, v: Tensor) -> Tensor:
    """M^−½ v_j, [k, d], of semidefinite M, [k or 1, d, d]; 0 in their null spaces."""
    values, vectors = torch.linalg.eigh(matrix)
    bound = torch.finfo(values.dtype).eps * values.shape[-1] * values[:, -1:]
    positive = values > bound
    roots = torch.where(positive, torch.where(positive, values, 1).rsqrt(), 0)
    along = product(v[:, None], vectors) * roots[:, None]
    return product(along, vectors.mT)[:, 0]
