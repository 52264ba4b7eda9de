"""Loss, counts and shifts of clusters of bounded size, of costs in one [k, n] array."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import (
    fill_inert,
    fill_rows,
    finite_costs,
    rows_of,
    sum_by_label,
    weigh,
)
from diffkm_jax._expansion import Expanded, expand
from diffkm_jax._geometry import nearest, sum_of_products
from diffkm_jax._problem import Problem
from diffkm_jax._statistics import Statistics
from diffkm_jax.fitting._bounds import Bounds, is_feasible
from diffkm_jax.fitting._exchange import exchanged
from diffkm_jax.fitting._transport import (
    Transport,
    held_bounds,
    limits_of,
    pinned,
    prices_of,
    rounding_of,
    warmth,
)

# Of the mean excess cost: there sizes of a plan and of labels differ by a few points.
COLD = 1e-4


class Shares(NamedTuple):
    """Which points are in which clusters, at some centroids; without a derivative.

    Attributes:
        labels: [n], int32, in range; soft, of the largest shares.
        prices: Of places in the clusters, [k]; hard, to start from at other centroids.
        usable: Whether data are finite and the sizes can be met, [], bool.
        met: Whether the sizes are, to the tolerance, [], bool.
    """

    labels: jax.Array
    prices: jax.Array
    usable: jax.Array
    met: jax.Array


class _Rows(NamedTuple):
    """Embedded points [n, d], weights [n], costs [k, n], and the centroids."""

    x: jax.Array
    w: jax.Array
    costs: jax.Array
    given: Expanded


def shared(
    problem: Problem, centroids: jax.Array, bounds: Bounds, prices: jax.Array
) -> Shares:
    """The best shares at some centroids, hard or soft, found from some prices."""
    given = lax.stop_gradient((problem, centroids, bounds, prices))
    problem, centroids, bounds, prices = given
    rows = _rows(problem, centroids)
    if problem.temperature is None:
        return _labels(rows.costs, rows.w, bounds, prices)
    return _prices(rows.costs, rows.w, problem.temperature, bounds, prices)


def statistics_at(
    problem: Problem, centroids: jax.Array, bounds: Bounds, shares: Shares
) -> Statistics:
    """Loss, counts and shifts for the best shares at these centroids, differentiable.

    Labels are held constant; a plan moves as the best one does. NaN if not usable.
    """
    rows = _rows(problem, centroids)
    if problem.temperature is None:
        stats = _hard_statistics(rows, shares.labels)
    else:
        stats = _soft_statistics(rows, _transport(problem, rows, bounds), shares)
    return Statistics(*(jnp.where(shares.usable, a, jnp.nan) for a in stats))


def plan_at(
    problem: Problem, centroids: jax.Array, bounds: Bounds, shares: Shares
) -> jax.Array:
    """The plan, [n, k], differentiable; NaN where sizes are missed."""
    transport = _transport(problem, _rows(problem, centroids), bounds)
    plan = transport.plan(_differentiable(transport, shares.prices)).T
    return jnp.where(shares.usable & shares.met, plan, jnp.nan)


def _rows(problem: Problem, centroids: jax.Array) -> _Rows:
    given = expand(problem, centroids)
    acc, n = given.rows.dtype, problem.points.shape[0]
    x, weights = problem.points.astype(acc), problem.weights
    w = jnp.ones(n, acc) if weights is None else weights.astype(acc)

    def costs_of(x: jax.Array) -> jax.Array:
        return given.form.cost(given.form.embed(x)[None], given.rows[:, None])

    if weights is not None:
        x = fill_inert(x, w, given.anchor)
        costs = lax.stop_gradient(costs_of(x))
        bad = jnp.where(jnp.isnan(costs).any(axis=0), jnp.nan, costs.min(axis=0))
        x = fill_rows(x, w, bad, given.anchor)
    return _Rows(given.form.embed(x), w, costs_of(x), given)


def _hard_statistics(rows: _Rows, labels: jax.Array) -> Statistics:
    x, w, _, given = rows
    k, own = len(given.rows), rows_of(given.rows, labels)
    costs = finite_costs(given.form.cost(x, own), w)
    shifts = sum_by_label(weigh(w, x - own), labels, k)
    return Statistics(jnp.sum(w * costs), sum_by_label(w, labels, k), shifts)


def _labels(
    costs: jax.Array, w: jax.Array, bounds: Bounds, prices: jax.Array
) -> Shares:
    """The labels of least cost, and prices near theirs."""
    k, counted = len(costs), w > 0
    least = costs.min(axis=0)
    least = jnp.where(jnp.isfinite(least), least, 0)
    excess = jnp.where(counted[None], costs - least[None], 0)
    usable = ~jnp.isnan(excess).any() & is_feasible(bounds, w, 0.0, hard=True)
    infinite = jnp.isinf(excess)
    # More than any exchange of finite costs, so that as few as can be are infinite.
    far = 4 * k * jnp.max(jnp.where(infinite, 0, excess)) + 1
    excess = jnp.where(usable, jnp.where(infinite, far, excess), 0)
    low = jnp.where(usable, bounds.low, 0)
    bounds = Bounds(low, jnp.where(usable, bounds.high, jnp.inf))
    warm = warmth(jnp.where(infinite, 0, excess), w)
    problem = Transport(excess, jnp.where(counted, 1, w), bounds, COLD * warm)
    begin = jnp.where(usable, prices, 0)
    hot = jnp.where((begin == 0).all(), warm, warm / 16)
    found, off = prices_of(problem, begin, hot, 0.01, 0.1, jnp.int32(100))
    # Others are not wrong, but take as many exchanges as none.
    found = jnp.where(off < 1, found, 0)
    labels, met = exchanged(excess, counted, bounds, found)
    labels = jnp.where(counted, labels, nearest(-costs))
    # Never what misses a size.
    return Shares(labels, found, usable & met, met)


def _transport(problem: Problem, rows: _Rows, bounds: Bounds) -> Transport:
    """With costs less the least of every point, which is no derivative."""
    least = lax.stop_gradient(rows.costs.min(axis=0))
    temperature = problem.temperature.astype(rows.costs.dtype)
    return Transport(rows.costs - least[None], rows.w, bounds, temperature)


def _prices(
    costs: jax.Array,
    w: jax.Array,
    temperature: jax.Array,
    bounds: Bounds,
    prices: jax.Array,
) -> Shares:
    """The best prices, from some that are near, or else from none."""
    goal, enough = limits_of(costs.dtype)
    t, least = temperature.astype(costs.dtype), costs.min(axis=0)
    usable = jnp.isfinite(least).all() & ~jnp.isnan(costs).any()
    usable &= is_feasible(bounds, w, 1e-5, hard=False) & (t > 0) & jnp.isfinite(t)
    low = jnp.where(usable, bounds.low, 0)
    bounds = Bounds(low, jnp.where(usable, bounds.high, jnp.inf))
    costs = jnp.where(usable, costs - least[None], 0)
    transport = Transport(costs, w, bounds, jnp.where(usable, t, 1))
    warm = warmth(costs, w)

    def again(now: tuple) -> tuple:
        prices, off, tries = now
        anew = tries > 0
        begin, hot = jnp.where(anew, 0, prices), jnp.where(anew, warm, 0)
        limit = jnp.where(anew, 500, 20)
        found = prices_of(transport, begin, hot, goal, enough, limit)
        better = found[1] < off
        prices, off = (
            jnp.where(better, a, b) for a, b in zip(found, (prices, off), strict=True)
        )
        return prices, off, tries + 1

    start = jnp.where(usable, prices, 0), jnp.full_like(t, jnp.inf), jnp.int32(0)
    found, off, _ = lax.while_loop(
        lambda now: ~(now[1] <= enough) & (now[2] < 2), again, start
    )
    labels = nearest(transport.logits(found))
    met = off <= enough + rounding_of(transport, found)
    return Shares(labels, found, usable, met)


def _soft_statistics(rows: _Rows, transport: Transport, shares: Shares) -> Statistics:
    x, w, costs, given = rows
    prices = _differentiable(transport, shares.prices)
    plan = transport.plan(prices)
    least = lax.stop_gradient(costs.min(axis=0))
    loss = jnp.sum(w * least) + transport.value(prices)
    # Σ w P (x − c) = Σ w P y − counts b with y and b from an origin near them.
    y, b = x - given.expansion.origin, given.rows - given.expansion.origin
    counts = transport.sizes(plan)
    shifts = sum_of_products(w[None] * plan, y) - counts[:, None] * b
    return Statistics(loss, counts, shifts)


def _differentiable(transport: Transport, prices: jax.Array) -> jax.Array:
    """The prices with their derivative, by the implicit function theorem.

    Which bounds hold is constant.
    """
    held = lax.stop_gradient(transport.bounds)
    is_held, _ = held_bounds(held, prices)
    low, high = transport.bounds

    def missing(prices: jax.Array) -> jax.Array:
        bound = jnp.where(start > 0, high, low)
        sizes = transport.sizes(transport.plan(prices))
        return jnp.where(is_held, bound - sizes, prices)

    start = prices
    solve = partial(pinned, is_held, held.high > 0)
    return lax.custom_root(missing, prices, lambda _, at: at, solve)
