"""Perturbation estimators: the choice less the choice at logits of a lower cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._perturbed import to_target
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.estimators._attach import attach
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._estimator import Estimator, HashablePartial, setting
from diffkm_jax.estimators._laws import PLACKETT_LUCE, as_law

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def blackbox(*, strength: ArrayLike = 1.0) -> Estimator:
    """Black-box differentiation of the best cluster, without noise.

    The gradient is (y(logits) − y(logits − strength·g))/strength with g the gradient of
    each cost in the rows: biased, mostly zero, without variance. Unlike the map it
    takes g at a unit cotangent, so that a weight or a mean over the batch scales it and
    changes nothing else. The value is the cost at the argmax, no estimate of E f(D).

    Args:
        strength: Positive scalar λ, in the unit of the logits per unit of cost; may be
            traced.

    Returns:
        An `Estimator` without noise, discrete: logits [..., k] to costs [*batch].

    Raises:
        ValueError: `strength` is not a scalar, or a number and not positive.

    Example:
        >>> record = es.blackbox(strength=2.0)
        >>> def mean(z):
        ...     return jnp.mean(record.expect(lambda rows: rows[:, 0], z))
        >>> jax.grad(mean)(jnp.array([[1.0, 0.0], [9.0, 0.0]])).tolist()  # 0.5 / 2
        [[0.25, -0.25], [0.0, 0.0]]

    Source: Vlastelica et al. 2020, https://arxiv.org/abs/1912.02175
    """
    settings = {"strength": setting("strength", strength)}
    return Estimator("blackbox", _blackbox, settings, num_draws=0, discrete=True)


def _blackbox(
    f: Cost, logits: jax.Array, noise: jax.Array, *, strength: jax.Array
) -> jax.Array:
    del noise
    return _to_target(f, logits, None, strength, scaled=True)


def implicit_mle(
    *, strength: ArrayLike = 1.0, scaled: bool = False, size: int = 1
) -> Estimator:
    """Implicit maximum likelihood: the difference to a draw that costs less.

    The gradient is y(logits) − y(logits − strength·g), both under the noise of the draw
    and g the gradient of each cost in the rows, divided by `strength` if `scaled`:
    biased. Unlike the map it takes g at a unit cotangent, so that a weight or a mean
    over the batch scales it and changes nothing else. The value is the cost at the
    draw, unbiased.

    Args:
        strength: Positive scalar λ, in the unit of the logits per unit of cost; may be
            traced.
        scaled: Whether to divide by `strength`.
        size: How many clusters a draw has, the largest of logits + noise, at least 1;
            static.

    Returns:
        An `Estimator`: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        TypeError: `size` is no integer.
        ValueError: `strength` is not a scalar, or a number and not positive; `size` is
            below 1, or when it is used more than k.

    Example:
        >>> record, noise = es.implicit_mle(strength=2.0), jnp.array([[1.0, 0.0]])
        >>> def weighted(z):
        ...     return 0.25 * record.expect(lambda row: row[0], z, noise)
        >>> jax.grad(weighted)(jnp.zeros(2)).tolist()  # The map would give zero.
        [0.25, -0.25]

    Source: Niepert, Minervini & Franceschi 2021, https://arxiv.org/abs/2106.01798
    """
    settings = {"strength": setting("strength", strength)}
    of = as_law(size, PLACKETT_LUCE)
    rule = HashablePartial(_implicit_mle, scaled=bool(scaled), size=size)
    name = "implicit_mle_scaled" if scaled else "implicit_mle"
    return Estimator(name, rule, settings, 1, False, *of)


def _implicit_mle(
    f: Cost, logits: jax.Array, noise: jax.Array, *, strength: jax.Array, **static: Any
) -> jax.Array:
    return _to_target(f, logits, noise[0], strength, **static)


def _to_target(
    f: Cost,
    logits: jax.Array,
    noise: jax.Array | None,
    strength: jax.Array,
    *,
    scaled: bool,
    size: int = 1,
) -> jax.Array:
    costs, pullback = jax.vjp(f, chosen(logits, noise, size=size))
    (g,) = pullback(jnp.ones_like(costs))
    dtype = accumulation_dtype(logits, noise)
    given = logits, noise, strength.astype(dtype), g
    gradient = to_target(*given, scaled=scaled, size=size)
    return attach(costs, logits, gradient)
