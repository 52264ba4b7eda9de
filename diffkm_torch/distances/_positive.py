"""Forms of the divergences of positive rows: Kullback–Leibler and Itakura–Saito."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch.distances._form import Expansion, Form
from diffkm_torch.distances._ratios import (
    log_ratio,
    sum_itakura_saito,
    sum_kullback_leibler,
    sums_of_steps,
)

# Beyond it an origin of 0 loses less than one in the data.
WIDE = 4


class KullbackLeiblerForm(Form):
    """φ = Σ x log x − x, s = 1; a coordinate with x = 0 or with c = 0 is inside."""

    scale = 1.0
    is_invariant = False
    has_edge = True

    def retract(self, rows: Tensor, old: Tensor) -> Tensor:
        # The mean of zeros is c − Σ c / n, and rounded it may be below 0.
        most = torch.finfo(rows.dtype).eps ** 0.5 * old
        is_rounding = (rows < 0) & (rows >= -most)
        return torch.where(is_rounding, rows - rows.detach(), rows)

    def anchor(self, c: Tensor, active: Tensor | None) -> Tensor:
        m, c = super().anchor(c, active), c.detach()
        # Of which a logarithm is taken; where all centroids are 0 any number will do.
        c = c if active is None else torch.where(active[:, None], c, 0)
        largest = c.amax(0, keepdim=True)
        largest = torch.where(largest > 0, largest, 1)
        return torch.where(m == 0, largest, m)

    def dual(self, b: Tensor, m: Tensor) -> Tensor:
        # Not −∞, of which the product with x = 0 would be NaN.
        c = m + b
        dual = torch.where(c <= 0, torch.finfo(c.dtype).min, log_ratio(c, m))
        return torch.where(m <= 0, 0, dual)

    def expand(self, c: Tensor, b: Tensor, m: Tensor) -> Expansion:
        # x log(c/m) − c about an origin of 0, where x − m would lose an x far below m,
        # or where x = 0 must leave no trace of m.
        plain = is_wide(c)
        origin = torch.where(plain, 0, m)
        about = sum_kullback_leibler(*(torch.where(plain, 1, a) for a in (m, c)))
        offsets = about + torch.where(plain, c, 0).sum(1)
        return Expansion(origin, c - origin, self.dual(b, m), offsets)

    def scores(self, x: Tensor, e: Expansion, *, held: bool = False) -> Tensor:
        # By convention a distance has the derivative 0 there, where it is −∞.
        x = x if held else torch.where(x <= 0, x.detach(), x)
        return super().scores(x, e, held=held)

    def cost(self, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        del e
        return sum_kullback_leibler(x, c)

    def hessian(self, c: Tensor, v: Tensor) -> Tensor:
        return v / torch.where(c == 0, torch.inf, c)

    def pull(self, c: Tensor, shifts: Tensor, counts: Tensor) -> Tensor:
        # Where c = 0 = x, the derivative of the divergence is 1.
        return torch.where(c == 0, -counts[:, None], self.hessian(c, shifts))

    def step_cost(self, c: Tensor, step: Tensor) -> Tensor:
        return sums_of_steps(c, step)[0]

    def inverse_root(self, c: Tensor, v: Tensor) -> Tensor:
        return c.sqrt() * v

    def outside(self, rows: Tensor) -> Tensor:
        return (rows < 0).any(1)


class ItakuraSaitoForm(Form):
    """φ = −Σ log x, s = 1."""

    scale = 1.0
    is_invariant = False

    def dual(self, b: Tensor, m: Tensor) -> Tensor:
        # Not b/(m c), which over- and underflows at 1e∓25.
        return (b / m) / (m + b)

    def expand(self, c: Tensor, b: Tensor, m: Tensor) -> Expansion:
        # −x/c − log c about an origin of 0, where x − m would lose an x far below m.
        plain = is_wide(c)
        origin = torch.where(plain, 0, m)
        duals = torch.where(plain, -1 / c, self.dual(b, m))
        about = sum_itakura_saito(*(torch.where(plain, 1, a) for a in (m, c)))
        offsets = about + torch.where(plain, log_ratio(c, m), 0).sum(1)
        return Expansion(origin, c - origin, duals, offsets)

    def cost(self, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        del e
        return sum_itakura_saito(x, c)

    def hessian(self, c: Tensor, v: Tensor) -> Tensor:
        return (v / c) / c

    def step_cost(self, c: Tensor, step: Tensor) -> Tensor:
        return sums_of_steps(c, step)[1]

    def inverse_root(self, c: Tensor, v: Tensor) -> Tensor:
        return c * v

    def outside(self, rows: Tensor) -> Tensor:
        return (rows <= 0).any(1)


def is_wide(c: Tensor) -> Tensor:
    """In which coordinates centroids differ by more than a factor of WIDE, [1, d]."""
    c = c.detach()
    return c.amax(0, keepdim=True) >= WIDE * c.amin(0, keepdim=True)
