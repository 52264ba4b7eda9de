"""Binary variables: Bernoulli log-odds, and estimators by antithetic draws of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

import diffkm_jax.assignments as maps
from diffkm_jax._checks import as_logits, check_callable, check_integer
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.estimators._attach import attach
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._enumeration import probabilities
from diffkm_jax.estimators._estimator import Estimator, HashablePartial
from diffkm_jax.estimators._score_function import score, weighted, wide

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def bernoulli(
    f: Callable[[jax.Array], jax.Array], log_odds: Float[ArrayLike, "*shape"]
) -> tuple[Cost, Float[Array, "*shape 2"]]:
    """A cost of binary variables and their log-odds, as every estimator takes them.

    The rows are of two clusters, one and zero, and the cost sees the first entry of
    each: 0 or 1 at a draw, between them where an estimator relaxes it. Exact in both
    directions: the gradient in `log_odds` is that of the first column of the logits.

    Args:
        f: Cost, from values [*batch, *variables] to costs [*batch], in any unit.
        log_odds: log(P(1)/P(0)) of every variable, [*batch, *variables], floating, no
            unit.

    Returns:
        The cost of rows [*batch, *variables, 2], equal for an equal `f`, and logits
        [*batch, *variables, 2], `log_odds` and 0.

    Raises:
        TypeError: `f` is no function, or `log_odds` is not floating.
        ValueError: `log_odds` is a scalar: one variable is of shape [1].

    Example:
        >>> def mean(log_odds):
        ...     cost, logits = es.bernoulli(lambda b: jnp.sum(b), log_odds)
        ...     return es.exact().expect(cost, logits)
        >>> jax.grad(mean)(jnp.zeros(3)).tolist()  # p (1 − p)
        [0.25, 0.25, 0.25]

    Source: Maddison, Mnih & Teh 2017 (binary Concrete variables),
        https://arxiv.org/abs/1611.00712
    """
    check_callable("f", f)
    log_odds = as_logits(log_odds, name="log_odds")
    logits = jnp.stack([log_odds, jnp.zeros_like(log_odds)], axis=-1)
    return HashablePartial(_of_ones, f), logits


def _of_ones(f: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    return f(rows[..., 0])


def arm() -> Estimator:
    """Two antithetic draws of binary variables, weighed by their noise: ARM.

    For k = 2. With D and D' the draws of the noise and of the noise with its two
    entries swapped, and u = sigmoid(noise_0 − noise_1) uniform, the gradient is
    (f(D) − f(D')) (u − 1/2) in the first logit and minus that in the second: unbiased
    for any cost, at a larger variance than `disarm`, which integrates u out. The value
    is the mean of the two costs, unbiased.

    Returns:
        An `Estimator`: logits [..., 2], noise [1, ..., 2], costs [*batch], in the unit
        of the cost.

    Raises:
        ValueError: When it is used: the logits have k other than 2: for Bernoulli
            variables there is `bernoulli`.

    Example:
        >>> def first(z):  # The draw is the first cluster, the other one the second.
        ...     return es.arm().expect(lambda row: row[0], z, jnp.array([[9.0, 0.0]]))
        >>> [f"{g:.2f}" for g in jax.grad(first)(jnp.zeros(2))]
        ['0.50', '-0.50']

    Source: Yin & Zhou 2019, https://arxiv.org/abs/1807.11143
    """
    return Estimator("arm", _arm, {})


def _arm(f: Cost, logits: jax.Array, noise: jax.Array) -> jax.Array:
    p = _binary("arm", logits)
    draws = chosen(logits, noise[0]), chosen(logits, noise[0, ..., ::-1])
    first, second = noise[0, ..., :1], noise[0, ..., 1:]
    # Equal ones that are infinite would make a NaN.
    apart = jnp.where(first == second, 0, first - second)
    u = jax.nn.sigmoid(apart).astype(p.dtype)
    direction = jnp.concatenate([u - 0.5, 0.5 - u], axis=-1)
    return _of_pair(f, logits, draws, direction)


def disarm() -> Estimator:
    """Two antithetic draws of binary variables, their noise integrated out: DisARM.

    For k = 2. With D and D' the draws of the noise and of the noise with its two
    entries swapped, the gradient is (f(D) − f(D'))/2 · max(p) · (D − D'), row by row:
    unbiased for any cost. The value is the mean of the two costs, unbiased.

    Returns:
        An `Estimator`: logits [..., 2], noise [1, ..., 2], costs [*batch], in the unit
        of the cost.

    Raises:
        ValueError: When it is used: the logits have k other than 2: for Bernoulli
            variables there is `bernoulli`.

    Example:
        >>> record, logits = es.disarm(), jnp.zeros(2)
        >>> noise = record.draw(jax.random.key(0), logits.shape)
        >>> cost = lambda z: record.expect(lambda row: row[1], z, noise)
        >>> [a.tolist() for a in jax.value_and_grad(cost)(logits)]  # At any noise.
        [0.5, [-0.25, 0.25]]

    Source: Dong, Mnih & Tucker 2020, https://arxiv.org/abs/2006.10680
    """
    return Estimator("disarm", _disarm, {})


def _disarm(f: Cost, logits: jax.Array, noise: jax.Array) -> jax.Array:
    p = _binary("disarm", logits)
    draws = chosen(logits, noise[0]), chosen(logits, noise[0, ..., ::-1])
    larger = jnp.sum(maps.hard(p) * p, axis=-1, keepdims=True)
    direction = 0.5 * larger * (draws[0] - draws[1]).astype(p.dtype)
    return _of_pair(f, logits, draws, direction)


def arms(*, num_samples: int = 4) -> Estimator:
    """Antithetic draws of binary variables, several at a time: ARMS.

    For k = 2. The n draws of a variable come of a Dirichlet copula, so that any two are
    as unlike as n can be. The gradient is leave-one-out REINFORCE divided by 1 − ρ,
    their correlation, row by row: Σ_i (f(D_i) − m) (D_i − p)/((n − 1) (1 − ρ)), m the
    mean cost: unbiased for any cost; `disarm` for n = 2. The value is m, unbiased.

    Args:
        num_samples: Draws n, at least 2; static.

    Returns:
        An `Estimator`: logits [..., 2], noise [n, ..., 2], costs [*batch], in the unit
        of the cost. Of the noise the first column counts.

    Raises:
        TypeError: `num_samples` is no integer.
        ValueError: `num_samples` is below 2; when it is used: the logits have k other
            than 2: for Bernoulli variables there is `bernoulli`.

    Example:
        >>> key, logits = jax.random.key(0), jnp.array([0.5, 0.0])
        >>> records = [es.arms(num_samples=4), es.rloo(num_samples=4)]
        >>> reports = dk.evaluate(key, lambda row: row[0], logits, records)
        >>> bool(reports[0].total_variance < 0.5 * reports[1].total_variance)
        True

    Source: Dimitriev & Zhou 2021, https://arxiv.org/abs/2105.14141
    """
    check_integer("num_samples", num_samples, minimum=2)
    return Estimator("arms", _arms, {}, num_draws=num_samples)


def _arms(f: Cost, logits: jax.Array, noise: jax.Array) -> jax.Array:
    p = _binary("arms", logits)
    n = len(noise)
    large = float(jnp.finfo(noise.dtype).max) / 4
    # Of exponential variables, exp(−noise): shares of them are Dirichlet's.
    first = jnp.clip(noise[..., 0], -large, large).astype(p.dtype)
    shares = jax.nn.softmax(-first, axis=0)
    # Of the rarer value: it is drawn where its uniform, (1 − share)^(n − 1), is below.
    rare = jnp.min(p, axis=-1)
    root = jnp.exp(jnp.log(rare) / (n - 1))
    is_rare = 1 - shares < root[None]
    first_is_rare = (p[..., 0] <= p[..., 1])[None]
    is_first = is_rare == first_is_rare
    draws = jnp.stack([is_first, ~is_first], axis=-1).astype(logits.dtype)
    # P(both rare)/P(rare), of the copula.
    both = jnp.maximum(2 - 1 / jnp.where(root > 0, root, 0.5), 0) ** (n - 1)
    correction = (1 - rare) / (1 - both)
    found = jax.vmap(f)(draws)
    costs = wide(found)
    mean = jnp.mean(costs, axis=0)
    signal = (costs - mean[None]) / (n - 1)
    scores = jax.vmap(lambda row: score(logits, row))(draws)
    estimate = jnp.sum(weighted(signal, scores), axis=0) * correction[..., None]
    estimate = jnp.where(jnp.isneginf(logits), 0, estimate)
    return attach(mean.astype(found.dtype), logits, estimate)


def _binary(name: str, logits: jax.Array) -> jax.Array:
    """The probabilities, [..., 2]."""
    if logits.shape[-1] != 2:
        raise ValueError(
            f"logits must be [..., 2] for {name}, got shape {logits.shape}: those of "
            "Bernoulli variables are made by bernoulli(f, log_odds)"
        )
    return probabilities(logits)


def _of_pair(
    f: Cost,
    logits: jax.Array,
    draws: tuple[jax.Array, jax.Array],
    direction: jax.Array,
) -> jax.Array:
    """The mean cost of two draws, with the gradient (f(D) − f(D')) direction."""
    found = f(draws[0])
    costs, others = wide(found), wide(f(draws[1]))
    direction = jnp.where(jnp.isneginf(logits), 0, direction)
    gradient = weighted(costs - others, direction)
    return attach((0.5 * (costs + others)).astype(found.dtype), logits, gradient)
