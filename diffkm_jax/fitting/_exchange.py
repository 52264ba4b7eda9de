"""The labels of least cost under bounds on the sizes of clusters, by exchanges.

Labels that are optimal for the sizes that they have stay so if points move along a
shortest path from one cluster to another, whose edges are the points that cost least
to move. The least cost as a function of the sizes is M-convex (Murota 2003), so that
where no such exchange is better, nothing is.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._geometry import nearest
from diffkm_jax.fitting._bounds import Bounds


class _Now(NamedTuple):
    """Labels [n] with what each point costs, [n], edges [k, k] and sizes [k]."""

    labels: jax.Array
    own: jax.Array
    edges: jax.Array
    sizes: jax.Array
    moves: jax.Array
    done: jax.Array
    stuck: jax.Array


class _Paths(NamedTuple):
    """Shortest paths from row to column, [k, k] each.

    Attributes:
        length: Of the path, ∞ if there is none.
        size: The sum of its edges without their signs, to which it is rounded.
        hop: The cluster after the first.
    """

    length: jax.Array
    size: jax.Array
    hop: jax.Array


def exchanged(
    costs: jax.Array, counted: jax.Array, bounds: Bounds, prices: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The labels [n] of least total cost, and whether they were found.

    Args:
        costs: Of every point in every cluster, [k, n], finite.
        counted: Which points count, [n], bool; the others cost 0 everywhere.
        bounds: Integers in a floating dtype, that can be met.
        prices: Of a place in every cluster, [k]: any, and the better the fewer
            exchanges. Nearest by costs + prices is optimal for the sizes it has.
    """
    k, n = costs.shape
    low, high = jnp.ceil(bounds.low), jnp.floor(bounds.high)
    every = jnp.arange(k, dtype=jnp.int32)
    labels = nearest(-(costs + prices[:, None]))
    own = jnp.take_along_axis(costs, labels[None], axis=0)[0]
    members = (labels[None] == every[:, None]) & counted[None]
    sizes = members.sum(axis=1).astype(low.dtype)
    edges = lax.map(lambda j: _edges_from(j, costs, counted, labels, own), every)
    # To what the labels of the start are rounded.
    slack = 8 * float(jnp.finfo(costs.dtype).eps) * jnp.max(jnp.abs(prices))

    def exchange(now: _Now) -> _Now:
        paths = _shortest(now.edges, slack)
        gains = _gains(now.sizes, low, high)
        reached = jnp.isfinite(paths.length) & ~jnp.eye(k, dtype=bool)
        best = jnp.max(jnp.where(reached, gains, -3))
        candidates = jnp.where(reached & (gains == best), paths.length, jnp.inf)
        index = jnp.argmin(candidates).astype(jnp.int32)
        source, target = index // k, index % k
        met = ((now.sizes >= low) & (now.sizes <= high)).all()
        least = candidates[source, target]
        rounding = _rounding(paths.size[source, target], slack)
        better = (best > 0) | ((best == 0) & (least < -rounding))
        moved = _moved(costs, counted, now, paths, source, target)
        moved = moved._replace(moves=now.moves + 1)
        stays = now._replace(done=met, stuck=~met)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), moved, stays)

    def goes_on(now: _Now) -> jax.Array:
        return ~now.done & ~now.stuck & (now.moves < 2 * n + 100)

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    end = lax.while_loop(
        goes_on, exchange, _Now(labels, own, edges, sizes, zero, no, no)
    )
    return end.labels, end.done


def _edges_from(
    j: jax.Array,
    costs: jax.Array,
    counted: jax.Array,
    labels: jax.Array,
    own: jax.Array,
) -> jax.Array:
    """What the cheapest point of cluster j costs to move to every other, [k]."""
    members = (labels == j) & counted
    return jnp.min(jnp.where(members[None], costs - own[None], jnp.inf), axis=1)


def _gains(sizes: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """By how much a point from row to column brings sizes nearer the bounds, [k, k]."""
    leaves = jnp.where(sizes > high, 1, jnp.where(sizes <= low, -1, 0))
    comes = jnp.where(sizes < low, 1, jnp.where(sizes >= high, -1, 0))
    return leaves[:, None] + comes[None]


def _rounding(size: jax.Array, slack: jax.Array) -> jax.Array:
    return 8 * float(jnp.finfo(size.dtype).eps) * size + slack


def _shortest(edges: jax.Array, slack: jax.Array) -> _Paths:
    """All shortest paths, by Floyd and Warshall's algorithm."""
    k = len(edges)
    same = jnp.eye(k, dtype=bool)
    length = jnp.where(same, 0, edges)
    size = jnp.where(jnp.isfinite(length), jnp.abs(length), 0)
    hop = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None], (k, k))

    def through(m: jax.Array, paths: _Paths) -> _Paths:
        length = paths.length[:, m, None] + paths.length[None, m]
        size = paths.size[:, m, None] + paths.size[None, m]
        shorter = (length < paths.length - _rounding(size, slack)) & ~same
        hop = jnp.broadcast_to(paths.hop[:, m, None], (k, k))
        found = _Paths(length, size, hop)
        return jax.tree.map(lambda a, b: jnp.where(shorter, a, b), found, paths)

    return lax.fori_loop(0, k, through, _Paths(length, size, hop))


def _moved(
    costs: jax.Array,
    counted: jax.Array,
    now: _Now,
    paths: _Paths,
    source: jax.Array,
    target: jax.Array,
) -> _Now:
    """One point moved along every edge of a path; stuck if it does not end."""
    k = len(costs)

    def on_the_way(walk: tuple) -> jax.Array:
        at, steps, *_ = walk
        return (at != target) & (steps < k)

    def move(walk: tuple) -> tuple:
        at, steps, labels, own = walk
        to = paths.hop[at, target]
        # As labels were before: no point moves twice.
        members = (now.labels == at) & counted
        i = jnp.argmin(jnp.where(members, costs[to] - now.own, jnp.inf))
        labels = labels.at[i].set(to.astype(labels.dtype))
        return to, steps + 1, labels, own.at[i].set(costs[to, i])

    zero = jnp.zeros((), jnp.int32)
    start = source, zero, now.labels, now.own
    at, _, labels, own = lax.while_loop(on_the_way, move, start)

    def renew(walk: tuple) -> tuple:
        at, steps, edges = walk
        edges = edges.at[at].set(_edges_from(at, costs, counted, labels, own))
        return paths.hop[at, target], steps + 1, edges

    _, _, edges = lax.while_loop(on_the_way, renew, (source, zero, now.edges))
    edges = edges.at[target].set(_edges_from(target, costs, counted, labels, own))
    sizes = now.sizes.at[source].add(-1).at[target].add(1)
    return now._replace(
        labels=labels, own=own, edges=edges, sizes=sizes, stuck=at != target
    )
