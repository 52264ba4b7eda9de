"""Where the gradient of the loss in the centroids vanishes, as a system to solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._problem import Problem
from diffkm_jax.fitting._conjugate_residuals import conjugate_residuals, norm
from diffkm_jax.statistics import Statistics

MAX_ITERATIONS = 2000


class Stationarity(NamedTuple):
    """2 shifts = 0 as a system: minus its derivative in c is the Hessian H.

    Solved as S H S y = S b, dc = S y, with S = (2 counts)^−½: the Hessian of a hard
    loss is 2 counts, so that S H S is near the identity where clusters are distinct.

    Attributes:
        statistics: Function (problem, c, *consts).
        is_expanded: Whether the Hessian has no direction that is flat by nature.
        axis_name: Mesh axis, or None.
    """

    statistics: Callable[..., Statistics]
    is_expanded: bool
    axis_name: str | None

    def f(self, c: jax.Array, theta: Any) -> tuple[jax.Array, jax.Array]:
        """2 shifts, and the counts, by which the system is scaled."""
        problem, consts = theta
        stats = self.statistics(problem, c, *consts)
        return 2 * stats.shifts, stats.counts

    def solve(
        self, c: jax.Array, theta: Any, counts: jax.Array, b: jax.Array
    ) -> jax.Array:
        """dc, as an operation that transposes and differentiates."""
        axis = self.axis_name
        system = self
        if axis is not None:
            # All that goes into a linear solve must vary over the devices, as points
            # do; the pass wants the rest to be the same on all.
            def vary(a: jax.Array) -> jax.Array:
                return jnp.where(lax.axis_index(axis) >= 0, a, a)

            def statistics(problem: Problem, *others: jax.Array) -> Statistics:
                t, others = lax.pmean((problem.temperature, others), axis)
                return self.statistics(problem._replace(temperature=t), *others)

            system = self._replace(statistics=statistics)
            c, theta, counts, b = jax.tree.map(vary, (c, theta, counts, b))
        scale, product = system.scaled_hessian(c, theta, counts)

        def solver(product: Callable, b: jax.Array) -> jax.Array:
            eps = float(jnp.finfo(b.dtype).eps)
            return conjugate_residuals(product, b, eps**0.75, MAX_ITERATIONS)[0]

        y = lax.custom_linear_solve(product, scale * b, solver, symmetric=True)
        dc = jnp.where(scale > 0, scale * y, 0)
        return dc if axis is None else lax.pmean(dc, axis)

    def scaled_hessian(
        self, c: jax.Array, theta: Any, counts: jax.Array
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """S, [k, 1], and v ↦ S H S v; rows without weight are those of the identity."""
        counts = lax.stop_gradient(counts)[:, None]
        positive = counts > 0
        scale = jnp.where(positive, lax.rsqrt(2 * jnp.where(positive, counts, 1)), 0)

        def product(v: jax.Array) -> jax.Array:
            tangent = (scale * v).astype(c.dtype)
            _, moved = jax.jvp(lambda c: self.f(c, theta)[0], (c,), (tangent,))
            return jnp.where(positive, -scale * moved, v)

        return scale, product

    def is_solvable(self, c: jax.Array, theta: Any, counts: jax.Array) -> jax.Array:
        """Whether H can be solved with, tried on one vector without symmetry.

        To a residual that says so, in half the iterations that a derivative may take:
        what a later reverse pass meets cannot be reported any more. A direction that H
        does not see, as lengths under `cosine`, is no harm if the data do not push
        along it.
        """
        scale, product = self.scaled_hessian(c, theta, counts)
        wave = jnp.cos(jnp.arange(c.size, dtype=counts.dtype)).reshape(c.shape)
        b, tol = jnp.where(scale > 0, wave, 0), float(jnp.finfo(wave.dtype).eps) ** 0.5
        _, left, null = conjugate_residuals(product, b, tol, MAX_ITERATIONS // 2)
        solved = norm(left) <= 2 * tol * norm(b)
        if self.is_expanded:
            return solved
        problem, consts = theta
        # Shifts are linear in the weights: these are what some change of them pushes.
        change = jnp.cos(jnp.arange(problem.points.shape[0], dtype=counts.dtype))
        weights = change * problem.weights.astype(change.dtype)
        stats = self.statistics(problem._replace(weights=weights), c, *consts)
        push = scale * stats.shifts
        along = jnp.abs(jnp.sum(push * left))
        return solved | (null & (along <= tol * norm(push) * norm(left)))
