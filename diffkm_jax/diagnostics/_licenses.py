"""What licenses the gradient of a fit: labels that stand, or a positive Hessian."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax._blocks import psum
from diffkm_jax._expansion import Expanded
from diffkm_jax._mesh import vary_as
from diffkm_jax._pass import nearest_labels
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._statistics import Statistics, full_step, means_of, pull_of
from diffkm_jax.diagnostics._curvature import hessian_product, smallest_eigenvalue


class License(NamedTuple):
    """What of a certificate is another thing for hard and for soft assignment."""

    smallest_eigenvalue: jax.Array
    eigenvalue_error: jax.Array
    distance: jax.Array
    point_radius: jax.Array
    valid: jax.Array


def hard_license(
    plan: Plan,
    problem: Problem,
    given: Expanded,
    stats: Statistics,
    radius: jax.Array,
) -> License:
    """Labels stand if every full step is shorter than the move that changes one.

    Of a distance that is no metric, if they are the same after that step.
    """
    form, zero = given.form, jnp.zeros_like(stats.loss)
    weighty, moved = stats.counts > 0, full_step(stats)
    if form.is_curved:
        moved = means_of(problem, given.given, stats) - given.rows
    curvature = form.mass(given.rows, stats.shifts, stats.counts)
    curvature *= form.curvature(given.given)[0]
    smallest = jnp.min(curvature, where=weighty, initial=jnp.inf)
    moved = jnp.where(weighty[:, None], moved, 0)
    if form.is_metric:
        costs = form.cost(moved, jnp.zeros_like(moved))
        if not form.is_invariant:
            costs = form.cost(given.rows + moved, given.rows)
        # After moves of at most `step` labels, and so means, are the same: a rest.
        step = jnp.max(jnp.sqrt(2 / form.scale * costs))
        valid = step < radius
        left = form.move(given.given, (radius - step) / 2)
        # On a sphere a mean may move by more than its points.
        left = left if form.is_invariant else jnp.nan
    else:
        before, after = (
            nearest_labels(plan, problem, c) for c in (given.given, given.given + moved)
        )
        changed = before != after
        if problem.weights is not None:
            changed &= problem.weights > 0
        # The radius is zero if rounding may have chosen a label, else not known.
        valid = (psum(changed.sum(), plan.axis_name) == 0) & (radius != 0)
        left = jnp.nan
    return License(
        smallest_eigenvalue=jnp.where(weighty.any(), smallest, 0),
        eigenvalue_error=zero,
        distance=jnp.sqrt(jnp.sum(moved**2)),
        point_radius=jnp.where(valid, left, zero),
        valid=valid,
    )


def soft_license(
    plan: Plan,
    num_steps: int,
    problem: Problem,
    given: Expanded,
    stats: Statistics,
    spread: jax.Array,
) -> License:
    """The implicit function theorem asks for a Hessian that is positive."""
    form, c = given.form, given.given
    weighty = stats.counts[:, None] > 0
    start = jax.random.normal(jax.random.key(0), c.shape, c.dtype)
    steepest = jnp.where(weighty[:, 0], form.curvature(c)[1], 0)
    steepest = jnp.max(stats.counts * steepest)
    hessian = partial(hessian_product, plan, problem, vary_as(c, stats))

    def product(v: jax.Array) -> jax.Array:
        along = form.tangent(c, v)
        # Directions that no distance sees must not look like a flat Hessian.
        return form.tangent(c, hessian(along)) + steepest * (v - along)

    start = form.tangent(c, jnp.where(weighty, start, 0))
    smallest, error = smallest_eigenvalue(product, start, num_steps)
    # The Hessian is counts times a curvature minus something positive, and rounds as
    # the two do; what rounding does to distances, it does to logits by the temperature.
    size = steepest + jnp.abs(smallest)
    size *= 1 + spread / problem.temperature
    error += 8 * float(jnp.finfo(size.dtype).eps) * size
    # ‖H⁻¹ g‖ ≤ ‖g‖ / λ_min, if that is positive.
    positive = smallest > 0
    gradient = jnp.linalg.norm(pull_of(problem, c, stats))
    distance = gradient / jnp.where(positive, smallest, 1)
    return License(
        smallest_eigenvalue=jnp.where(weighty.any(), smallest, 0),
        eigenvalue_error=error,
        distance=jnp.where(positive, distance, jnp.inf),
        point_radius=jnp.zeros_like(smallest),
        valid=(smallest > error) & (problem.temperature > 0),
    )
