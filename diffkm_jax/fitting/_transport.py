"""Entropic transport to clusters of bounded size: its prices, one for each cluster.

The plan P of least Σ w P (cost + T log P), with rows that sum to one and columns
Σ_i w_i P_ij within bounds, is softmax(−(cost + price)/T); the prices maximize
−T Σ w log Σ_j exp(−(cost + price_j)/T) − Σ_j (high_j price_j⁺ − low_j price_j⁻). They
are found by Newton's method, safeguarded by the steps of Sinkhorn's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._geometry import matmul, sum_of_products
from diffkm_jax._numerics import nonzero, quotient
from diffkm_jax.fitting._bounds import Bounds


class Transport(NamedTuple):
    """What is to be shared out.

    Attributes:
        costs: [k, n], finite, less the least of every point.
        weights: [n], positive or zero.
        bounds: Of the sums of columns.
        temperature: Positive, [].
    """

    costs: jax.Array
    weights: jax.Array
    bounds: Bounds
    temperature: jax.Array

    def logits(self, prices: jax.Array) -> jax.Array:
        """Scores, [k, n], −∞ for clusters that may have nothing."""
        scores = -quotient(self.costs + prices[:, None], self.temperature)
        return jnp.where((self.bounds.high > 0)[:, None], scores, -jnp.inf)

    def plan(self, prices: jax.Array) -> jax.Array:
        """P, [k, n], whose columns sum to one."""
        return jax.nn.softmax(self.logits(prices), axis=0)

    def sizes(self, plan: jax.Array) -> jax.Array:
        """Σ_i w_i P_ij, [k]."""
        return sum_of_products(plan, self.weights[:, None])[:, 0]

    def value(self, prices: jax.Array) -> jax.Array:
        """What the prices maximize, []; at them the least cost and entropy."""
        free = -self.temperature * jax.nn.logsumexp(self.logits(prices), axis=0)
        low, high = self.bounds
        bound = jnp.where(prices > 0, high, low)
        owed = jnp.where(prices == 0, 0, bound) * prices
        return jnp.sum(self.weights * free) - jnp.sum(owed)

    def excess(self, prices: jax.Array, sizes: jax.Array) -> jax.Array:
        """How far sizes are from where these prices are the best, [k], relative."""
        low, high = self.bounds
        at = jnp.where(prices > 0, high, jnp.where(prices < 0, low, sizes))
        wanted = jnp.clip(at, low, high)
        apart = jnp.where(high > 0, sizes - wanted, 0)
        return apart / nonzero(jnp.where(jnp.isfinite(wanted), wanted, 1))


class _Now(NamedTuple):
    """Prices [k] at a temperature, how far off they are, and how often they stayed."""

    prices: jax.Array
    temperature: jax.Array
    excess: jax.Array
    iteration: jax.Array
    stalls: jax.Array


def limits_of(dtype: jnp.dtype) -> tuple[float, float]:
    """To what sizes are solved, relative, and what of it counts as met."""
    return (1e-13, 1e-10) if dtype == jnp.float64 else (2e-7, 4e-6)


def prices_of(
    problem: Transport,
    start: jax.Array,
    hot: jax.Array,
    goal: float,
    enough: float,
    limit: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The prices [k], and the largest relative excess of a size, [].

    Args:
        problem: Whose bounds can be met.
        start: Prices to start from, [k].
        hot: Temperature to start at, cooled to that of the problem.
        goal: Excess to end at.
        enough: Excess to end at where it does not become smaller.
        limit: Of iterations, [], int32.
    """
    cold = problem.temperature
    farthest = jnp.max(problem.costs) + cold

    def measure(at: Transport, prices: jax.Array) -> tuple[jax.Array, jax.Array]:
        excess = at.excess(prices, at.sizes(at.plan(prices)))
        value = at.value(prices)
        value = jnp.where(jnp.isnan(value), -jnp.inf, value)
        return jnp.max(jnp.abs(excess)), value

    def goes_on(now: _Now) -> jax.Array:
        nearly = now.excess <= enough + rounding_of(problem, now.prices)
        patience = jnp.where(now.excess <= enough, 3, 20)
        rests = (now.excess <= goal) | (nearly & (now.stalls > patience))
        more = (now.iteration < limit) & jnp.isfinite(now.prices).all()
        return more & ~((now.temperature <= cold) & rests)

    def iterate(now: _Now) -> _Now:
        at = problem._replace(temperature=now.temperature)
        plan = at.plan(now.prices)
        sizes = at.sizes(plan)
        new = _newton(at, now.prices, plan, sizes)
        step = new - now.prices
        # No best prices differ by more than costs do.
        part = farthest / nonzero(jnp.max(jnp.abs(step)))
        new = jnp.where(part < 1, now.prices + part * step, new)
        before = jnp.max(jnp.abs(at.excess(now.prices, sizes)))
        prices, excess = _best_of(partial(measure, at), now.prices, new, before)
        others = _sinkhorn(at, now.prices, sizes)
        excess_of_others, value = measure(at, others)
        better = ~(excess <= 0.5 * before) & (value > measure(at, prices)[1])
        prices = jnp.where(better, others, prices)
        excess = jnp.where(better, excess_of_others, excess)
        cooler = (excess < 0.01) & (now.temperature > cold)
        temperature = jnp.where(cooler, now.temperature / 2, now.temperature)
        stays = (now.temperature <= cold) & (excess > 0.5 * now.excess)
        return _Now(
            prices,
            jnp.maximum(temperature, cold),
            excess,
            now.iteration + 1,
            now.stalls + stays.astype(jnp.int32),
        )

    begin = _Now(
        start,
        jnp.maximum(hot, cold),
        jnp.full_like(cold, jnp.inf),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    end = lax.while_loop(goes_on, iterate, begin)
    excess = jnp.where(end.temperature <= cold, end.excess, jnp.inf)
    return end.prices, excess


def rounding_of(problem: Transport, prices: jax.Array) -> jax.Array:
    """What of a size the rounding of its price may move, relative."""
    eps = float(jnp.finfo(prices.dtype).eps)
    return 4 * eps * jnp.max(jnp.abs(prices)) / problem.temperature


def _best_of(
    measure: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: jax.Array,
    end: jax.Array,
    before: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best prices on the way to some, and their excess.

    All the way, if that halves the excess; else a part of it, by quarters: the value is
    concave, so that once it falls it has had its best.
    """

    def at(part: jax.Array) -> tuple:
        prices = start + part * (end - start)
        return prices, *measure(prices)

    def goes_on(now: tuple) -> jax.Array:
        (_, excess, value), (_, _, smaller), part = now
        return ~(excess <= 0.5 * before) & (smaller >= value) & (part > 1e-12)

    def shrink(now: tuple) -> tuple:
        _, found, part = now
        return found, at(part / 4), part / 4

    one = jnp.ones_like(before)
    (prices, excess, _), *_ = lax.while_loop(
        goes_on, shrink, (at(one), at(one / 4), one / 4)
    )
    return prices, excess


def warmth(costs: jax.Array, weights: jax.Array) -> jax.Array:
    """A temperature at which clusters share most points: the mean excess cost, []."""
    mean = jnp.sum(jnp.mean(costs, axis=0) * weights) / nonzero(weights.sum())
    return jnp.where(mean > 0, mean, 1)


def _newton(
    at: Transport, prices: jax.Array, plan: jax.Array, sizes: jax.Array
) -> jax.Array:
    """The prices that are best where sizes are linear in them, [k].

    Which bounds hold then is found by trying: one is let go where its price has the
    other sign, and held where it is broken. Because no price lets another cluster
    shrink, this ends (Hintermüller, Ito & Kunisch 2003).
    """
    low, high = at.bounds
    hessian = jnp.diag(sizes) - matmul(plan * at.weights[None], plan.T)
    slope, identity = hessian / at.temperature, jnp.eye(len(sizes), dtype=sizes.dtype)

    all_given = ((low == high) | (high <= 0)).all()

    def solved(lean: jax.Array) -> jax.Array:
        is_held, bound = held_bounds(at.bounds, lean)
        # Of the change of prices: others go to 0.
        right = jnp.where(is_held, sizes - bound, -prices)
        matrix = jnp.where(is_held[:, None], slope, identity)
        matrix = regular(matrix, is_held, all_given)
        change = jnp.linalg.solve(matrix, right[:, None])[:, 0]
        # Exactly, or it would be taken for held.
        return jnp.where(is_held, prices + change, 0)

    def retry(now: tuple) -> tuple:
        lean, _, tries = now
        new = solved(lean)
        expected = sizes - matmul(slope, (new - prices)[:, None])[:, 0]
        away = expected - jnp.clip(expected, low, high)
        # At a bound that is held only the price says on which side.
        leaning = jnp.where(lean == 0, away, jnp.where(new * lean > 0, lean, 0))
        return leaning, lean, tries + 1

    lean = jnp.where(prices == 0, sizes - jnp.clip(sizes, low, high), prices)

    def goes_on(now: tuple) -> jax.Array:
        lean, before, tries = now
        same = (jnp.sign(lean) == jnp.sign(before)) | (low == high)
        return ~same.all() & (tries < 2 * len(prices))

    start = retry((lean, lean, jnp.int32(0)))
    lean, *_ = lax.while_loop(goes_on, retry, start)
    return solved(lean)


def held_bounds(bounds: Bounds, lean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which bounds are to be met exactly, [k], bool, and what they are.

    By which side of them a size leans to; a given size always is.
    """
    low, high = bounds
    is_held = ((lean != 0) | (low == high)) & (high > 0)
    return is_held, jnp.where(is_held, jnp.where(lean > 0, high, low), 0)


def regular(matrix: jax.Array, is_held: jax.Array, pins_all: jax.Array) -> jax.Array:
    """Minus the derivative of held sizes in prices, [k, k], so that it has an inverse.

    Prices that are all held may move together, and are pinned on request; a part of the
    clusters that shares no point with the others is held by a ridge.
    """
    k, eps = len(matrix), float(jnp.finfo(matrix.dtype).eps)
    scale = lax.stop_gradient(jnp.diagonal(matrix))
    pin = jnp.where(pins_all, scale.sum() / k**2, 0)
    pins = jnp.where(is_held[:, None] & is_held[None], pin, 0)
    # Of the mean too, for a cluster that has nothing yet.
    return matrix + 32 * eps * jnp.diag(scale + scale.mean()) + pins


def pinned(
    is_held: jax.Array,
    is_open: jax.Array,
    slope: Callable[[jax.Array], jax.Array],
    right: jax.Array,
) -> jax.Array:
    """The prices that a linear map takes to some sizes, where it has an inverse."""
    pins_all = (is_held == is_open).all()
    columns = jax.vmap(slope)(jnp.eye(len(right), dtype=right.dtype))
    return jnp.linalg.solve(regular(columns.T, is_held, pins_all), right[:, None])[:, 0]


def _sinkhorn(at: Transport, prices: jax.Array, sizes: jax.Array) -> jax.Array:
    """The best prices where the share that rows have left is held."""
    low, high = at.bounds
    tiny = float(jnp.finfo(sizes.dtype).tiny)
    log_free = jnp.log(jnp.maximum(sizes, tiny)) + prices / at.temperature
    lowest, highest = jnp.log(low), jnp.log(high)
    wanted = jnp.clip(log_free, lowest, highest)
    return jnp.where(high > 0, at.temperature * (log_free - wanted), 0)
