"""For which points and centroids a distance of this library is defined."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffkm_jax._blocks import psum
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances._forms import form_of


def out_of_domain(plan: Plan, problem: Problem, *centroids: jax.Array) -> jax.Array:
    """Whether a point of positive weight, or an active centroid of any set, is, []."""
    form, weights = form_of(problem.distance), problem.weights
    if form is None:
        return jnp.zeros((), bool)
    acc = problem.dtype(*centroids)
    outside = form.outside(problem.points.astype(acc))
    if outside is None:
        return jnp.zeros((), bool)
    if weights is not None:
        outside &= weights > 0
    found = psum(outside.any().astype(jnp.int32), plan.axis_name) > 0
    for c in centroids:
        outside = form.outside(c.astype(acc))
        if problem.active is not None:
            outside &= problem.active
        found |= outside.any()
    return found
