"""Forms of the divergences of positive rows: Kullback–Leibler and Itakura–Saito."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffkm_jax.distances._form import Expansion, Form
from diffkm_jax.distances._ratios import (
    log_ratio,
    sum_itakura_saito,
    sum_kullback_leibler,
    sums_of_steps,
)

# Beyond it an origin of 0 loses less than one in the data.
WIDE = 4


class KullbackLeiblerForm(Form):
    """φ = Σ x log x − x, s = 1; a coordinate with x = 0 is inside, and one of c too."""

    scale = 1.0
    is_invariant = False
    is_metric = False
    domain = "have no number below 0"
    has_edge = True

    def retract(self, rows: jax.Array, old: jax.Array) -> jax.Array:
        # The mean of zeros is c − Σ c / n, and rounded it may be below 0.
        most = float(jnp.finfo(rows.dtype).eps) ** 0.5 * old
        is_rounding = (rows < 0) & (rows >= -most)
        return jnp.where(is_rounding, rows - jax.lax.stop_gradient(rows), rows)

    def anchor(self, c: jax.Array, active: jax.Array | None) -> jax.Array:
        m = super().anchor(c, active)
        # Of which a logarithm is taken; where all centroids are 0 any number will do.
        on = True if active is None else active[:, None]
        largest = jax.lax.stop_gradient(
            c.max(axis=0, keepdims=True, initial=0, where=on)
        )
        largest = jnp.where(largest > 0, largest, 1)
        return jnp.where(m == 0, largest, m)

    def dual(self, b: jax.Array, m: jax.Array) -> jax.Array:
        # Not −∞, of which the product with x = 0 would be NaN.
        c = m + b
        dual = jnp.where(c <= 0, jnp.finfo(c.dtype).min, log_ratio(c, m))
        return jnp.where(m <= 0, 0, dual)

    def expand(self, c: jax.Array, b: jax.Array, m: jax.Array) -> Expansion:
        del b
        # x log(c/m) − c about an origin of 0, where x − m would lose an x far below m,
        # or where x = 0 must leave no trace of m.
        plain = is_wide(c)
        origin = jax.lax.stop_gradient(jnp.where(plain, 0, m))
        about = sum_kullback_leibler(jnp.where(plain, 1, m), jnp.where(plain, 1, c))
        offsets = about + jnp.sum(jnp.where(plain, c, 0), axis=1)
        return Expansion(m, origin, c - origin, self.dual(c - m, m), offsets[:, None])

    def energy(self, x: jax.Array, e: Expansion) -> jax.Array:
        plain = e.origin != e.anchor
        about = sum_kullback_leibler(
            jnp.where(plain, 1, x), jnp.where(plain, 1, e.anchor)
        )
        logs = x * log_ratio(x, jnp.broadcast_to(e.anchor, x.shape)) - x
        return about + jnp.sum(jnp.where(plain, logs, 0), axis=1)

    def cost(
        self, x: jax.Array, c: jax.Array, directionless: jax.Array | None = None
    ) -> jax.Array:
        del directionless
        return sum_kullback_leibler(x, c)

    def slope(self, x: jax.Array, e: Expansion, mean_dual: jax.Array) -> jax.Array:
        # By convention 0 where it is −∞.
        return jnp.where(x <= 0, 0, super().slope(x, e, mean_dual))

    def hessian(self, c: jax.Array, v: jax.Array) -> jax.Array:
        return v / jnp.where(c == 0, jnp.inf, c)

    def pull(self, c: jax.Array, shifts: jax.Array, counts: jax.Array) -> jax.Array:
        # Where c = 0 = x, the derivative of the divergence is 1.
        inside = self.hessian(c, shifts)
        return jnp.where(c == 0, -counts[:, None], inside)

    def step_cost(self, c: jax.Array, step: jax.Array) -> jax.Array:
        return sums_of_steps(c, step)[0]

    def curvature(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        return 1 / c.max(axis=1, initial=0), 1 / c.min(axis=1, initial=jnp.inf)

    def inverse_root(self, c: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sqrt(c) * v

    def outside(self, rows: Any) -> Any:
        # A minimum takes a tenth of the time of `any`.
        return rows.min(axis=-1, initial=jnp.inf) < 0


class ItakuraSaitoForm(Form):
    """φ = −Σ log x, s = 1."""

    scale = 1.0
    is_invariant = False
    is_metric = False
    domain = "be positive"

    def dual(self, b: jax.Array, m: jax.Array) -> jax.Array:
        # Not b/(m c), which over- and underflows at 1e∓25; XLA makes that of b/m/c.
        return (b / m) * (1 / (m + b))

    def expand(self, c: jax.Array, b: jax.Array, m: jax.Array) -> Expansion:
        del b
        # −x/c − log c about an origin of 0, where x − m would lose an x far below m.
        plain = is_wide(c)
        origin = jax.lax.stop_gradient(jnp.where(plain, 0, m))
        duals = jnp.where(plain, -1 / c, self.dual(c - m, m))
        about = sum_itakura_saito(jnp.where(plain, 1, m), jnp.where(plain, 1, c))
        logs = jnp.where(plain, log_ratio(c, m), 0)
        offsets = about + jnp.sum(logs, axis=1)
        return Expansion(m, origin, c - origin, duals, offsets[:, None])

    def cost(
        self, x: jax.Array, c: jax.Array, directionless: jax.Array | None = None
    ) -> jax.Array:
        del directionless
        return sum_itakura_saito(x, c)

    def energy(self, x: jax.Array, e: Expansion) -> jax.Array:
        # Where the origin is 0, scores lack what x/m would make of all of them.
        plain = e.origin != e.anchor
        about = sum_itakura_saito(jnp.where(plain, 1, x), jnp.where(plain, 1, e.anchor))
        logs = -1 - log_ratio(x, jnp.broadcast_to(e.anchor, x.shape))
        return about + jnp.sum(jnp.where(plain, logs, 0), axis=1)

    def slope(self, x: jax.Array, e: Expansion, mean_dual: jax.Array) -> jax.Array:
        plain = e.origin != e.anchor
        dual = jnp.where(plain, -1 / x, self.dual(x - e.anchor, e.anchor))
        return dual - mean_dual

    def hessian(self, c: jax.Array, v: jax.Array) -> jax.Array:
        return (v / c) * (1 / c)

    def step_cost(self, c: jax.Array, step: jax.Array) -> jax.Array:
        return sums_of_steps(c, step)[1]

    def curvature(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        least, largest = c.min(axis=1, initial=jnp.inf), c.max(axis=1, initial=0)
        return (1 / largest) * (1 / largest), (1 / least) * (1 / least)

    def inverse_root(self, c: jax.Array, v: jax.Array) -> jax.Array:
        return c * v

    def outside(self, rows: Any) -> Any:
        return rows.min(axis=-1, initial=jnp.inf) <= 0


def is_wide(c: jax.Array) -> jax.Array:
    """In which coordinates centroids differ by more than a factor of WIDE, [1, d]."""
    c = jax.lax.stop_gradient(c)
    return c.max(axis=0, keepdims=True) >= WIDE * c.min(axis=0, keepdims=True)
