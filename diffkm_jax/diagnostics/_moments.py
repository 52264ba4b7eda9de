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
    draw: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    sample: Callable[[jax.Array], Any],
    num: int,
    chunk_size: int,
    *,
    probes: jax.Array | None = None,
) -> tuple[Any, Any]:
    """The moments of each array of a tree of samples, a `Moments` in its place.

    Means are taken within a chunk and merged between chunks, as Chan, Golub and LeVeque
    do: a sum of squares would lose a small variance beside a large mean.

    Args:
        draw: Function of an index below `num` to a weight, [*batch], and noise.
        sample: Function of noise to a tree of arrays [*batch, ...], axes of length 1
            broadcast; a sample of weight 0 may hold NaN.
        num: How many samples.
        chunk_size: The most of them in memory at once.
        probes: Noise, [p, ...], of samples to take along that count for nothing.

    Returns:
        The moments, and the samples of `probes`, [p, ...], None without any.
    """
    chunks = -(-num // chunk_size)
    size = -(-num // chunks)

    @jax.checkpoint
    def of_chunk(chunk: jax.Array) -> Any:
        index = chunk * size + jnp.arange(size)
        weights, noise = jax.vmap(draw)(index)
        weights = jnp.where(over_rows(index < num, weights), weights, 0)
        if probes is not None:
            noise = jnp.concatenate([noise, probes])
        found = jax.vmap(sample)(noise)
        aside = None if probes is None else jax.tree.map(lambda a: a[size:], found)
        return jax.tree.map(lambda a: _of_array(weights, a[:size]), found), aside

    def step(carry: Any, chunk: jax.Array) -> tuple[Any, Any]:
        new, aside = of_chunk(chunk)
        return jax.tree.map(_merged, carry, new, is_leaf=_is_moments), aside

    if chunks == 1:
        return of_chunk(jnp.zeros((), int))
    # From nothing, so that the chunk is compiled once; a weight of 0 merges as nothing.
    shapes, _ = jax.eval_shape(of_chunk, jax.ShapeDtypeStruct((), int))
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    found, aside = lax.scan(step, vary_as(nothing, shapes), jnp.arange(chunks))
    return found, jax.tree.map(lambda a: a[0], aside)


def _of_array(weights: jax.Array, values: jax.Array) -> Moments:
    """The moments of values [n, *batch, ...] with weights [n, *batch]."""
    w = over_rows(weights, values)
    values = jnp.where(w > 0, values, 0)
    total = jnp.sum(w, axis=0)
    mean = jnp.sum(w * values, axis=0) / nonzero(total)
    # Once more about itself, so that the mean of equal values is that value.
    mean += jnp.sum(w * (values - mean[None]), axis=0) / nonzero(total)
    return Moments(total, mean, jnp.sum(w * (values - mean[None]) ** 2, axis=0))


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


def _merged(a: Moments, b: Moments) -> Moments:
    total = a.weight + b.weight
    share = b.weight / nonzero(total)
    step = b.mean - a.mean
    squares = a.squares + b.squares + a.weight * share * step**2
    return Moments(total, a.mean + share * step, squares)
