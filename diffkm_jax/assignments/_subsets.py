"""Subsets of a size, each as likely as the product of its exp(logits)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_noise, as_scalar
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import log_sum
from diffkm_jax.assignments._declared import declared, gradient_of
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.assignments._top_k import Scores, best, check_size, scores_of

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


@hinted
def subset_marginals(
    logits: Float[ArrayLike, "*batch k"], *, size: int, tau: ArrayLike = 1.0
) -> Float[Array, "*batch k"]:
    """How often each cluster is in a subset of a size, exactly: softmax for several.

    A subset S of `size` clusters has probability ∏ exp(logits_s / tau)/e, with e the
    sum of these products over all subsets: independent coins, given how many show heads
    (conditional Bernoulli). The value is p_i = P(i in S), from a recursion over the
    clusters, and p/tau the gradient of log e. The gradient is exact, in both modes and
    at every order: with C the covariance of the rows, C g/tau in the logits.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf excludes a cluster.
        size: How many clusters are in a subset, from 1 to k; static. With 1 the value
            is that of `softmax`.
        tau: Positive scalar, in the unit of `logits`; may be traced.

    Returns:
        Rows of probabilities that sum to `size`, [..., k], in the dtype of `logits`. A
        row with fewer logits above −inf is NaN, with gradient zero.

    Raises:
        TypeError: `logits` is not floating, `tau` not real, or `size` no Python
            integer.
        ValueError: `logits` is a scalar or has no cluster; `size` is out of range;
            `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits = jnp.log(jnp.array([1.0, 2.0, 3.0]))  # Products 2, 3 and 6.
        >>> [f"{11 * p:.2f}" for p in dk.subset_marginals(logits, size=2)]
        ['5.00', '8.00', '9.00']

    Source: Ahmed et al. 2023, https://arxiv.org/abs/2210.01941; Chen, Dempster & Liu
        1994 (the law), https://doi.org/10.1093/biomet/81.3.457
    """
    logits = as_logits(logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, logits)
    return marginals(logits, tau, size).astype(logits.dtype)


def straight_through_top_k(
    logits: Float[ArrayLike, "*batch k"], *, size: int, tau: ArrayLike = 1.0
) -> Float[Array, "*batch k"]:
    """Assigns every row to its best clusters, with the gradient of subset marginals.

    The value is that of `top_k`. The gradient in `logits` and `tau` is that of
    `subset_marginals` at `tau`: biased by design, reverse mode only.

    Args:
        logits: Scores, [..., k], floating, no unit; the largest win, of a tie the
            lowest indices.
        size: How many clusters to choose, from 1 to k; static. With 1 it is
            `straight_through`.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced.

    Returns:
        Rows of `size` ones and else zeros, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` is not floating, `tau` not real, `size` no Python integer,
            or forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `size` is out of range;
            `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits = jnp.zeros(3)
        >>> dk.straight_through_top_k(logits, size=2).tolist()
        [1.0, 1.0, 0.0]
        >>> first = lambda z: dk.straight_through_top_k(z, size=2)[0]
        >>> [f"{g:.3f}" for g in jax.grad(first)(logits)]
        ['0.222', '-0.111', '-0.111']

    Source: Ahmed et al. 2023, https://arxiv.org/abs/2210.01941
    """
    logits = as_logits(logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, logits)
    rule = gradient_of(partial(_softened, size))
    return declared(partial(chosen, size=size), rule, logits, None, tau)


def simple(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    size: int,
    tau: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a subset of a size exactly, with the gradient of its marginals: SIMPLE.

    The value is a subset drawn with probability ∏ exp(logits)/e, as in
    `subset_marginals`: cluster by cluster, each in or out given how many are wanted
    still. (`gumbel_top_k` draws by another law.) The gradient in `logits` and `tau` is
    that of `subset_marginals` at `tau`: exact in expectation for costs linear in the
    row at tau = 1, else biased; reverse mode only. That in `noise` is zero.

    Args:
        logits: Unnormalized log-odds, [..., k], floating, no unit; −inf is never drawn.
        noise: Standard Gumbel noise, [..., k], floating, no unit. A cluster is in if
            exp(−noise), an exponential variable, is below −log(1 − p), p its
            probability given those before it.
        size: How many clusters to draw, from 1 to k; static. With 1 it is
            `sampled_straight_through`, that of the largest logits + noise.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced.

    Returns:
        Rows of `size` ones and else zeros, [..., k], in the dtype of `logits`. Where
        fewer logits are above −inf, those that are best.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` not real, `size` no Python
            integer, or forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `size` is out of range; `tau` is not a scalar, or a number and not positive.

    Example:
        >>> noise = jnp.array([-2.0, 3.0, 1.0])
        >>> draw = lambda z: dk.simple(z, noise, size=2)
        >>> draw(jnp.zeros(3)).tolist()
        [0.0, 1.0, 1.0]
        >>> [f"{g:.3f}" for g in jax.grad(lambda z: draw(z)[0])(jnp.zeros(3))]
        ['0.222', '-0.111', '-0.111']

    Source: Ahmed et al. 2023, https://arxiv.org/abs/2210.01941
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, logits, noise)
    rule = gradient_of(partial(_softened, size))
    return declared(partial(drawn_subset, size), rule, logits, noise, tau)


