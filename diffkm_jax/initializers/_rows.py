"""Draws among rows that may be on several devices, by an index that all share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from diffkm_jax._blocks import gather, psum
from diffkm_jax._checks import as_points, as_weights, check_integer, check_key
from diffkm_jax._geometry import anchor
from diffkm_jax._mesh import index_on
from diffkm_jax._numerics import unit_of
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._sharding import as_plan, number_of
from diffkm_jax.distances import squared_euclidean

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def as_rows(
    key: jax.Array,
    points: ArrayLike,
    k: int,
    weights: ArrayLike | None,
    axis_name: Any,
    block_size: int | None = None,
) -> tuple[Plan, Problem]:
    """The arguments of an initializer, checked: the rows to draw from."""
    check_key(key)
    points = as_points(points)
    weights = as_weights(weights, len(points))
    plan = as_plan(axis_name, block_size, points, weights)
    n = number_of(plan, points)
    check_integer("k", k, minimum=1, maximum=n, why=" (the number of points)")
    if n >= 2**31:
        raise ValueError(f"points must be fewer than 2^31 to draw from, got n = {n}")
    return plan, Problem(points, Partial(squared_euclidean), weights)


def usable_rows(plan: Plan, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Rows about an origin near the data, [n, d], and their mass, [n], held constant.

    A row of weight zero is never drawn, and must not enter whatever it holds: it is 0.
    """
    acc, axis = problem.dtype(), plan.axis_name
    x = lax.stop_gradient(problem.points).astype(acc)
    if problem.weights is None:
        mass, usable = jnp.ones(len(x), acc), None
    else:
        mass = lax.stop_gradient(problem.weights).astype(acc)
        mass = mass / unit_of(gather(jnp.max(mass), axis).max())
        usable = mass > 0
    origins = gather(anchor(x, usable)[0], axis)
    some = None if usable is None else gather(usable.any(), axis)
    x = x - anchor(origins, some)
    return x if usable is None else jnp.where(usable[:, None], x, 0), mass


def take(rows: jax.Array, index: jax.Array, axis_name: Any) -> jax.Array:
    """The rows at indices [m] of all devices' rows, [m, ...], the same on every one."""
    if axis_name is None:
        return rows[index]
    local = index - len(rows) * index_on(axis_name)
    mine = (local >= 0) & (local < len(rows))
    found = rows[jnp.where(mine, local, 0)]
    mine = mine.reshape(-1, *(1,) * (rows.ndim - 1))
    return psum(jnp.where(mine, found, 0), axis_name)


def draw(
    key: jax.Array, potential: jax.Array, mass: jax.Array, num: int, axis_name: Any
) -> jax.Array:
    """Indices [num] in proportion to a potential, or to the mass if all of it is 0."""
    totals = gather(potential.sum(), axis_name)
    potential = jnp.where(totals.sum() > 0, potential, mass)
    cumulative = jnp.cumsum(potential)
    upto = jnp.cumsum(gather(cumulative[-1], axis_name))
    # In float32 whatever the data are, so that a key means the same rows.
    u = jax.random.uniform(key, (num,), jnp.float32).astype(upto.dtype) * upto[-1]
    n, device = len(potential), index_on(axis_name)
    owner = jnp.searchsorted(upto, u, side="right").astype(jnp.int32)
    owner = jnp.minimum(owner, len(upto) - 1)
    before = jnp.where(device > 0, upto[device - 1], 0)
    local = jnp.searchsorted(cumulative, u - before, side="right").astype(jnp.int32)
    index = jnp.minimum(local, n - 1) + device * n
    if axis_name is not None:
        index = psum(jnp.where(owner == device, index, 0), axis_name)
    # Rounding in the sums must not choose a row of weight zero.
    usable = take(potential, index, axis_name) > 0

    def others() -> jax.Array:
        best = jnp.argmax(potential).astype(jnp.int32)
        largest = gather(potential[best], axis_name)
        first = jnp.argmax(largest)
        where = gather(best + device * n, axis_name)[first]
        return jnp.where(usable, index, where)

    return lax.cond(usable.all(), lambda: index, others)
