"""The loop of a fit with sizes, and what it returns."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._domain import out_of_domain
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._units import in_true_unit, in_unit
from diffkm_jax.fitting._bounded_pass import Found, again, labels_of, shared
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
from diffkm_jax.fitting._state import FitResult, State, retracted, status_of
from diffkm_jax.fitting._step import Step
from diffkm_jax.statistics import Statistics, means_of, residual_of

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

    def advance(now: tuple[Progress, jax.Array]) -> tuple[Progress, jax.Array]:
        progress, prices = now
        step, rests, prices = _step(held, rule, progress.state, limits, prices)
        return after(progress, step, step.stats.loss, rests), prices

    begin = begun(start, max_steps, variance.dtype), jnp.zeros_like(limits.low)
    end, prices = lax.while_loop(lambda now: goes_on(now[0]), lambda now: lax.stop_gradient(advance(now)), begin)
    return _result(derivative, dtype, problem, start, bounds, rule, end, prices)


def _step(
    problem: Problem, rule: StopRule, old: State, bounds: Bounds, prices: jax.Array
) -> tuple[Step, jax.Array, jax.Array]:
    """The step to the means of the clusters, whether it is the last, and prices."""
    c = retracted(problem, old, old).centroids
    found = shared(problem, c, bounds, prices)
    stats = found.stats
    new = means_of(problem, c, stats).astype(c.dtype)
    residual = residual_of(problem, c, stats)
    finite = jnp.isfinite(stats.loss) & jnp.isfinite(new).all()
    kept = old._replace(centroids=jnp.where(finite, new, old.centroids))
    rests = has_converged(rule, problem, residual, c, stats.counts > 0)
    return Step(kept, stats, residual, finite), rests, found.prices


def _differentiate(
    derivative: str, problem: Problem, c: jax.Array, bounds: Bounds, found: Found
) -> tuple[jax.Array, jax.Array]:
    """The centroids with the derivative asked for, and whether it can be trusted."""
    yes = jnp.ones((), bool)
    c = lax.stop_gradient(c)
    if derivative == "none":
        return c, yes
    if derivative == "one_step" or problem.temperature is None:
        # Hard, labels are constant, and centroids the means of their points.
        means = means_of(problem, c, found.stats)
        move = jnp.where(jnp.isfinite(means), means - lax.stop_gradient(means), 0)
        return c + move.astype(c.dtype), yes

    def statistics(problem: Problem, c: jax.Array, *consts: jax.Array) -> Statistics:
        low, high, prices = consts
        return shared(problem, c, Bounds(low, high), prices).stats

    # From its prices no iteration is needed.
    consts = (*bounds, lax.stop_gradient(found.prices))
    return differentiate_at_rest(PLAN, problem, c, statistics, consts)


def _result(
    derivative: str,
    dtype: Any,
    problem: Problem,
    start: State,
    bounds: Bounds,
    rule: StopRule,
    progress: Progress,
    prices: jax.Array,
) -> FitResult:
    """What a loop found, by a pass at the centroids as they are returned."""
    c = retracted(problem, progress.state, progress.state).centroids
    at = lax.stop_gradient(c).astype(dtype)
    found = shared(problem, at, bounds, lax.stop_gradient(prices))
    c, solved = _differentiate(derivative, problem, c, bounds, found)
    centroids = c.astype(dtype)
    last = again(problem, centroids, bounds, found)
    stats = last.stats
    residual = lax.stop_gradient(residual_of(problem, centroids, stats))
    weighty = stats.counts > 0
    stats = in_true_unit(stats, problem)
    num_steps, loss = progress.num_steps, lax.stop_gradient(stats.loss)
    history = in_true_unit(progress.history.astype(loss.dtype), problem)
    taken = jnp.arange(len(history), dtype=num_steps.dtype) < num_steps
    failed = progress.failed | ~jnp.isfinite(loss)
    stopped = progress.converged & ~failed
    rests = is_at_rest(rule, problem, c, dtype, residual, weighty)
    labels = labels_of(problem, last)
    own = jnp.maximum(labels, 0)
    status = status_of(
        CONVERGED=stopped & rests & last.met,
        MAX_STEPS=(~progress.converged | ~last.met) & ~failed,
        NON_FINITE=failed,
        EMPTY_CLUSTER=last.usable & ~weighty.all(),
        LINEAR_SOLVE=~solved,
        DOMAIN=out_of_domain(PLAN, problem, start.centroids, centroids, own),
        NOT_AT_REST=stopped & ~rests,
    )
    return FitResult(
        centroids=centroids,
        labels=labels,
        loss=stats.loss,
        counts=stats.counts,
        residual=residual,
        history=jnp.where(taken, history, loss),
        num_steps=num_steps,
        status=status,
        temperature=problem.temperature,
        state=progress.state._replace(centroids=c),
    )
