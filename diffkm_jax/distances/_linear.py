"""Forms of distances whose duals are linear in the rows: Mahalanobis and cosine."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffkm_jax._geometry import matmul
from diffkm_jax._numerics import nonzero, polar
from diffkm_jax.distances._form import Form


class MahalanobisForm(Form):
    """φ = xᵀPx/2 of the symmetric part of P, s = 2."""

    is_flat = True

    def __init__(self, precision: jax.Array) -> None:
        self.precision = 0.5 * (precision + precision.T)

    def _times(self, v: jax.Array) -> jax.Array:
        return matmul(v, self.precision.astype(v.dtype))

    def dual(self, b: jax.Array, m: jax.Array) -> jax.Array:
        del m
        return self._times(b)

    def offset(self, b: jax.Array, m: jax.Array) -> jax.Array:
        del m
        return 0.5 * jnp.sum(b * self._times(b), axis=1)

    def cost(
        self, x: jax.Array, c: jax.Array, directionless: jax.Array | None = None
    ) -> jax.Array:
        del directionless
        e = x - c
        return jnp.sum(e * self._times(e), axis=-1)

    def hessian(self, c: jax.Array, v: jax.Array) -> jax.Array:
        del c
        return self._times(v)

    def step_cost(self, c: jax.Array, step: jax.Array) -> jax.Array:
        return self.size(c, step)

    def is_negative(self, x: jax.Array, c: jax.Array) -> jax.Array:
        size = jnp.sum((x - c) ** 2, axis=1) * jnp.linalg.norm(self.precision)
        rounding = 8 * float(jnp.finfo(x.dtype).eps) * size.astype(x.dtype)
        return self.cost(x, c) < -rounding

    def curvature(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = jnp.linalg.eigvalsh(2 * self.precision.astype(c.dtype))
        least, largest = jnp.min(values, initial=jnp.inf), jnp.max(values, initial=0)
        return jnp.full(len(c), least), jnp.full(len(c), largest)

    def move(self, c: jax.Array, radius: jax.Array) -> jax.Array:
        # ‖v‖² in the metric is vᵀPv ≤ λ ‖v‖².
        return radius / jnp.sqrt(0.5 * self.curvature(c)[1][0])

    def inverse_root(self, c: jax.Array, v: jax.Array) -> jax.Array:
        del c
        return inverse_root(2 * self.precision.astype(v.dtype)[None], v)


class CosineForm(Form):
    """φ = ‖x‖²/2 of unit rows, s = 1; a row of zeros stays one, at distance 1."""

    scale = 1.0
    is_invariant = False
    is_curved = True
    domain = "have no row of zeros"
    is_flat = True

    def embed(self, rows: jax.Array) -> jax.Array:
        return polar(rows)[2]

    def retract(self, rows: jax.Array, old: jax.Array) -> jax.Array:
        # A mean of zero has no direction.
        scale, _, unit = polar(rows)
        return jnp.where(scale == 0, old, unit)

    def offset(self, b: jax.Array, m: jax.Array) -> jax.Array:
        return self.cost(m, m + b)

    def directionless(self, rows: jax.Array) -> jax.Array:
        # As to `polar`, which takes a subnormal number for zero.
        return self.outside(rows)

    def cost(
        self, x: jax.Array, c: jax.Array, directionless: jax.Array | None = None
    ) -> jax.Array:
        if directionless is None:
            directionless = self.directionless(x) | self.directionless(c)
        distance = 0.5 * jnp.sum((x - c) ** 2, axis=-1)
        # A NaN in the other row stays one.
        return jnp.where(directionless, 1 + (distance - distance), distance)

    def pull(self, c: jax.Array, shifts: jax.Array, counts: jax.Array) -> jax.Array:
        # (I − ĉĉᵀ) shifts/‖c‖, and not by `jax.vjp` of the embedding, which inside
        # `jax.shard_map` takes no shifts that vary less than c.
        del counts
        scale, length, unit = polar(c)
        inside = _across(unit, shifts)
        return jnp.where(scale == 0, 0, inside / length / nonzero(scale))

    def step_cost(self, c: jax.Array, step: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((self.retract(c + step, c) - c) ** 2)

    def tangent(self, c: jax.Array, v: jax.Array) -> jax.Array:
        return _across(self.embed(c), v)

    def curvature(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Along the sphere.
        every = 1 / jnp.sum(c * c, axis=1)
        return every, every

    def critical_temperature(self, mean: jax.Array, covariance: jax.Array) -> jax.Array:
        # That of the covariance along the sphere, over the length of the mean.
        rows = self.tangent(jnp.broadcast_to(mean, covariance.shape), covariance)
        inner = self.tangent(jnp.broadcast_to(mean, covariance.shape), rows.T)
        largest = jnp.max(jnp.linalg.eigvalsh(inner), initial=0)
        return largest / jnp.linalg.norm(mean)

    def move(self, c: jax.Array, radius: jax.Array) -> jax.Array:
        # A chord r is an angle 2 asin(r/2), and no shorter move turns c by as much.
        r = jnp.minimum(radius, math.sqrt(2))
        length = jnp.sqrt(jnp.min(jnp.sum(c * c, axis=1)))
        return length * r * jnp.sqrt(1 - r * r / 4)

    def mass(self, c: jax.Array, shifts: jax.Array, counts: jax.Array) -> jax.Array:
        # At rest the Hessian is the length of the sum of unit rows, and less.
        total = shifts + counts[:, None] * c
        return jnp.sqrt(jnp.sum(total**2, axis=1))

    def outside(self, rows: Any) -> Any:
        return abs(rows).max(axis=-1, initial=0) < jnp.finfo(rows.dtype).tiny


def inverse_root(matrix: jax.Array, v: jax.Array) -> jax.Array:
    """M^−½ v_j, [k, d], of semidefinite M, [k or 1, d, d]; in null spaces 0."""
    values, vectors = jnp.linalg.eigh(matrix)
    bound = float(jnp.finfo(values.dtype).eps) * values.shape[-1] * values[:, -1:]
    roots = jnp.where(values > bound, 1 / jnp.sqrt(jnp.maximum(values, bound)), 0)
    along = matmul(v[:, None], vectors)[:, 0] * roots
    return matmul(along[:, None], vectors.mT)[:, 0]


def _across(unit: jax.Array, v: jax.Array) -> jax.Array:
    """What of v, [k, d], is not along the unit rows: v − (u·v) u."""
    along = jnp.sum(unit * v, axis=1)
    # The last product by einsum: by broadcasting, jaxlib 0.10.2 and 0.11.0 get it wrong
    # on CPUs where u has an axis less than v, https://github.com/jax-ml/jax/issues/39103
    return v - jnp.einsum("kd,k->kd", unit, along, precision="highest")
