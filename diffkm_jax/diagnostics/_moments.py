"""Weighted means and variances of very many samples, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._mesh import vary_as
from diffkm_jax._numerics import nonzero
from diffkm_jax.estimators._attach import over_rows


class Moments(NamedTuple):
    """Weight, weighted mean, and weighted sum of squares about the mean."""

    weight: jax.Array
    mean: jax.Array
    squares: jax.Array


def moments(
    sample: Callable[[jax.Array], tuple[jax.Array, Any]], num: int, chunk_size: int
) -> Any:
    """The moments of each array of a tree of samples, a `Moments` in its place.

    Means are taken within a chunk and merged between chunks, as Chan, Golub and LeVeque
    do: a sum of squares would lose a small variance beside a large mean.

    Args:
        sample: Function of an index below `num` to a weight, [*batch], and a tree of
            arrays [*batch, ...]; a sample of weight 0 may hold NaN.
        num: How many samples.
        chunk_size: The most of them in memory at once.
    """
    chunks = -(-num // chunk_size)
    size = -(-num // chunks)

    @jax.checkpoint
    def of_chunk(chunk: jax.Array) -> Any:
        index = chunk * size + jnp.arange(size)
        weights, found = jax.vmap(sample)(index)
        weights = jnp.where(over_rows(index < num, weights), weights, 0)

        def of_array(values: jax.Array) -> Moments:
            w = over_rows(weights, values)
            values = jnp.where(w > 0, values, 0)
            total = jnp.sum(w, axis=0)
            mean = jnp.sum(w * values, axis=0) / nonzero(total)
            # Once more about itself, so that the mean of equal values is that value.
            mean += jnp.sum(w * (values - mean[None]), axis=0) / nonzero(total)
            return Moments(total, mean, jnp.sum(w * (values - mean[None]) ** 2, axis=0))

        return jax.tree.map(of_array, found)

    def step(carry: Any, chunk: jax.Array) -> tuple[Any, None]:
        new = of_chunk(chunk)
        return jax.tree.map(_merged, carry, new, is_leaf=_is_moments), None

    if chunks == 1:
        return of_chunk(jnp.zeros((), int))
    # From nothing, so that the chunk is compiled once; a weight of 0 merges as nothing.
    shapes = jax.eval_shape(of_chunk, jax.ShapeDtypeStruct((), int))
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return lax.scan(step, vary_as(nothing, shapes), jnp.arange(chunks))[0]


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


def _merged(a: Moments, b: Moments) -> Moments:
    total = a.weight + b.weight
    share = b.weight / nonzero(total)
    step = b.mean - a.mean
    squares = a.squares + b.squares + a.weight * share * step**2
    return Moments(total, a.mean + share * step, squares)
