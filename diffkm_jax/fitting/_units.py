"""Weights at the ends of their dtype's range, in a unit in which a fit can add them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._numerics import unit_of
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.optimizers import is_per_count


def in_unit(plan: Plan, problem: Problem, centroids: jax.Array) -> Problem:
    """The problem with weights in a unit in which products with them are normal."""
    if problem.weights is None:
        return problem
    acc = accumulation_dtype(problem.points, centroids, problem.weights)
    weights = problem.weights.astype(acc)
    largest = jnp.max(lax.stop_gradient(weights))
    if plan.axis_name is not None:
        largest = lax.pmax(largest, plan.axis_name)
    unit = unit_of(largest)
    return problem._replace(weights=weights / unit, unit=unit)


def in_true_unit(sums: Any, problem: Problem) -> Any:
    """Sums over the points of a problem, as its true weights make them."""
    if problem.unit is None:
        return sums
    return jax.tree.map(lambda a: a * problem.unit.astype(a.dtype), sums)


def counts_in_unit(
    optimizer: optax.GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The state of an optimizer that knows nothing but counts, as its steps need it."""
    if problem.unit is None or not is_per_count(optimizer):
        return opt_state
    return jax.tree.map(lambda n: n / problem.unit.astype(n.dtype), opt_state)


def counts_in_true_unit(
    optimizer: optax.GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The same, as it is to be kept."""
    return in_true_unit(opt_state, problem) if is_per_count(optimizer) else opt_state
