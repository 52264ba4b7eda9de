"""What a pass needs of a distance whose minimizer is a mean.

Such a distance is s D(X, C) of embedded rows, D(x, c) = φ(x) − φ(c) − ⟨∇φ(c), x − c⟩
the Bregman divergence of a convex φ. About an anchor m it is one matrix product:
D(x, m) − D(x, c) = ⟨x − m, ∇φ(c) − ∇φ(m)⟩ − D(m, c).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from diffkm_torch._geometry import anchor
from diffkm_torch._products import product, rows_product


class Expansion(NamedTuple):
    """Scores (x − origin)·duals_j − offsets_j: the nearest centroid has the largest.

    Attributes:
        origin: Of points, [1, d]: m, but 0 in coordinates where that loses them.
        centers: Centroids less the origin, [k, d].
        duals: ∇φ(c) less the same for all j, [k, d].
        offsets: D(m, c) as the origin makes it, [k].
    """

    origin: Tensor
    centers: Tensor
    duals: Tensor
    offsets: Tensor


class Form:
    """Of the squared Euclidean distance: φ = ‖x‖²/2, s = 2; of others what differs."""

    scale = 2.0
    # Whether D(x + a, c + a) = D(x, c), so that an origin in the data loses nothing.
    is_invariant = True
    # Whether centroids are not all of space, but a sphere in it.
    is_curved = False
    # Whether a mean at the edge of the domain may be rounded to beyond it.
    has_edge = False
    # Whether D(x, c) has directions in which it does not depend on c.
    is_flat = False

    def embed(self, rows: Tensor) -> Tensor:
        """The rows X of which the distance is s D, [..., d]."""
        return rows

    def retract(self, rows: Tensor, old: Tensor) -> Tensor:
        """Means of embedded rows, [k, d], as the centroids that they make."""
        del old
        return rows

    def anchor(self, c: Tensor, active: Tensor | None) -> Tensor:
        """m, [1, d], held constant, for embedded centroids."""
        return anchor(c, active)

    def dual(self, b: Tensor, m: Tensor) -> Tensor:
        """∇φ(m + b) − ∇φ(m), of the shape of b."""
        del m
        return b

    def offset(self, b: Tensor, m: Tensor) -> Tensor:
        """D(m, m + b), [k]."""
        del m
        return 0.5 * (b**2).sum(1)

    def expand(self, c: Tensor, b: Tensor, m: Tensor) -> Expansion:
        """The expansion about m for embedded centroids c = m + b."""
        del c
        return Expansion(m, b, self.dual(b, m), self.offset(b, m))

    def scores(self, x: Tensor, e: Expansion, *, held: bool = False) -> Tensor:
        """The scores of embedded points, [n, k], if `held` without a derivative."""
        y = x - e.origin
        found = product(y, e.duals.mT) if held else rows_product(y, e.duals)
        return found - e.offsets

    def cost(self, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        """The distance s D(X, C) of embedded rows with e = x − c, [...]."""
        del x, c
        return (e * e).sum(-1)

    def hessian(self, c: Tensor, v: Tensor) -> Tensor:
        """∇²φ(c_j) v_j, [k, d], at embedded centroids."""
        del c
        return v

    def pull(self, c: Tensor, shifts: Tensor, counts: Tensor) -> Tensor:
        """−∂loss/∂c, [k, d], at centroids as they are given: s ∇²φ(c_j) shifts_j."""
        del counts
        return self.scale * self.hessian(c, shifts)

    def step_cost(self, c: Tensor, step: Tensor) -> Tensor:
        """Σ_j s D(c_j + step_j, c_j), [], at embedded centroids."""
        return self.size(c, step)

    def size(self, c: Tensor, v: Tensor) -> Tensor:
        """Σ_j s/2 ⟨v_j, ∇²φ(c_j) v_j⟩, []: what small changes v of c_j cost."""
        return 0.5 * self.scale * (v * self.hessian(c, v)).sum()

    def inverse_root(self, c: Tensor, v: Tensor) -> Tensor:
        """(s ∇²φ(c_j))^−½ v_j, [k, d], and zero where that is infinite."""
        del c
        return v * self.scale**-0.5

    def mass(self, c: Tensor, shifts: Tensor, counts: Tensor) -> Tensor:
        """About what s ∇²φ(c_j) is to be multiplied by for the Hessian, [k]."""
        del c, shifts
        return counts

    def outside(self, rows: Tensor) -> Tensor | None:
        """Which rows [n, d] the distance is not defined for, [n]; None if for all."""
        del rows
        return None

    def is_negative(self, x: Tensor, c: Tensor, labels: Tensor) -> Tensor | None:
        """Where D(x, c[labels]) is below zero by more than rounding; None if never."""
        del x, c, labels
        return None
