"""Where the gradient of the loss in the centroids vanishes, as a system to solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._problem import Problem
from diffkm_jax._statistics import Statistics, inverse_root_of, mass_of, pull_of
from diffkm_jax.fitting._conjugate_residuals import conjugate_residuals, norm

MAX_ITERATIONS = 2000


class Stationarity(NamedTuple):
    """−∂loss/∂c = 0 as a system: minus its derivative in c is the Hessian H.

    Solved as S H S y = S b, dc = S y, with S = (counts_j s ∇²φ(c_j))^−½: the Hessian of
    a hard loss is what is in brackets, 2 counts if squared, so that S H S is near the
    identity where clusters are distinct.

    Attributes:
        statistics: Function (problem, c, *consts).
        is_flat: Whether the Hessian may have a direction that is flat by nature.
        axis_name: Mesh axis, or None.
    """

    statistics: Callable[..., Statistics]
    is_flat: bool
    axis_name: str | None

    def f(self, c: jax.Array, theta: Any) -> tuple[jax.Array, jax.Array]:
        """−∂loss/∂c, and the mass of clusters, by which the system is scaled."""
        problem, consts = theta
        stats = self.statistics(problem, c, *consts)
        return pull_of(problem, c, stats), mass_of(problem, c, stats)

    def solve(
        self, c: jax.Array, theta: Any, mass: jax.Array, b: jax.Array
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
                same = problem.temperature, problem.distance
                (t, distance), others = lax.pmean((same, others), axis)
                problem = problem._replace(temperature=t, distance=distance)
                return self.statistics(problem, *others)

            system = self._replace(statistics=statistics)
            c, theta, mass, b = jax.tree.map(vary, (c, theta, mass, b))
        scale, product = system.scaled_hessian(c, theta, mass)

        def solver(product: Callable, b: jax.Array) -> jax.Array:
            eps = float(jnp.finfo(b.dtype).eps)
            return conjugate_residuals(product, b, eps**0.75, MAX_ITERATIONS)[0]

        y = lax.custom_linear_solve(product, scale(b), solver, symmetric=True)
        dc = scale(y)
        return dc if axis is None else lax.pmean(dc, axis)

    def scaled_hessian(
        self, c: jax.Array, theta: Any, mass: jax.Array
    ) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
        """The maps S v and S H S v of v; of rows without weight, 0 and v."""
        held, (problem, _), mass = lax.stop_gradient((c, theta, mass))
        positive = mass[:, None] > 0
        root = lax.rsqrt(jnp.where(positive, mass[:, None], 1))
        inverse_root = inverse_root_of(problem, held)

        def scale(v: jax.Array) -> jax.Array:
            return jnp.where(positive, inverse_root(root * v), 0)

        def product(v: jax.Array) -> jax.Array:
            tangent = scale(v).astype(c.dtype)
            _, moved = jax.jvp(lambda c: self.f(c, theta)[0], (c,), (tangent,))
            return jnp.where(positive, -scale(moved), v)

        return scale, product

    def is_solvable(self, c: jax.Array, theta: Any, mass: jax.Array) -> jax.Array:
        """Whether H can be solved with, tried on one vector without symmetry.

        To a residual that says so, in half the iterations that a derivative may take:
        what a later reverse pass meets cannot be reported any more. A direction that H
        does not see, as lengths under `cosine`, is no harm if the data do not push
        along it.
        """
        scale, product = self.scaled_hessian(c, theta, mass)
        wave = jnp.cos(jnp.arange(c.size, dtype=mass.dtype)).reshape(c.shape)
        b = jnp.where(mass[:, None] > 0, wave, 0)
        tol = float(jnp.finfo(wave.dtype).eps) ** 0.5
        _, left, null = conjugate_residuals(product, b, tol, MAX_ITERATIONS // 2)
        solved = norm(left) <= 2 * tol * norm(b)
        if not self.is_flat:
            return solved
        problem, consts = theta
        # What some change of the weights makes of the pull.
        change = jnp.cos(jnp.arange(problem.points.shape[0], dtype=mass.dtype))
        weights = problem.weights.astype(change.dtype)

        def pull(weights: jax.Array) -> jax.Array:
            return self.f(c, (problem._replace(weights=weights), consts))[0]

        push = scale(jax.jvp(pull, (weights,), (change * weights,))[1])
        along = jnp.abs(jnp.sum(push * left))
        return solved | (null & (along <= tol * norm(push) * norm(left)))
