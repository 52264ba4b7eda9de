"""Whether the noise of an estimator matters only through the draws it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, check_integer, check_key
from diffkm_jax._hints import hinted
from diffkm_jax.assignments import hard
from diffkm_jax.diagnostics._estimates import estimate
from diffkm_jax.estimators._estimator import (
    Cost,
    Estimator,
    check_estimator,
    checked_cost,
)

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
    the same argmax(logits + noise[i]), in value and gradient. That is what the flag
    `discrete` of a record claims, and what `evaluate` relies on: a wrong flag would
    make it report no variance. Passing for one cost and a few samples is no proof. The
    result has no gradient.

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
    logits, cost = as_logits(logits), checked_cost(f)

    def same(i: jax.Array) -> jax.Array:
        noise = estimator.draw(jax.random.fold_in(key, i), logits.shape, logits.dtype)
        drawn = hard(logits.astype(noise.dtype)[None] + noise)
        bare = jnp.where(drawn > 0, 0, -jnp.inf).astype(noise.dtype)
        pairs = zip(
            estimate(estimator, cost, logits, noise),
            estimate(estimator, cost, logits, bare),
            strict=True,
        )
        return jnp.stack([_close(a, b) for a, b in pairs]).all()

    return lax.map(same, jnp.arange(num_samples)).all()


def _close(a: jax.Array, b: jax.Array) -> jax.Array:
    limit = 1000 * jnp.finfo(a.dtype).eps * jnp.max(jnp.abs(a))
    return (jnp.abs(a - b) <= limit).all()
