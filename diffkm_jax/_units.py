"""Weights at the ends of their dtype's range, in a unit in which they can be added."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._numerics import unit_of
from diffkm_jax._problem import Plan, Problem


def in_unit(
    plan: Plan, problem: Problem, centroids: jax.Array, limit: int | None = None
) -> Problem:
    """The problem with weights in a unit in which products with them are normal.

    The largest is at most 2 to the `limit` then, and no less than its inverse.
    """
    if problem.weights is None:
        return problem
    acc = problem.dtype(centroids)
    weights = problem.weights.astype(acc)
    largest = jnp.max(lax.stop_gradient(weights))
    if plan.axis_name is not None:
        largest = lax.pmax(largest, plan.axis_name)
    unit = unit_of(largest, limit)
    return problem._replace(weights=weights / unit, unit=unit)


def in_true_unit(sums: Any, problem: Problem) -> Any:
    """Sums over the points of a problem, as its true weights make them."""
    if problem.unit is None:
        return sums
    return jax.tree.map(lambda a: a * problem.unit.astype(a.dtype), sums)
