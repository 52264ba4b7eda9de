"""What a pass needs of a distance whose minimizer is a mean.

Such a distance is s D(X, C) of embedded rows, D(x, c) = φ(x) − φ(c) − ⟨∇φ(c), x − c⟩
the Bregman divergence of a convex φ. About an anchor m it is one matrix product:
D(x, m) − D(x, c) = ⟨x − m, ∇φ(c) − ∇φ(m)⟩ − D(m, c).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax._geometry import anchor, matmul


class Expansion(NamedTuple):
    """Scores (x − origin)·duals_j − offsets_j: the nearest centroid has the largest.

    Attributes:
        anchor: m, [1, d].
        origin: Of points, [1, d]: m, but 0 in coordinates where that loses them.
        centers: Centroids less the origin, [k, d].
        duals: ∇φ(c) less the same for all j, [k, d].
        offsets: D(m, c) as the origin makes it, [k, 1].
    """

    anchor: jax.Array
    origin: jax.Array
    centers: jax.Array
    duals: jax.Array
    offsets: jax.Array


class Form:
    """Of the squared Euclidean distance: φ = ‖x‖²/2, s = 2; of others what differs."""

    scale = 2.0
    # Whether D(x + a, c + a) = D(x, c), so that an origin in the data loses nothing.
    is_invariant = True
    # What rows must do, if not all are in the domain.
    domain = ""
    # Whether √(2 D) is a norm of the difference.
    is_metric = True
    # Whether centroids are not all of space, but a sphere in it.
    is_curved = False
    # Whether a mean at the edge of the domain may be rounded to beyond it.
    has_edge = False
    # Whether D(x, c) has directions in which it does not depend on c.
    is_flat = False

    def embed(self, rows: jax.Array) -> jax.Array:
        """The rows X of which the distance is s D, [..., d]."""
        return rows

    def retract(self, rows: jax.Array, old: jax.Array) -> jax.Array:
        """Means of embedded rows, [k, d], as the centroids that they make."""
        del old
        return rows

    def anchor(self, c: jax.Array, active: jax.Array | None) -> jax.Array:
        """m, [1, d], held constant, for embedded centroids."""
        return anchor(c, active)

    def dual(self, b: jax.Array, m: jax.Array) -> jax.Array:
        """∇φ(m + b) − ∇φ(m), of the shape of b."""
        del m
        return b

    def offset(self, b: jax.Array, m: jax.Array) -> jax.Array:
        """D(m, m + b), [k]."""
        del m
        return 0.5 * jnp.sum(b**2, axis=1)

    def expand(self, c: jax.Array, b: jax.Array, m: jax.Array) -> Expansion:
        """The expansion about m for embedded centroids c = m + b."""
        del c
        return Expansion(m, m, b, self.dual(b, m), self.offset(b, m)[:, None])

    def directionless(self, rows: jax.Array) -> jax.Array | None:
        """Which rows [n, d] are as far from all others, [n]; None if none can be."""
        del rows
        return None

    def scores(
        self, x: jax.Array, e: Expansion, directionless: jax.Array | None = None
    ) -> jax.Array:
        """The scores of embedded points, [k, block], some without a direction.

        Clusters are the major axis, because a reduction over the minor one is slow.
        """
        scores = matmul(e.duals, (x - e.origin).T) - e.offsets
        if directionless is None:
            return scores
        # Rounding must not choose where all centroids are as far.
        return jnp.where(directionless[None], 0, scores)

    def cost(
        self, x: jax.Array, c: jax.Array, directionless: jax.Array | None = None
    ) -> jax.Array:
        """The distance s D(X, C) of embedded rows, [...], as stable as it can be.

        Of which pairs a row has no direction may be known already.
        """
        del directionless
        return jnp.sum((x - c) ** 2, axis=-1)

    def energy(self, x: jax.Array, e: Expansion) -> jax.Array:
        """What the distance of embedded points and s times a score add up to, [n]."""
        return self.cost(x, e.anchor)

    def slope(self, x: jax.Array, e: Expansion, mean_dual: jax.Array) -> jax.Array:
        """∇φ(x) − Σ_j r_j ∇φ(c_j), [block, d], for the mean of duals Σ_j r_j dual_j."""
        return self.dual(x - e.anchor, e.anchor) - mean_dual

    def hessian(self, c: jax.Array, v: jax.Array) -> jax.Array:
        """∇²φ(c_j) v_j, [k, d], at embedded centroids."""
        del c
        return v

    def pull(self, c: jax.Array, shifts: jax.Array, counts: jax.Array) -> jax.Array:
        """−∂loss/∂c, [k, d], at centroids as they are given: s ∇²φ(c_j) shifts_j."""
        del counts
        return self.scale * self.hessian(c, shifts)

    def loss_change(
        self, c: jax.Array, move: jax.Array, shifts: jax.Array, counts: jax.Array
    ) -> jax.Array:
        """What the loss of given labels changes by if embedded centroids move, []."""
        # Σ_i w s (D(x, c + m) − D(x, c)) = s (n D(c, c + m) − ⟨∇φ(c + m) − ∇φ(c), u⟩)
        away = jnp.sum(counts * self.cost(c, c + move))
        return away - self.scale * jnp.sum(self.dual(move, c) * shifts)

    def step_cost(self, c: jax.Array, step: jax.Array) -> jax.Array:
        """Σ_j s D(c_j + step_j, c_j), [], at embedded centroids, without a gradient."""
        del c
        return jnp.sum(step**2)

    def size(self, c: jax.Array, v: jax.Array) -> jax.Array:
        """Σ_j s/2 ⟨v_j, ∇²φ(c_j) v_j⟩, []: what small changes v of c_j cost."""
        return 0.5 * self.scale * jnp.sum(v * self.hessian(c, v))

    def tangent(self, c: jax.Array, v: jax.Array) -> jax.Array:
        """What of moves v of centroids as given, [k, d], changes a distance at all."""
        del c
        return v

    def curvature(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least and largest eigenvalues of s ∇²φ(c_j), [k], at centroids given."""
        every = jnp.full(len(c), self.scale, c.dtype)
        return every, every

    def critical_temperature(self, mean: jax.Array, covariance: jax.Array) -> jax.Array:
        """Above it, [], centroids merge in the mean, [1, d], of embedded points.

        Where s times an eigenvalue of ∇²φ Σ, Σ the covariance, is the largest.
        """
        values, vectors = jnp.linalg.eigh(covariance)
        # The rows of Σ^½; what is not positive is rounding.
        roots = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
        at = jnp.broadcast_to(mean, covariance.shape)
        inner = matmul(roots, self.hessian(at, roots).T)
        return self.scale * jnp.max(jnp.linalg.eigvalsh(inner), initial=0)

    def move(self, c: jax.Array, radius: jax.Array) -> jax.Array:
        """How far centroids as given may move, [], for a radius in √(2 D)."""
        del c
        return radius

    def inverse_root(self, c: jax.Array, v: jax.Array) -> jax.Array:
        """(s ∇²φ(c_j))^−½ v_j, [k, d], and zero where that is infinite."""
        del c
        return v * float(self.scale**-0.5)

    def mass(self, c: jax.Array, shifts: jax.Array, counts: jax.Array) -> jax.Array:
        """About what s ∇²φ(c_j) is to be multiplied by for the Hessian, [k]."""
        del c, shifts
        return counts

    def outside(self, rows: Any) -> Any:
        """Which rows [n, d] the distance is not defined for, [n]; None if for all.

        Of NumPy's arrays too; a NaN is no reason.
        """
        del rows
        return None

    def is_negative(self, x: jax.Array, c: jax.Array) -> jax.Array | None:
        """Where a distance is below zero by more than rounding; None if never."""
        del x, c
        return None
