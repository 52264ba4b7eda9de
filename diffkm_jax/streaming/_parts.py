"""A step by all points of which no more than a part is here at a time.

Statistics add, so do the moments by which a fit knows how near is near, and of the
points of largest cost those of the parts are enough.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffkm_jax._blocks import compensated
from diffkm_jax._domain import out_of_domain
from diffkm_jax._pass import nearest_labels, sums_and_labels
from diffkm_jax._problem import Problem
from diffkm_jax._sharding import over_rows
from diffkm_jax._statistics import Statistics, residual_of, statistics_of
from diffkm_jax.fitting._empty import Costliest, costliest, costliest_of, is_empty
from diffkm_jax.fitting._loop import (
    Moments,
    StopRule,
    has_converged,
    is_at_rest,
    moments,
    variance_of,
)
from diffkm_jax.fitting._state import State
from diffkm_jax.fitting._status import status_of
from diffkm_jax.fitting._step import (
    Algorithm,
    Step,
    at_last,
    at_step,
    prepared,
    step_by,
)
from diffkm_jax.fitting._update import updated


@over_rows(1)
def step_on(
    algorithm: Algorithm, problem: Problem, state: State
) -> tuple[Step, jax.Array]:
    """A step by one batch, and whether a row of it is outside the domain, []."""
    plan, c = algorithm.plan, state.centroids
    # What is not read of the labels, most distances', is not computed.
    labels = nearest_labels(plan, problem, c)
    outside = out_of_domain(plan, problem, c, c, labels)
    return updated(algorithm, problem, state), outside


@over_rows(1)
def statistics_on(algorithm: Algorithm, problem: Problem, state: State) -> Statistics:
    """The statistics of a part, at a state."""
    state, problem = prepared(algorithm, problem, state)
    return statistics_of(algorithm.plan, problem, state.centroids)


@over_rows(1)
def moments_on(algorithm: Algorithm, problem: Problem, state: State) -> Moments:
    """The moments of a part, about the origin of a pass at a state."""
    return moments(algorithm.plan, problem, state.centroids)


@over_rows(1)
def costliest_on(algorithm: Algorithm, problem: Problem, state: State) -> Costliest:
    """The points of largest cost in a part, at a state."""
    state, problem = prepared(algorithm, problem, state)
    return costliest(algorithm.plan, problem, state.centroids)


@over_rows(2)
def ending_on(
    algorithm: Algorithm, dtype: Any, problem: Problem, start: State, state: State
) -> tuple[Statistics, jax.Array]:
    """Statistics of a part at the centroids that are returned; 1 if it is outside."""
    plan, c = algorithm.plan, state.centroids.astype(dtype)
    problem = at_last(algorithm, problem, start, state)
    found, labels = sums_and_labels(plan, problem, c)
    outside = out_of_domain(plan, problem, start.centroids, c, labels)
    return Statistics(*found), outside.astype(jnp.int32)


@jax.jit
def added(carry: Any, part: Any) -> Any:
    """Kahan's sum of trees of arrays, and what rounding has put in too much."""
    if carry is None:
        return part, jax.tree.map(jnp.zeros_like, part)
    return compensated(carry, (part, None))[0]


@partial(jax.jit, static_argnums=1)
def costliest_in(parts: list[Costliest], k: int) -> Costliest:
    """The k points of largest cost of several parts."""
    return costliest_of(jax.tree.map(lambda *a: jnp.concatenate(a), *parts), k)


@partial(jax.jit, static_argnums=0)
def rule_of(
    algorithm: Algorithm,
    problem: Problem,
    start: State,
    parts: Moments,
    tol: jax.Array,
    last: jax.Array,
) -> StopRule:
    """The rule that ends a fit, of the moments of all parts, stacked."""
    variance = variance_of(problem, start.centroids, parts)
    temperature = at_step(algorithm, problem, last).temperature
    return StopRule(tol.astype(variance.dtype), variance, temperature)


@partial(jax.jit, static_argnums=0)
def step_after(
    algorithm: Algorithm,
    problem: Problem,
    old: State,
    stats: Statistics,
    costly: Costliest,
    rule: StopRule,
) -> tuple[Step, jax.Array]:
    """A step by the statistics of all points, and whether it is the last, []."""
    state, at = prepared(algorithm, problem, old)
    found = step_by(algorithm, at, old, state, stats, lambda: costly, None)
    c, weighty = old.centroids, stats.counts > 0
    return found, has_converged(rule, at, found.residual, c, weighty)


@partial(jax.jit, static_argnums=(0, 2))
def ending_of(
    algorithm: Algorithm,
    problem: Problem,
    dtype: Any,
    start: State,
    state: State,
    stats: Statistics,
    rule: StopRule,
    stopped: jax.Array,
    interrupted: jax.Array,
    outside: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The residual and the status of a fit, of the statistics at what it returns."""
    problem = at_last(algorithm, problem, start, state)
    c = state.centroids.astype(dtype)
    residual, weighty = residual_of(problem, c, stats), stats.counts > 0
    rests = is_at_rest(rule, problem, state.centroids, dtype, residual, weighty)
    failed = ~jnp.isfinite(stats.loss)
    status = status_of(
        CONVERGED=stopped & rests & ~failed,
        MAX_STEPS=~stopped & ~interrupted & ~failed,
        NON_FINITE=failed,
        EMPTY_CLUSTER=is_empty(stats.counts, problem.active).any(),
        DOMAIN=outside,
        NOT_AT_REST=stopped & ~rests & ~failed,
        INTERRUPTED=interrupted,
    )
    return residual, status