def _softened(
    size: int, logits: jax.Array, noise: jax.Array | None, tau: jax.Array
) -> jax.Array:
    del noise
    return marginals(logits, tau, size)


@partial(jax.jit, static_argnames="size")
def marginals(logits: jax.Array, tau: jax.Array, size: int) -> jax.Array:
    """The rows of `subset_marginals`, in the dtype of tau."""
    scores = scores_of(logits.astype(tau.dtype), tau, size)
    p = jax.grad(lambda z: jnp.sum(log_total(scores._replace(z=z), size)))(scores.z)
    p = jnp.where(scores.certain, 1, p)
    return jnp.where(scores.undefined, jnp.nan, p)


def log_total(scores: Scores, size: int) -> jax.Array:
    """The logarithm of the sum over all choices of what is wanted, [...]."""
    sums = log_sums(scores.z, scores.out, size)[0]
    return jnp.take_along_axis(sums, scores.wanted, axis=-1)[..., 0]


def log_sums(z: jax.Array, out: jax.Array, size: int) -> jax.Array:
    """The logarithms of the elementary symmetric polynomials of exp(z), [k + 1, ...].

    Entry [i, ..., r] is that of the sum over all subsets of r of the clusters from i
    on, but for those that are out; r from 0 to `size`.
    """
    start = jnp.where(jnp.arange(size + 1) == 0, 0.0, -jnp.inf).astype(z.dtype)
    start = jnp.broadcast_to(start, (*z.shape[:-1], size + 1))

    def add(after: jax.Array, cluster: tuple) -> tuple[jax.Array, jax.Array]:
        z, out = cluster
        chosen = jnp.where(out[..., None], -jnp.inf, z[..., None] + after[..., :-1])
        more = log_sum(jnp.stack([after[..., 1:], chosen]), 0)
        before = jnp.concatenate([after[..., :1], more], axis=-1)
        return before, before

    clusters = jnp.moveaxis(z, -1, 0), jnp.moveaxis(out, -1, 0)
    _, sums = lax.scan(add, start, clusters, reverse=True)
    return jnp.concatenate([sums, start[None]])


@partial(jax.jit, static_argnums=0)
def drawn_subset(
    size: int, logits: jax.Array, noise: jax.Array, *rest: object
) -> jax.Array:
    """A subset drawn with the probabilities of `simple`, as rows of the logits."""
    del rest
    if size == 1:
        return chosen(logits, noise)
    dtype = accumulation_dtype(logits, noise)
    z, noise = lax.stop_gradient((logits.astype(dtype), noise.astype(dtype)))
    z = jnp.where(jnp.isneginf(noise), -jnp.inf, z)
    scores = scores_of(z, jnp.ones((), dtype), size)
    sums = log_sums(scores.z, scores.out, size)

    def choose(wanted: jax.Array, cluster: tuple) -> tuple[jax.Array, jax.Array]:
        z, out, e, before, after = cluster
        fewer = jnp.maximum(wanted - 1, 0)
        rest, total = (
            jnp.take_along_axis(a, i[..., None], axis=-1)[..., 0]
            for a, i in ((after, fewer), (before, wanted))
        )
        impossible = out | (wanted == 0) | jnp.isneginf(total)
        p = jnp.exp(jnp.where(impossible, -jnp.inf, z + rest - total))
        # exp(−noise) is an exponential variable, below this with probability p.
        limit = -jnp.log1p(-jnp.minimum(p, 1))
        is_in = (e < limit) | (p >= 1)
        return wanted - is_in.astype(jnp.int32), is_in

    waiting = jnp.exp(-noise)
    by_cluster = [jnp.moveaxis(a, -1, 0) for a in (scores.z, scores.out, waiting)]
    start = scores.wanted[..., 0].astype(jnp.int32)
    _, taken = lax.scan(choose, start, (*by_cluster, sums[:-1], sums[1:]))
    rows = jnp.moveaxis(taken, 0, -1) | scores.certain
    return jnp.where(scores.undefined, best(logits, size), rows.astype(logits.dtype))
