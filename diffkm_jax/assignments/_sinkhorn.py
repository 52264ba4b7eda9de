"""Balanced assignments: rows that sum to one, columns that share them out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import (
    as_logits,
    as_real,
    as_scalar,
    check_integer,
    check_shape,
)
from diffkm_jax._mesh import vary_as
from diffkm_jax._numerics import quotient
from diffkm_jax.assignments._softmax import decided, nothing_left

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def sinkhorn(
    logits: Float[ArrayLike, "*batch n k"],
    *,
    tau: ArrayLike = 1.0,
    num_iters: int = 20,
    column_weights: Float[ArrayLike, " k"] | None = None,
) -> Float[Array, "*batch n k"]:
    """Assigns rows to clusters in proportion to exp(logits / tau), in balanced shares.

    Sinkhorn's iterations scale the columns of exp(logits/tau) to their shares of the
    rows and the rows to one, in turn and in the log domain, and end on the rows: these
    sum to one exactly, the columns to their shares in the limit of many iterations. The
    gradient is exact for the iterations as they are, in logits, tau and weights, in
    both modes and at every order.

    Args:
        logits: Scores, [..., n, k], floating, no unit; leading axes are separate
            problems. −inf excludes a cluster from a row; a row or a column of −inf
            alone takes no part.
        tau: Positive scalar, in the unit of `logits`: the strength of the entropy; may
            be traced.
        num_iters: Iterations, at least 0, static; 0 is the softmax.
        column_weights: Sizes of the clusters relative to each other, [k], positive,
            real, any unit; None is equal sizes.

    Returns:
        Rows that sum to one, [..., n, k], in the dtype of `logits`. A row of −inf alone
        is NaN, with gradient zero.

    Raises:
        TypeError: `logits` is not floating, `column_weights` or `tau` not real, or
            `num_iters` no integer.
        ValueError: `logits` has no axis of rows or no cluster, `column_weights` not its
            k; `tau` is not a scalar, or a number and not positive; `num_iters` is
            negative.

    Example:
        >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0]])  # Both prefer the first.
        >>> [f"{p:.2f}" for p in dk.sinkhorn(logits)[0]]
        ['0.50', '0.50']
        >>> rows = dk.sinkhorn(logits, column_weights=jnp.array([3.0, 1.0]))
        >>> [f"{p:.2f}" for p in rows[0]]
        ['0.75', '0.25']

    Source: Cuturi 2013, https://arxiv.org/abs/1306.0895;
        Caron et al. 2020 (SwAV), https://arxiv.org/abs/2006.09882
    """
    logits = as_logits(logits)
    if logits.ndim < 2:
        raise ValueError(f"logits must be [..., n, k], got shape {logits.shape}")
    check_integer("num_iters", num_iters, minimum=0)
    k = logits.shape[-1]
    tau = as_scalar("tau", tau, logits)
    if column_weights is not None:
        column_weights = as_real("column_weights", column_weights)
        check_shape("column_weights", column_weights, (k,), f"[k] with k = {k}")
    return _balanced(logits, tau, column_weights, num_iters)


@partial(jax.jit, static_argnames="num_iters")
def _balanced(
    logits: jax.Array,
    tau: jax.Array,
    column_weights: jax.Array | None,
    num_iters: int,
) -> jax.Array:
    k = logits.shape[-1]
    logits, dtype = decided(logits.astype(tau.dtype)), logits.dtype
    excluded = jnp.isneginf(logits)
    z = quotient(jnp.where(excluded, 0, logits), tau)
    shares = jnp.zeros(k, z.dtype)
    if column_weights is not None:
        shares = jnp.log(column_weights.astype(z.dtype))
    shares = jnp.broadcast_to(shares, (*z.shape[:-2], 1, k))

    def total(entries: jax.Array, axis: int) -> jax.Array:
        # Zero where nothing takes part, and no 0 · ∞ in the derivative.
        entries = jnp.where(excluded, -jnp.inf, entries)
        nothing = excluded.all(axis, keepdims=True)
        entries = jnp.where(nothing, 0, entries)
        lse = jax.nn.logsumexp(entries, axis=axis, keepdims=True)
        return jnp.where(nothing, 0, lse)

    def iteration(columns: jax.Array, _: None) -> tuple[jax.Array, None]:
        rows = total(z + columns, -1)
        return shares - total(z - rows, -2), None

    start = vary_as(jnp.zeros_like(shares), z, shares)
    columns, _ = lax.scan(iteration, start, length=num_iters)
    nothing = nothing_left(logits)
    balanced = jnp.where(excluded & ~nothing, -jnp.inf, z + columns)
    return jnp.where(nothing, jnp.nan, jax.nn.softmax(balanced)).astype(dtype)
