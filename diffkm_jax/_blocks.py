"""Blocks of points, and the geometry inside one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def block_for(k: int, d: int) -> int:
    """Points in a block: a power of two whose scores and rows take 2 MB or less.

    But between 256 and 8192, in float32.
    """
    fitting = max(1, (1 << 19) // max(k, d))
    return min(8192, max(256, 1 << fitting.bit_length() - 1))


def blocked(
    f: Callable, block: int, rows: Any, *, differentiable: bool = False
) -> tuple[Any, Any]:
    """Sums f's first result over blocks of rows, and stacks its second.

    The head block takes the remainder: no padding, no mask, and a carry that varies
    over a mesh as the points do. A symbolic number of rows, for export, has no such
    remainder: there rows of zeros are added, for which `row_weights` has weight zero.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if export.is_symbolic_dim(n):
        return _padded(f, block, rows)
    block = min(block, n)
    head = (n - 1) % block + 1
    count = (n - head) // block
    total, first = f(*jax.tree.map(lambda a: a[:head], rows))
    if not count:
        return total, first
    if differentiable:
        # The cotangent of scanned rows costs O(n), that of a slice O(n) per block.
        total, rest = lax.scan(
            lambda carry, piece: _add(carry, f(*piece)),
            total,
            jax.tree.map(lambda a: a[head:].reshape(count, block, *a.shape[1:]), rows),
        )
    else:
        # Scanned rows would be a copy of the points, as dear as the pass at small k.
        def step(carry: Any, i: jax.Array) -> tuple[Any, Any]:
            start = head + i * block
            piece = jax.tree.map(
                lambda a: lax.dynamic_slice_in_dim(a, start, block), rows
            )
            return _add(carry, f(*piece))

        total, rest = lax.scan(step, total, jnp.arange(count))

    def join(head_rows: jax.Array, rest_rows: jax.Array) -> jax.Array:
        return jnp.concatenate([head_rows, rest_rows.reshape(-1, *head_rows.shape[1:])])

    return total, jax.tree.map(join, first, rest)


def _padded(f: Callable, block: int, rows: Any) -> tuple[Any, Any]:
    n = jax.tree.leaves(rows)[0].shape[0]
    count = (n + block - 1) // block

    def pieces(a: jax.Array) -> jax.Array:
        rest = jnp.zeros((count * block - n, *a.shape[1:]), a.dtype)
        return jnp.concatenate([a, rest]).reshape(count, block, *a.shape[1:])

    def shapes(a: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((block, *a.shape[1:]), a.dtype)

    zeros, _ = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, *map(shapes, rows))
    )
    total, stacked = lax.scan(
        lambda carry, piece: _add(carry, f(*piece)), zeros, jax.tree.map(pieces, rows)
    )
    return total, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], stacked)


def row_weights(
    points: jax.Array, weights: jax.Array | None, dtype: jnp.dtype
) -> jax.Array | None:
    """The weights for `blocked`, which need to be an array where it adds rows."""
    n = points.shape[0]
    if weights is None and export.is_symbolic_dim(n):
        return jnp.ones(n, dtype)
    return weights


def _add(carry: Any, block: tuple[Any, Any]) -> tuple[Any, Any]:
    return jax.tree.map(jnp.add, carry, block[0]), block[1]


def psum(tree: Any, axis_name: str | None) -> Any:
    """The sum over a mesh axis, if there is one."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def weigh(weights: jax.Array | None, values: jax.Array) -> jax.Array:
    """Values [n, ...] times weights [n], if there are any."""
    if weights is None:
        return values
    return weights.reshape(weights.shape + (1,) * (values.ndim - 1)) * values


def inert(points: jax.Array, weights: jax.Array | None, fill: jax.Array) -> jax.Array:
    """Points with `fill` for what is not finite in a row of weight zero.

    Finite rows stay, so that the derivative in their weight is still the formula's.
    """
    if weights is None:
        return points
    return jnp.where(jnp.isfinite(points) | (weights != 0)[:, None], points, fill)


def anchor(centroids: jax.Array, active: jax.Array | None) -> jax.Array:
    """The active centroid nearest the mean of the active ones, [1, d], held constant.

    The origin for expanded distances: exact on integer grids, where a mean is not,
    never an outlier, and the same on every device.
    """
    on = jnp.ones(len(centroids), bool) if active is None else active
    total = jnp.sum(centroids, axis=0, where=on[:, None], keepdims=True)
    mean = total / jnp.maximum(on.sum(), 1).astype(centroids.dtype)
    # Not squared: that would overflow before the centroids do.
    away = jnp.sum(jnp.abs(centroids - mean), axis=1)
    index = jnp.argmin(jnp.where(on, away, jnp.inf))
    return lax.stop_gradient(centroids[index][None])


def live(centroids: jax.Array, active: jax.Array | None, fill: jax.Array) -> jax.Array:
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


def scores(points: jax.Array, centroids: jax.Array, origin: jax.Array) -> jax.Array:
    """(‖x − m‖² − ‖x − c‖²)/2 about an origin m, [k, block]: the nearest is largest.

    Clusters are the major axis, because a reduction over the minor one is slow.
    """
    half = 0.5 * jnp.sum((centroids - origin) ** 2, axis=1, keepdims=True)
    return matmul(centroids - origin, (points - origin).T) - half


def masked(score: jax.Array, active: jax.Array | None) -> jax.Array:
    """Scores [k, block] with −∞ for inactive clusters.

    To be masked last: a later factor would have the derivative 0 · ∞.
    """
    return score if active is None else jnp.where(active[:, None], score, -jnp.inf)


def nearest(score: jax.Array) -> jax.Array:
    """The lowest index of the largest score over the major axis, int32, in range.

    An argmax is the fastest for few clusters and falls off a cliff beyond 20, where a
    running maximum takes a third of its time; two plain reductions beat both beyond 48.
    """
    k = score.shape[0]
    if k <= 20:
        return jnp.argmax(score, axis=0).astype(jnp.int32)
    if k <= 48:
        return _first_largest(score)
    index = lax.broadcasted_iota(jnp.int32, score.shape, 0)
    # Where NaN equals no maximum, the bound keeps the label in range.
    return jnp.min(
        jnp.where(score == score.max(0, keepdims=True), index, k - 1), axis=0
    )


def _first_largest(score: jax.Array) -> jax.Array:
    """The same by a running maximum over pairs of rows, k at least 2."""
    k, n = score.shape
    lane = lax.broadcasted_iota(jnp.int32, (2, n), 0)
    best, index = score[:2], lane
    for row in range(2, k, 2):
        start = min(row, k - 2)
        pair = score[start : start + 2]
        larger = pair > best
        best = jnp.where(larger, pair, best)
        index = jnp.where(larger, start + lane, index)

    def first(a: tuple, b: tuple) -> tuple[jax.Array, jax.Array]:
        (x, i), (y, j) = a, b
        second = (y > x) | ((y == x) & (j < i))
        return jnp.where(second, y, x), jnp.where(second, j, i)

    # As a reduction, or XLA would compute the maximum anew wherever it is read.
    start = -jnp.inf * jnp.ones((), score.dtype), jnp.int32(k - 1)
    return lax.reduce((best, index), start, first, (0,))[1]
