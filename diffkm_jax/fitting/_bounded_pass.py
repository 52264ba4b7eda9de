"""Loss, counts and shifts of clusters of bounded size, from an [k, n] array of costs."""

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
from diffkm_jax.fitting._bounds import Bounds, is_feasible
from diffkm_jax.fitting._exchange import exchanged
from diffkm_jax.fitting._transport import (
    Transport,
    held_bounds,
    limits_of,
    pinned,
    prices_of,
    warmth,
)
from diffkm_jax.statistics import Statistics

# Of the mean excess cost: there sizes of a plan and of labels differ by a few points.
COLD = 1e-4


class Found(NamedTuple):
    """What is known of the clusters at some centroids.

    Attributes:
        stats: Loss, counts and shifts; the loss NaN where `usable` is not.
        shares: Labels [n], −1 where `usable` is not; soft, the plan [k, n].
        prices: Of places in the clusters, [k], to start from at the next centroids.
        usable: Whether data are finite and the sizes can be met, [], bool.
        met: Whether the sizes are, to the tolerance, [], bool.
    """

    stats: Statistics
    shares: jax.Array
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
) -> Found:
    """The clusters at some centroids, hard or soft; with derivatives."""
    if problem.temperature is None:
        return _hard(problem, centroids, bounds, prices)
    return _soft(problem, centroids, bounds, prices)


def labels_of(problem: Problem, found: Found) -> jax.Array:
    """The cluster of every point, [n], int32: that of its largest share."""
    if problem.temperature is None:
        return found.shares
    return jnp.where(found.usable, nearest(lax.stop_gradient(found.shares)), -1)


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


def _hard(
    problem: Problem, centroids: jax.Array, bounds: Bounds, prices: jax.Array
) -> Found:
    rows = _rows(problem, centroids)
    given = lax.stop_gradient((rows.costs, rows.w, bounds, prices))
    labels, prices, usable = _labels(*given)
    stats = _statistics(rows, labels, usable)
    return Found(stats, jnp.where(usable, labels, -1), prices, usable, usable)


def again(
    problem: Problem, centroids: jax.Array, bounds: Bounds, found: Found
) -> Found:
    """The clusters at the same centroids, of which only the derivative is another."""
    if problem.temperature is not None:
        return _soft(problem, centroids, bounds, found.prices)
    rows, labels = _rows(problem, centroids), jnp.maximum(found.shares, 0)
    return found._replace(stats=_statistics(rows, labels, found.usable))


def _statistics(rows: _Rows, labels: jax.Array, usable: jax.Array) -> Statistics:
    """Sums over the points of clusters, labels held constant."""
    x, w, _, given = rows
    k, own = len(given.rows), rows_of(given.rows, labels)
    costs = finite_costs(given.form.cost(x, own), w)
    shifts = sum_by_label(weigh(w, x - own), labels, k)
    sums = jnp.sum(w * costs), sum_by_label(w, labels, k), shifts
    return Statistics(*(jnp.where(usable, a, jnp.nan) for a in sums))


def _labels(
    costs: jax.Array, w: jax.Array, bounds: Bounds, prices: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The labels of least cost, in range, prices near theirs, and whether they are."""
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
    found, off = prices_of(problem, begin, hot, 0.01, 0.1)
    # Others are not wrong, but take as many exchanges as none.
    found = jnp.where(off < 1, found, 0)
    labels, met = exchanged(excess, counted, bounds, found)
    return jnp.where(counted, labels, nearest(-costs)), found, usable & met


def _soft(
    problem: Problem, centroids: jax.Array, bounds: Bounds, prices: jax.Array
) -> Found:
    rows = _rows(problem, centroids)
    x, w, costs, given = rows
    acc, t = costs.dtype, problem.temperature.astype(costs.dtype)
    goal, enough = limits_of(acc)
    least = lax.stop_gradient(costs.min(axis=0))
    transport = Transport(costs - least[None], w, bounds, t)
    held = lax.stop_gradient(transport)
    usable = jnp.isfinite(least).all() & is_feasible(held.bounds, w, 1e-5, hard=False)
    usable &= ~jnp.isnan(held.costs).any() & (held.temperature > 0)
    usable &= jnp.isfinite(held.temperature)
    low = jnp.where(usable, held.bounds.low, 0)
    held = held._replace(bounds=Bounds(low, jnp.where(usable, held.bounds.high, jnp.inf)))
    begin = lax.stop_gradient(jnp.where(usable, prices, 0))
    warm = warmth(held.costs, held.weights)
    hot = jnp.where((begin == 0).all(), warm, 0)
    begin, off = prices_of(held, begin, hot.astype(acc), goal, enough)
    # Once more from the start, where these were far off.
    missed = off > enough
    begin, hot = jnp.where(missed, 0, begin), jnp.where(missed, warm, 0)
    begin, off = prices_of(held, begin, hot.astype(acc), goal, enough)
    prices = _differentiable(transport, begin)
    plan = jnp.where(usable, transport.plan(prices), jnp.nan)
    loss = jnp.sum(w * least) + transport.value(prices)
    # Σ w P (x − c) = Σ w P y − counts b with y and b from an origin near them.
    y, b = x - given.expansion.origin, given.rows - given.expansion.origin
    counts = transport.sizes(plan)
    shifts = sum_of_products(w[None] * plan, y) - counts[:, None] * b
    stats = Statistics(jnp.where(usable, loss, jnp.nan), counts, shifts)
    return Found(stats, plan, begin, usable, off <= enough)


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
