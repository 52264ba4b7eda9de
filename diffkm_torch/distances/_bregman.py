"""The Bregman divergence of any convex function, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkm_torch._checks import check_callable
from diffkm_torch.distances._distance import operands
from diffkm_torch.distances._form import Form
from diffkm_torch.distances._linear import inverse_root


@dataclass(frozen=True, eq=False)
class Bregman:
    """What `bregman` returns: a function of x, y [..., d], with its φ."""

    phi: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """The Bregman divergence of `x` from `y`, [...]."""
        x, y = operands(x, y)
        value = self.values(x) - self.values(y)
        return value - (self.gradients(y) * (x - y)).sum(-1)

    def values(self, rows: Tensor) -> Tensor:
        """φ of every row of a tensor [..., d], [...]."""
        flat = rows.reshape(rows.shape[:-1].numel(), rows.shape[-1])
        return torch.func.vmap(self._value)(flat).reshape(rows.shape[:-1])

    def gradients(self, rows: Tensor) -> Tensor:
        """∇φ of every row of a tensor [..., d], [..., d]."""
        return torch.func.grad(lambda rows: self.values(rows).sum())(rows)

    def _value(self, row: Tensor) -> Tensor:
        found = torch.as_tensor(self.phi(row))
        if found.shape != ():
            got = f"shape {tuple(found.shape)} for a vector of shape {tuple(row.shape)}"
            raise ValueError(f"phi must return a scalar, got {got}")
        return found.to(row.dtype)


def bregman(phi: Callable[[Tensor], Tensor]) -> Bregman:
    """Mirrors `diffkm_jax.bregman`: φ to D(x, y) = φ(x) − φ(y) − ⟨∇φ(y), x − y⟩.

    Tensors that φ closes over have gradients too, and `torch.func.vmap` must bear it.
    """
    check_callable("phi", phi)
    return Bregman(phi)


class BregmanForm(Form):
    """Of a φ that is only known as a function, s = 1."""

    scale = 1.0
    is_invariant = False
    is_flat = True

    def __init__(self, divergence: Bregman) -> None:
        self.divergence = divergence

    def dual(self, b: Tensor, m: Tensor) -> Tensor:
        return self.divergence.gradients(m + b) - self.divergence.gradients(m)

    def offset(self, b: Tensor, m: Tensor) -> Tensor:
        return self.divergence(m, m + b)

    def cost(self, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        del e
        return self.divergence(x, c)

    def hessian(self, c: Tensor, v: Tensor) -> Tensor:
        def along(c: Tensor) -> Tensor:
            return (self.divergence.gradients(c) * v).sum()

        return torch.func.grad(along)(c)

    def step_cost(self, c: Tensor, step: Tensor) -> Tensor:
        # ∫ (1 − t) ⟨δ, ∇²φ(c + t δ) δ⟩ dt, to third order in δ, and not the difference
        # of two φ, which is noise near rest.
        return self.size(c + step / 3, step)

    def inverse_root(self, c: Tensor, v: Tensor) -> Tensor:
        basis = torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
        rows = [self.hessian(c, e.expand_as(c)) for e in basis]
        return inverse_root(torch.stack(rows, 1), v)

    def outside(self, rows: Tensor) -> Tensor:
        return ~self.divergence.values(rows).isfinite() & rows.isfinite().all(1)

    def is_negative(self, x: Tensor, c: Tensor, labels: Tensor) -> Tensor:
        c = c[labels]
        # Of a φ that is not convex; what its rounding is, nobody knows.
        slope = (self.divergence.gradients(c) * (x - c)).sum(1)
        size = self.divergence.values(c).abs() + slope.abs()
        return self.divergence(x, c) < -(torch.finfo(x.dtype).eps ** 0.5) * size
