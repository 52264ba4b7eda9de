"""The loop of a fit with sizes, and what it returns."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._domain import out_of_domain
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._statistics import Statistics, means_of, residual_of
from diffkm_jax._units import in_true_unit, in_unit
from diffkm_jax.fitting._bounded_pass import Shares, shared, statistics_at
from diffkm_jax.fitting._bounds import Bounds
from diffkm_jax.fitting._derivative import differentiate_at_rest
from diffkm_jax.fitting._loop import (
    Progress,
    StopRule,
    after,
    begun,
    goes_on,
    has_converged,
    is_at_rest,
    mean_variance,
)
from diffkm_jax.fitting._state import FitResult, State, retracted
from diffkm_jax.fitting._status import status_of
from diffkm_jax.fitting._step import Step

PLAN = Plan()


@partial(jax.jit, static_argnums=(0, 1, 2))
def fitted(
    derivative: str,
    max_steps: int,
    dtype: Any,
    problem: Problem,
    state: State,
    bounds: Bounds,
    tol: jax.Array,
) -> FitResult:
    """The fit that starts at a state; its result has centroids of `dtype`."""
    problem = in_unit(PLAN, problem, state.centroids)
    if problem.unit is not None:
        bounds = Bounds(*(a / problem.unit for a in bounds))
    held, start, limits = lax.stop_gradient((problem, state, bounds))
    variance = mean_variance(PLAN, held, start.centroids)
    rule = StopRule(tol.astype(variance.dtype), variance, held.temperature)

    def advance(now: tuple[Progress, Shares, jax.Array]):
        """Shares at the centroids, and if there is one the step from them."""
        progress, shares, _ = now
        last = ~goes_on(progress)
        state = retracted(held, progress.state, progress.state)
        # The last shares are those of centroids as they are returned.
        at = state.centroids.astype(dtype).astype(state.centroids.dtype)
        at = jnp.where(last, at, state.centroids)
        shares = shared(held, at, limits, shares.prices)
        step, rests = _step(held, rule, state, limits, shares)
        stepped = after(progress, step, step.stats.loss, rests)
        kept = jax.tree.map(lambda a, b: jnp.where(last, a, b), progress, stepped)
        return lax.stop_gradient((kept, shares, last))

    none, yes = jnp.zeros(problem.points.shape[0], jnp.int32), jnp.ones((), bool)
    shares = Shares(none, jnp.zeros_like(limits.low), yes, yes)
    begin = begun(start, max_steps, variance.dtype), shares, ~yes
    end, shares, _ = lax.while_loop(lambda now: ~now[2], advance, begin)
    return _result(derivative, dtype, problem, start, bounds, rule, end, shares)


def _step(
    problem: Problem, rule: StopRule, old: State, bounds: Bounds, shares: Shares
) -> tuple[Step, jax.Array]:
    """The step to the means of the clusters, and whether it is the last."""
    c = old.centroids
    stats = statistics_at(problem, c, bounds, shares)
    new = means_of(problem, c, stats).astype(c.dtype)
    residual = residual_of(problem, c, stats)
    finite = jnp.isfinite(stats.loss) & jnp.isfinite(new).all()
    kept = old._replace(centroids=jnp.where(finite, new, c))
    rests = has_converged(rule, problem, residual, c, stats.counts > 0)
    return Step(kept, stats, residual, finite), rests


def _differentiate(
    derivative: str, problem: Problem, c: jax.Array, bounds: Bounds, shares: Shares
) -> tuple[jax.Array, jax.Array]:
    """The centroids with the derivative asked for, and whether it can be trusted."""
    yes = jnp.ones((), bool)
    c = lax.stop_gradient(c)
    if derivative == "none":
        return c, yes
    if derivative == "one_step" or problem.temperature is None:
        # Hard, labels are constant, and centroids the means of their points.
        means = means_of(problem, c, statistics_at(problem, c, bounds, shares))
        move = jnp.where(jnp.isfinite(means), means - lax.stop_gradient(means), 0)
        return c + move.astype(c.dtype), yes

    def statistics(problem: Problem, c: jax.Array, *consts: jax.Array) -> Statistics:
        low, high, *found = consts
        return statistics_at(problem, c, Bounds(low, high), Shares(*found))

    return differentiate_at_rest(PLAN, problem, c, statistics, (*bounds, *shares))


def _result(
    derivative: str,
    dtype: Any,
    problem: Problem,
    start: State,
    bounds: Bounds,
    rule: StopRule,
    progress: Progress,
    shares: Shares,
) -> FitResult:
    """What a loop found, by a pass at the centroids as they are returned."""
    c = retracted(problem, progress.state, progress.state).centroids
    c, solved = _differentiate(derivative, problem, c, bounds, shares)
    centroids = c.astype(dtype)
    stats = statistics_at(problem, centroids, bounds, shares)
    residual = lax.stop_gradient(residual_of(problem, centroids, stats))
    weighty = stats.counts > 0
    stats = in_true_unit(stats, problem)
    num_steps, loss = progress.num_steps, lax.stop_gradient(stats.loss)
    history = in_true_unit(progress.history.astype(loss.dtype), problem)
    taken = jnp.arange(len(history), dtype=num_steps.dtype) < num_steps
    failed = progress.failed | ~jnp.isfinite(loss)
    stopped = progress.converged & ~failed
    rests = is_at_rest(rule, problem, c, dtype, residual, weighty)
    status = status_of(
        CONVERGED=stopped & rests & shares.met,
        MAX_STEPS=(~progress.converged | ~shares.met) & ~failed,
        NON_FINITE=failed,
        EMPTY_CLUSTER=shares.usable & ~weighty.all(),
        LINEAR_SOLVE=~solved,
        DOMAIN=out_of_domain(PLAN, problem, start.centroids, centroids, shares.labels),
        NOT_AT_REST=stopped & ~rests,
    )
    return FitResult(
        centroids=centroids,
        labels=jnp.where(shares.usable, shares.labels, -1),
        loss=stats.loss,
        counts=stats.counts,
        residual=residual,
        history=jnp.where(taken, history, loss),
        num_steps=num_steps,
        status=status,
        temperature=problem.temperature,
        state=progress.state._replace(centroids=c),
    )
