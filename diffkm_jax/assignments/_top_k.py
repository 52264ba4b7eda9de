"""Rows of several clusters: the best k, one or a few of them relaxed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_scalar, check_integer
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import quotient
from diffkm_jax.assignments._roots import root_between

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float

# So far apart that no share is left, but that a sum of some is finite.
FAR = 1e30


def top_k(
    logits: Float[ArrayLike, "*batch k"], *, size: int
) -> Float[Array, "*batch k"]:
    """Assigns every row to its best clusters, several of them.

    The gradient is zero: the choice is constant between ties.

    Args:
        logits: Scores, [..., k], floating, no unit; the largest win, of a tie the
            lowest indices.
        size: How many clusters to choose, from 1 to k; static. With 1 it is `hard`.

    Returns:
        Rows of `size` ones and else zeros, [..., k], in the dtype of `logits`. Where
        fewer logits are above −inf, the first of the others fill up.

    Raises:
        TypeError: `logits` is not floating, or `size` no Python integer.
        ValueError: `logits` is a scalar or has no cluster, or `size` is out of range.

    Example:
        >>> dk.top_k(jnp.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]), size=2).tolist()
        [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]

    Source: Xie & Ermon 2019, https://arxiv.org/abs/1901.10517
    """
    logits = as_logits(logits)
    check_size(size, logits)
    return best(logits, size)


def best(logits: jax.Array, size: int) -> jax.Array:
    """The rows of `top_k`, unchecked."""
    _, labels = lax.top_k(lax.stop_gradient(logits), size)
    zeros = jnp.zeros_like(logits)
    ones = jnp.ones(labels.shape, logits.dtype)
    return jnp.put_along_axis(zeros, labels, ones, axis=-1, inplace=False)


def check_size(size: int, logits: jax.Array) -> None:
    """Raises unless a size is a Python integer from 1 to the number of clusters."""
    k = logits.shape[-1]
    check_integer("size", size, minimum=1, maximum=k)


@hinted
def soft_top_k(
    logits: Float[ArrayLike, "*batch k"], *, size: int, tau: ArrayLike = 1.0
) -> Float[Array, "*batch k"]:
    """The best clusters made smooth: sigmoids that sum to a size.

    The value is p = sigmoid(logits/tau − s), with the s at which it sums to `size`; it
    maximizes p·logits plus tau times the entropies of its entries, each that of a coin.
    The gradient is exact, in logits and tau, in both modes and at every order: with
    w = p (1 − p) it is, for a cotangent g, w (g − w·g / Σw)/tau in the logits.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf excludes a cluster.
        size: What a row sums to, from 1 to k; static.
        tau: Positive scalar, in the unit of `logits`; may be traced.

    Returns:
        Rows of numbers from 0 to 1 that sum to `size`, [..., k], in the dtype of
        `logits`. A row with fewer logits above −inf is NaN, with gradient zero.

    Raises:
        TypeError: `logits` is not floating, `tau` not real, or `size` no Python
            integer.
        ValueError: `logits` is a scalar or has no cluster; `size` is out of range;
            `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits = jnp.array([2.0, 1.0, -1.0, -2.0])
        >>> for tau in (1.0, 0.1):
        ...     print([f"{p:.2f}" for p in dk.soft_top_k(logits, size=2, tau=tau)])
        ['0.88', '0.73', '0.27', '0.12']
        ['1.00', '1.00', '0.00', '0.00']

    Source: Amos, Koltun & Kolter 2019, https://arxiv.org/abs/1906.08707
    """
    logits = as_logits(logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, logits)
    return _sigmoids(logits.astype(tau.dtype), tau, size).astype(logits.dtype)


@partial(jax.jit, static_argnames="size")
def _sigmoids(logits: jax.Array, tau: jax.Array, size: int) -> jax.Array:
    z, out, certain, wanted, undefined = scores_of(logits, tau, size)
    held = lax.stop_gradient(jnp.where(out, -jnp.inf, z))
    following = _at(held, wanted + 1, size + 1)
    # With as many left as are wanted there is no s: those are 1.
    everyone = jnp.isneginf(following)
    # At the first of these the rows sum to what is wanted or more, at the other to no
    # more.
    low = jnp.where(everyone, 0, following) - jnp.log(jnp.asarray(size, z.dtype))
    high = jnp.full_like(low, jnp.log(jnp.asarray(z.shape[-1], z.dtype)))

    def excess(s: jax.Array) -> jax.Array:
        p = jnp.where(out, 0, jax.nn.sigmoid(z - s))
        return jnp.sum(p, axis=-1, keepdims=True) - wanted.astype(z.dtype)

    s = root_between(excess, low, high)
    p = jnp.where(everyone, 1, jax.nn.sigmoid(z - s))
    p = jnp.where(out, certain.astype(z.dtype), p)
    return jnp.where(undefined, jnp.nan, p)


class Scores(NamedTuple):
    """Logits of several clusters to choose, as numbers that are finite but for NaN.

    Attributes:
        z: (logits − the last of those that are chosen)/tau, [..., k].
        out: What is excluded, [..., k], and in no choice of the others.
        certain: What is in for certain, [..., k], being infinite.
        wanted: How many to choose of what is not out, [..., 1].
        undefined: Where fewer than that are left, or one is NaN, [..., 1].
    """

    z: jax.Array
    out: jax.Array
    certain: jax.Array
    wanted: jax.Array
    undefined: jax.Array


def scores_of(logits: jax.Array, tau: jax.Array, size: int) -> Scores:
    """The scores of logits at a tau; of infinite ones in their limit."""
    infinite = jnp.isposinf(logits)
    count = jnp.sum(infinite, axis=-1, keepdims=True, dtype=jnp.int32)
    # As many as are wanted are in for certain, of more any.
    enough = (count >= size) & ~jnp.isnan(logits).any(-1, keepdims=True)
    out = jnp.isneginf(logits) | (infinite != enough)
    certain = infinite & ~enough
    wanted = jnp.where(enough, size, jnp.maximum(size - count, 1))
    finite = jnp.where(out | infinite, 0, logits)
    pivot = _at(jnp.where(out, -jnp.inf, finite), wanted, size)
    undefined = jnp.isneginf(pivot) & (count < size)
    z = jnp.clip(quotient(finite - jnp.where(undefined, 0, pivot), tau), -FAR, FAR)
    undefined |= jnp.isnan(logits).any(-1, keepdims=True)
    return Scores(jnp.where(out, 0, z), out, certain, wanted, undefined)


def _at(values: jax.Array, place: jax.Array, most: int) -> jax.Array:
    """The value that is the so many-th largest, [..., 1], held constant; of none −∞."""
    values = lax.stop_gradient(values)
    largest = lax.top_k(values, min(most, values.shape[-1]))[0]
    nothing = jnp.full_like(values[..., :1], -jnp.inf)
    largest = jnp.concatenate([largest, nothing], axis=-1)
    return jnp.take_along_axis(largest, place - 1, axis=-1)
