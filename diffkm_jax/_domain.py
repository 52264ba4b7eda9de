"""Whether data and centroids are where a distance is defined."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffkm_jax._blocks import psum
from diffkm_jax._expansion import expand
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances._forms import form_of


def out_of_domain(
    plan: Plan, problem: Problem, start: jax.Array, end: jax.Array, labels: jax.Array
) -> jax.Array:
    """Whether a point of weight is not, or an active centroid at either end, [].

    Or whether the distance of a point to its centroid is negative.
    """
    form, weights = form_of(problem.distance), problem.weights
    found = jnp.zeros((), bool)
    if form is None:
        return found
    acc = problem.dtype(end)
    points, own = problem.points.astype(acc), expand(problem, end).rows[labels]
    for outside in (form.outside(points), form.is_negative(points, own)):
        if outside is not None:
            outside &= True if weights is None else weights > 0
            found |= psum(outside.any().astype(jnp.int32), plan.axis_name) > 0
    for c in (start, end):
        outside = form.outside(c.astype(acc))
        if outside is not None:
            outside &= True if problem.active is None else problem.active
            found |= outside.any()
    return found
