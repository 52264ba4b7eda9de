"""How the centroids at the end of a fit depend on its data.

At rest the gradient of the loss in the centroids vanishes, whatever optimizer found
them. Hard and squared, the centroids are the means of their points, and that is their
derivative, at every order. Else it takes the implicit function theorem.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._hints import shown
from diffkm_jax._pass import is_expanded, rests_at_means
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.fitting._implicit import System, solution, trusted
from diffkm_jax.fitting._stationarity import Stationarity
from diffkm_jax.statistics import Statistics, full_step, statistics_of


def check_derivative(derivative: str, plan: Plan) -> None:
    """Raises ValueError unless the derivative is one that the distance has."""
    if derivative not in ("implicit", "one_step", "unrolled", "none"):
        expected = "'implicit', 'one_step', 'unrolled' or 'none'"
        raise ValueError(f"derivative must be {expected}, got {shown(derivative)}")
    if derivative == "one_step" and not is_expanded(plan):
        raise ValueError(
            "derivative 'one_step' is that of a step to the mean and needs distance "
            f"squared_euclidean, got {shown(plan.distance)}"
        )


def differentiate(
    derivative: str, plan: Plan, problem: Problem, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The centroids of a loop with the derivative asked for, if that takes no mean.

    Also returns whether the linear solve for it can be trusted.
    """
    yes = jnp.ones((), bool)
    if derivative == "unrolled":
        return c, yes
    c = lax.stop_gradient(c)
    if derivative == "none" or rests_at_means(plan, problem):
        return c, yes
    if derivative == "one_step":
        system = System(partial(_one_step, plan), _identity, trusted)
        return solution(system, c, problem)
    consts = []
    statistics: Callable[..., Statistics] = partial(statistics_of, plan)
    if not is_expanded(plan):
        # Arrays that the distance closes over are differentiated too. What this makes
        # takes no other structure, and the trial solve has weights.
        if problem.weights is None:
            ones = jnp.ones(problem.points.shape[0], c.dtype)
            problem = problem._replace(weights=ones)
        statistics, consts = jax.closure_convert(statistics, problem, c)
    at = Stationarity(statistics, is_expanded(plan), plan.axis_name)
    system = System(at.f, at.solve, at.is_solvable)
    return solution(system, c, (problem, tuple(consts)))


def differentiate_means(
    derivative: str,
    plan: Plan,
    problem: Problem,
    wide: jax.Array,
    centroids: jax.Array,
    stats: Statistics,
) -> tuple[jax.Array, jax.Array, Statistics]:
    """Centroids, wide and as returned, that move as the means of hard clusters do.

    And their statistics, which were found at centroids held constant. Labels are
    constant and a mean does not depend on where it is measured from, so that both are
    exact at every order without a second pass: with m = u/n − stop_gradient(u/n), whose
    value is zero, loss − Σ m·(2u − n m), and shifts u − n m.
    """
    if derivative not in ("implicit", "one_step") or not rests_at_means(plan, problem):
        return wide, centroids, stats
    step = full_step(stats)
    move = jnp.where(jnp.isfinite(step), step - lax.stop_gradient(step), 0)
    counts = stats.counts[:, None]
    loss = stats.loss - jnp.sum(move * (2 * stats.shifts - counts * move))
    stats = Statistics(loss, stats.counts, stats.shifts - counts * move)
    wide, centroids = (c + move.astype(c.dtype) for c in (wide, centroids))
    return wide, centroids, stats


def _one_step(plan: Plan, c: jax.Array, problem: Problem) -> tuple[jax.Array, None]:
    return full_step(statistics_of(plan, problem, lax.stop_gradient(c))), None


def _identity(c: jax.Array, problem: Problem, about: None, b: jax.Array) -> jax.Array:
    """The solve of one more step: T(c) − c as if it lost all of c at once."""
    del c, problem, about
    return b
