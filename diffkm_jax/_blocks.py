"""Sums over blocks of points: memory for one block, whatever their number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export, lax

from diffkm_jax._problem import Problem

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def block_for(k: int, d: int) -> int:
    """Points in a block: a power of two whose scores and rows take 8 MB or less.

    But between 1024 and 16384, in float32.
    """
    # Scores are [k, block] and rows [block, d]; 2²¹ float32 numbers are 8 MB.
    fitting = max(1, (1 << 21) // max(k, d))
    return min(16384, max(1024, 1 << fitting.bit_length() - 1))


def over_points(
    f: Callable[..., tuple[Any, Any]],
    problem: Problem,
    block: int,
    fill: jax.Array,
    *more: jax.Array,
    squares: bool = True,
    differentiable: bool = False,
) -> tuple[Any, Any]:
    """Sums f's first result over blocks of points, and stacks its second.

    f takes the points [block, d] and weights [block] of a block in the dtype of `fill`,
    which stands for what is not finite in a row of weight zero, or what has no finite
    square, if `squares`; and the same rows of more arrays [n, ...]. `differentiable` is
    for what autodiff is to go through: it keeps the memory of a block at second order.
    """
    weights, n = problem.weights, problem.points.shape[0]
    if weights is None and export.is_symbolic_dim(n):
        weights = jnp.ones(n, fill.dtype)  # `blocked` adds rows, of weight zero.

    def of_block(x: jax.Array, w: jax.Array | None, *more: jax.Array):
        w = None if w is None else w.astype(fill.dtype)
        return f(fill_inert(x.astype(fill.dtype), w, fill, squares=squares), w, *more)

    if differentiable:
        # Each nested reverse pass spends one checkpoint: two keep second order flat.
        of_block = jax.checkpoint(jax.checkpoint(of_block))
    rows = problem.points, weights, *more
    return blocked(of_block, block, rows, differentiable=differentiable)


def fill_inert(
    points: jax.Array,
    weights: jax.Array | None,
    fill: jax.Array,
    *,
    squares: bool = True,
) -> jax.Array:
    """Points with `fill` for what is not finite in a row of weight zero.

    That is x − fill in every coordinate or, if `squares`, its square. Other rows stay,
    so that the derivative in their weight is still the formula's.
    """
    if weights is None:
        return points
    away = points - fill
    finite = jnp.isfinite(away * away if squares else away)
    return jnp.where(finite | (weights != 0)[:, None], points, fill)


def fill_rows(
    rows: jax.Array, weights: jax.Array | None, costs: jax.Array, fill: ArrayLike
) -> jax.Array:
    """Rows [n, ...] with `fill` where the weight is zero and the cost [n] not finite.

    Before that enters a sum or a derivative, where 0 · ∞ = NaN.
    """
    if weights is None:
        return rows
    kept = jnp.isfinite(lax.stop_gradient(costs)) | (weights != 0)
    return jnp.where(kept.reshape(kept.shape + (1,) * (rows.ndim - 1)), rows, fill)


def finite_costs(costs: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Costs [n] with 0 where the weight is zero and the cost not finite."""
    return fill_rows(costs, weights, costs, 0)


def weigh(weights: jax.Array | None, values: jax.Array) -> jax.Array:
    """Values [n, ...] times weights [n], if there are any."""
    if weights is None:
        return values
    return weights.reshape(weights.shape + (1,) * (values.ndim - 1)) * values


def sum_by_label(values: jax.Array, label: jax.Array, k: int) -> jax.Array:
    """The sums of values [n, ...] over the points of every label, [k, ...].

    As sums of pieces: n numbers added one after another may lose n ε. Integers do not.
    """
    shape = values.shape[1:]
    if jnp.issubdtype(values.dtype, jnp.integer):
        return jnp.zeros((k, *shape), values.dtype).at[label].add(values)
    index, pieces = _in_pieces(label, k, math.prod(shape))
    zeros = jnp.zeros((pieces * k, *shape), values.dtype)
    return zeros.at[index].add(values).reshape(pieces, k, *shape).sum(axis=0)


def rows_of(values: jax.Array, label: jax.Array) -> jax.Array:
    """The rows values[label], [n, ...] of [k, ...], whose derivative is such a sum."""
    k, *shape = values.shape
    index, pieces = _in_pieces(label, k, math.prod(shape))
    copies = jnp.broadcast_to(values, (pieces, *values.shape))
    return copies.reshape(pieces * k, *shape)[index]


