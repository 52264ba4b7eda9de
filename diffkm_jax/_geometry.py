"""Centroids about an origin in the data; scores in a block, clusters the major axis."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._problem import Problem

matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def centered(problem: Problem, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The centroids as a pass takes them, [k, d], and an origin for it, [1, d].

    Both in the accumulation dtype; the origin stands in for inactive centroids.
    """
    acc = problem.dtype(centroids)
    c = centroids.astype(acc)
    origin = anchor(c, problem.active)
    return fill_inactive(c, problem.active, origin), origin


def anchor(centroids: jax.Array, active: jax.Array | None) -> jax.Array:
    """The active centroid nearest the mean of the active ones, [1, d], held constant.

    The origin for expanded distances: exact on integer grids, where a mean is not,
    never an outlier, and the same on every device.
    """
    on = jnp.ones(len(centroids), bool) if active is None else active
    # About one of them, so that far from the origin too rounding does not choose.
    first = 0 if active is None else jnp.argmax(active)
    near = centroids - centroids[first][None]
    total = jnp.sum(near, axis=0, where=on[:, None], keepdims=True)
    mean = total / jnp.maximum(on.sum(), 1).astype(centroids.dtype)
    # Not squared: that would overflow before the centroids do.
    away = jnp.sum(jnp.abs(near - mean), axis=1)
    index = jnp.argmin(jnp.where(on, away, jnp.inf))
    return lax.stop_gradient(centroids[index][None])


def fill_inactive(
    centroids: jax.Array, active: jax.Array | None, fill: jax.Array
) -> jax.Array:
    """Centroids with `fill` in the inactive rows.

    All of them NaN if no row is active, or if an active one is not finite: what is
    nearest would depend on how the scores are reduced, and must not look right.
    """
    usable = jnp.ones((), bool)
    if active is not None:
        centroids = jnp.where(active[:, None], centroids, fill)
        usable = active.any()
    usable &= jnp.isfinite(centroids).all()
    return jnp.where(usable, centroids, jnp.nan)


def about(origin: jax.Array, centroids: jax.Array, remainder: Any = None) -> jax.Array:
    """Where the centroids are from an origin, [k, d], with what rounding took of them.

    As they are themselves, float32 does not hold them far from zero: their difference
    from an origin in the data is exact, and to it the remainder can be added.
    """
    b = centroids - origin
    return b if remainder is None else b + remainder.astype(b.dtype)


def sum_of_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product a b over points, [k, d], of [k, n] and [n, d].

    A narrow one adds its n terms one after another, which may lose n ε: there it is a
    sum of pieces. A wide one is not, and pieces would cost a third of its speed.
    """
    (k, n), d, size = a.shape, b.shape[1], 128
    if min(k, d) >= 16:
        return matmul(a, b)
    number, missing = -(-n // size), -n % size
    a = jnp.pad(a, ((0, 0), (0, missing))).reshape(k, number, size)
    b = jnp.pad(b, ((0, missing), (0, 0))).reshape(number, size, d)
    pieces = jnp.einsum("kps,psd->pkd", a, b, precision=lax.Precision.HIGHEST)
    return jnp.sum(pieces, axis=0)


def masked(score: jax.Array, active: jax.Array | None) -> jax.Array:
    """Scores [k, block] with −∞ for inactive clusters.

    To be masked last: a later factor would have the derivative 0 · ∞.
    """
    return score if active is None else jnp.where(active[:, None], score, -jnp.inf)


def largest(score: jax.Array) -> jax.Array:
    """The largest score over the major axis, [block], NaN if there is one.

    The reductions of XLA drop it, on CPUs, from 4096 numbers on.
    """
    return jnp.where(jnp.isnan(score).any(0), jnp.nan, score.max(0))


def nearest(score: jax.Array) -> jax.Array:
    """The lowest index of the largest score over the major axis, int32, in range."""
    # In a loop second derivatives would ask for that of a reduction with indices, of
    # which jax 0.10.2 knows none.
    return best_of(lax.stop_gradient(score))[1]


def best_of(score: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest score over the major axis, but for NaN, and what `nearest` returns.

    Both [block]. By running maxima, in groups, which read the scores once: to find the
    maximum and then where it is takes twice as long, an argmax up to five times.
    """
    best, index = score, lax.broadcasted_iota(jnp.int32, score.shape, 0)
    while len(best) > 1:
        # One over more than 48 rows is slow.
        size = 16 if len(best) > 48 else len(best)
        whole = len(best) // size * size
        groups = [
            [a[:whole].reshape(-1, size, a.shape[1]) for a in (best, index)],
            [a[None, whole:] for a in (best, index)],
        ]
        found = [
            _running_maximum(*group, len(score) - 1)
            for group in groups
            if group[0].shape[1]
        ]
        best, index = map(jnp.concatenate, zip(*found, strict=True))
    return best[0], index[0]


def _running_maximum(
    score: jax.Array, index: jax.Array, last: int
) -> tuple[jax.Array, jax.Array]:
    """The largest of scores [q, g, n] over g, [q, n], and the lowest index of it."""
    g = score.shape[1]
    best, first = score[:, :2], index[:, :2]
    for row in range(2, g, 2):
        pair = slice(min(row, g - 2), min(row, g - 2) + 2)
        larger = score[:, pair] > best
        best = jnp.where(larger, score[:, pair], best)
        first = jnp.where(larger, index[:, pair], first)

    def lowest(a: tuple, b: tuple) -> tuple[jax.Array, jax.Array]:
        (x, i), (y, j) = a, b
        second = (y > x) | ((y == x) & (j < i))
        # Not `where`, a function to call: two such reductions in a loop crash jaxlib
        # 0.10.2.
        return lax.select(second, y, x), lax.select(second, j, i)

    # As a reduction, or XLA would compute the maximum anew wherever it is read. What
    # it starts from is what is left where NaN is larger than nothing.
    start = -jnp.inf * jnp.ones((), score.dtype), jnp.int32(last)
    return lax.reduce((best, first), start, lowest, (1,))
