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

from diffkm_jax._expansion import expand
from diffkm_jax._hints import shown
from diffkm_jax._pass import has_means, rests_at_means
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._statistics import Statistics, means_of, statistics_of
from diffkm_jax.distances._forms import WITH_MEANS, form_of, plain
from diffkm_jax.fitting._implicit import System, solution, trusted
from diffkm_jax.fitting._stationarity import Stationarity


def check_derivative(derivative: str, problem: Problem) -> None:
    """Raises ValueError unless the derivative is one that the distance has."""
    if derivative not in ("implicit", "one_step", "unrolled", "none"):
        expected = "'implicit', 'one_step', 'unrolled' or 'none'"
        raise ValueError(f"derivative must be {expected}, got {shown(derivative)}")
    if derivative == "one_step" and not has_means(problem):
        raise ValueError(
            "derivative 'one_step' is that of a step to the mean and needs a distance "
            f"that has one ({WITH_MEANS}), got {shown(plain(problem.distance))}"
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
    if derivative == "none" or rests_at_means(problem):
        return c, yes
    if derivative == "one_step":
        system = System(partial(_one_step, plan), _identity, trusted)
        return solution(system, c, problem)
    consts = []
    statistics: Callable[..., Statistics] = partial(statistics_of, plan)
    if form_of(problem.distance) is None:
        # Arrays that the distance closes over are differentiated too.
        problem = _weighted(problem, c)
        statistics, consts = jax.closure_convert(statistics, problem, c)
    return differentiate_at_rest(plan, problem, c, statistics, tuple(consts))


def _weighted(problem: Problem, c: jax.Array) -> Problem:
    """The problem with weights, which the trial solve needs."""
    if problem.weights is not None:
        return problem
    return problem._replace(weights=jnp.ones(problem.points.shape[0], c.dtype))


def differentiate_at_rest(
    plan: Plan,
    problem: Problem,
    c: jax.Array,
    statistics: Callable[..., Statistics],
    consts: tuple,
) -> tuple[jax.Array, jax.Array]:
    """Centroids where the pull of some statistics vanishes, with their derivative.

    The statistics are a function of (problem, c, *consts), differentiable in all.
    """
    form = form_of(problem.distance)
    is_flat = form is None or form.is_flat
    if is_flat:
        problem = _weighted(problem, c)
    at = Stationarity(statistics, is_flat, plan.axis_name)
    system = System(at.f, at.solve, at.is_solvable)
    c, solved = solution(system, c, (problem, consts))
    if not is_flat or form is None:
        return c, solved
    if form.is_curved:
        # The second derivative of a way on a sphere leaves its tangents.
        same = form.embed(c)
    else:
        # Where the distance does not depend on c, centroids are means still: the
        # derivative is that of one more step, of centroids that move as the others say.
        same = means_of(problem, c, statistics(problem, c, *consts))
    return lax.stop_gradient(c) + (same - lax.stop_gradient(same)), solved


def differentiate_means(
    derivative: str,
    problem: Problem,
    wide: jax.Array,
    centroids: jax.Array,
    stats: Statistics,
) -> tuple[jax.Array, jax.Array, Statistics]:
    """Centroids, wide and as returned, that move as the means of hard clusters do.

    And their statistics, which were found at centroids held constant. Labels are
    constant and a mean does not depend on where it is measured from, so that both are
    exact at every order without a second pass: with m = u/n − stop_gradient(u/n), whose
    value is zero, the loss changes by what m makes of it, and shifts are u − n m.
    """
    if derivative not in ("implicit", "one_step") or not rests_at_means(problem):
        return wide, centroids, stats
    given = expand(problem, lax.stop_gradient(centroids))
    means = means_of(problem, given.given, stats)
    move = jnp.where(jnp.isfinite(means), means - lax.stop_gradient(means), 0)
    shifts, counts = stats.shifts, stats.counts
    loss = stats.loss + given.form.loss_change(given.rows, move, shifts, counts)
    stats = Statistics(loss, counts, shifts - counts[:, None] * move)
    wide, centroids = (c + move.astype(c.dtype) for c in (wide, centroids))
    return wide, centroids, stats


def _one_step(plan: Plan, c: jax.Array, problem: Problem) -> tuple[jax.Array, None]:
    c = lax.stop_gradient(c)
    return means_of(problem, c, statistics_of(plan, problem, c)), None


def _identity(c: jax.Array, problem: Problem, about: None, b: jax.Array) -> jax.Array:
    """The solve of one more step: T(c) − c as if it lost all of c at once."""
    del c, problem, about
    return b