def _in_pieces(label: jax.Array, k: int, d: int) -> tuple[jax.Array, int]:
    """Labels as indices of copies of k rows, one for each piece, and how many.

    The copies take a 64th of what scores [k, n] and values [n, d] do.
    """
    n, size = label.shape[0], max(32, 64 * k * d // max(1, k + d))
    piece = jnp.arange(n, dtype=label.dtype) // size
    return label + k * piece, (n + size - 1) // size


def psum(tree: Any, axis_name: str | None) -> Any:
    """The sum over a mesh axis, if there is one."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def gather(tree: Any, axis_name: Any) -> Any:
    """The arrays of every device of a mesh axis, [devices, ...], the same on each."""

    def every(a: jax.Array) -> jax.Array:
        if axis_name is None:
            return a[None]
        # By psum, not all_gather, so that it is known to be the same.
        zeros = jnp.zeros((lax.axis_size(axis_name), *a.shape), a.dtype)
        zeros = zeros.astype(jnp.int32) if a.dtype == bool else zeros
        mine = zeros.at[lax.axis_index(axis_name)].set(a.astype(zeros.dtype))
        return lax.psum(mine, axis_name).astype(a.dtype)

    return jax.tree.map(every, tree)


def blocked(
    f: Callable, block: int, rows: Any, *, differentiable: bool = False
) -> tuple[Any, Any]:
    """Sums f's first result over blocks of rows, and stacks its second.

    The head block takes the remainder: no padding, no mask, and a carry that varies
    over a mesh as the points do. A symbolic number of rows, for export, has no such
    remainder: there rows of zeros are added.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if export.is_symbolic_dim(n):
        return _padded(f, block, rows)
    block = min(block, n)
    # n = head + count · block with 1 ≤ head ≤ block.
    head = (n - 1) % block + 1
    count = (n - head) // block
    total, first = f(*jax.tree.map(lambda a: a[:head], rows))
    if not count:
        return total, first
    carry = total, jax.tree.map(jnp.zeros_like, total)
    if differentiable:
        # The cotangent of scanned rows costs O(n), that of a slice O(n) per block.
        (total, _), others = lax.scan(
            lambda carry, piece: compensated(carry, f(*piece)),
            carry,
            jax.tree.map(lambda a: a[head:].reshape(count, block, *a.shape[1:]), rows),
        )
    else:
        # Scanned rows would be a copy of the points, as dear as the pass at small k.
        def step(carry: Any, i: jax.Array) -> tuple[Any, Any]:
            start = head + i * block
            piece = jax.tree.map(
                lambda a: lax.dynamic_slice_in_dim(a, start, block), rows
            )
            return compensated(carry, f(*piece))

        (total, _), others = lax.scan(step, carry, jnp.arange(count))

    def join(of_head: jax.Array, of_others: jax.Array) -> jax.Array:
        return jnp.concatenate([of_head, of_others.reshape(-1, *of_head.shape[1:])])

    return total, jax.tree.map(join, first, others)


def _padded(f: Callable, block: int, rows: Any) -> tuple[Any, Any]:
    n = jax.tree.leaves(rows)[0].shape[0]
    count = (n + block - 1) // block

    def pieces(a: jax.Array) -> jax.Array:
        padding = jnp.zeros((count * block - n, *a.shape[1:]), a.dtype)
        return jnp.concatenate([a, padding]).reshape(count, block, *a.shape[1:])

    def shapes(a: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((block, *a.shape[1:]), a.dtype)

    zeros, _ = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, *map(shapes, rows))
    )
    (total, _), stacked = lax.scan(
        lambda carry, piece: compensated(carry, f(*piece)),
        (zeros, zeros),
        jax.tree.map(pieces, rows),
    )
    return total, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], stacked)


def compensated(carry: tuple[Any, Any], block: tuple[Any, Any]) -> tuple[Any, Any]:
    """Kahan's sum: the total with a block, and what rounding has put in too much."""
    (total, excess), (part, stacked) = carry, block
    less = jax.tree.map(jnp.subtract, part, excess)
    new = jax.tree.map(jnp.add, total, less)

    def rounded(new: jax.Array, total: jax.Array, less: jax.Array) -> jax.Array:
        lost = lax.stop_gradient((new - total) - less)
        # So that an infinite sum stays infinite.
        return jnp.where(jnp.isfinite(lost), lost, 0)

    return (new, jax.tree.map(rounded, new, total, less)), stacked
