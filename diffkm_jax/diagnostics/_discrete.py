"""Whether the noise of an estimator matters only through the draws it makes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import check_integer, check_key
from diffkm_jax._hints import hinted
from diffkm_jax.assignments import hard
from diffkm_jax.diagnostics._draws import bare
from diffkm_jax.diagnostics._estimates import estimate
from diffkm_jax.diagnostics._settings import split_settings, with_settings
from diffkm_jax.estimators._cost import Cost, TracedCost, traced_cost
from diffkm_jax.estimators._estimator import (
    Estimator,
    as_choices,
    check_estimator,
    draw_gumbel,
    law_of,
)
from diffkm_jax.estimators._laws import Law

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float


@hinted
def is_discrete(
    key: jax.Array,
    f: Cost,
    logits: Float[ArrayLike, "*batch_rows k"],
    estimator: Estimator,
    *,
    num_samples: int = 16,
) -> Bool[Array, ""]:
    """Whether an estimator's noise matters only through the draws it makes.

    Compares estimates under random noise with those under noise that says nothing but
    the same argmax(logits + noise[i]), or the same subset, in value and gradient. That
    is what the flag `discrete` of a record claims, and what `evaluate` relies on and
    tests on one draw: a wrong flag would make it report no variance. Passing for one
    cost and a few samples is no proof. The result has no gradient.

    Args:
        key: A random key.
        f: Cost, as in `evaluate`; one that is not linear tells most.
        logits: Unnormalized log-probabilities, [*batch, *rows, k], floating, no unit.
        estimator: The `Estimator` to test, whatever its flag.
        num_samples: Estimates to compare, at least 1, static.

    Returns:
        A boolean, []; for an estimator without noise, true.

    Raises:
        TypeError: As `evaluate`.
        ValueError: `num_samples` is below 1, or as `Estimator.expect`.

    Example:
        >>> problem = jax.random.key(0), lambda row: row[0] ** 2, jnp.zeros(3)
        >>> records = es.reinmax(), es.gumbel_softmax(hard=True)
        >>> [bool(dk.is_discrete(*problem, record)) for record in records]
        [True, False]

    Source: Maddison, Tarlow & Minka 2014 (draws as an argmax of Gumbel noise),
        https://arxiv.org/abs/1411.0030
    """
    check_key(key)
    check_estimator(estimator)
    check_integer("num_samples", num_samples, minimum=1)
    logits = as_choices(logits)
    settings, kind = split_settings(estimator)
    cost = traced_cost(f, logits)
    return _all_discrete(kind, num_samples, key, cost, logits, settings)


@partial(jax.jit, static_argnums=(0, 1))
def _all_discrete(
    kind: Any,
    num_samples: int,
    key: jax.Array,
    cost: TracedCost,
    logits: jax.Array,
    settings: list,
) -> jax.Array:
    record = with_settings(kind, settings)

    def same(i: jax.Array) -> jax.Array:
        return is_discrete_at(jax.random.fold_in(key, i), cost, logits, record)

    return lax.map(same, jnp.arange(num_samples)).all()


def is_discrete_at(
    key: jax.Array, cost: TracedCost, logits: jax.Array, record: Estimator
) -> jax.Array:
    """Whether random noise, and noise of the same argmax alone, estimate the same."""
    law = law_of(record, logits)
    noise = probes_of(key, logits, record.num_draws, law)
    return alike(jax.vmap(lambda g: estimate(record, cost, logits, g))(noise))


def probes_of(key: jax.Array, logits: jax.Array, num_draws: int, law: Law) -> jax.Array:
    """Random noise, and noise that says no more than its draws, [2, num_draws, ...]."""
    noise = draw_gumbel(key, num_draws, logits.shape, logits.dtype)
    wider = logits.astype(noise.dtype)
    if law.size == 1:
        drawn = hard(wider[None] + noise)
    else:
        drawn = jax.vmap(partial(law.draw, wider))(noise)
    if jnp.finfo(logits.dtype).bits < 32:
        # A rule may add in so few bits that the best would be tied.
        noise = noise + drawn
    return jnp.stack([noise, bare(drawn, law)])


def alike(found: Any) -> jax.Array:
    """Whether both entries of every array, [2, ...], are the same but for rounding."""
    return jnp.stack([_close(*pair) for pair in found]).all()


def _close(a: jax.Array, b: jax.Array) -> jax.Array:
    size = jnp.max(jnp.abs(a), where=jnp.isfinite(a), initial=0)
    limit = 1000 * jnp.finfo(a.dtype).eps * size
    same = (a == b) | (jnp.isnan(a) & jnp.isnan(b))
    return (same | (jnp.abs(a - b) <= limit)).all()
