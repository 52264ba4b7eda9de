"""The settings of an estimator by descent on its own variance."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._checks import check_integer, check_key
from diffkm_jax._hints import hinted, shown
from diffkm_jax.diagnostics._settings import ARRAYS, split_settings, with_settings
from diffkm_jax.estimators._cost import Cost, TracedCost, traced_cost
from diffkm_jax.estimators._estimator import (
    RANGES,
    Estimator,
    as_choices,
    check_estimator,
)

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Float

DEFAULT = optax.adam(0.05)
# Of what is positive, in float32, as logits may be.
LIMITS = jnp.finfo(jnp.float32)


@hinted
def tune(
    key: jax.Array,
    f: Cost,
    logits: Float[ArrayLike, "*batch_rows k"],
    estimator: Estimator,
    *,
    num_steps: int = 200,
    num_samples: int = 32,
    optimizer: optax.GradientTransformation | None = None,
) -> Estimator:
    """Sets what an estimator leaves open to what makes its variance small.

    Descends on the mean square of the estimates, summed over all problems: of an
    unbiased estimator it is the variance but for a constant, whatever the settings, and
    its gradient in them, of a few samples, is unbiased. So for `rebar` (tau and eta),
    `relax` (its parameters), `rodeo` (its weights) and the baseline of `reinforce`. Of
    a biased one the smallest estimates are not the best. Where logits or costs change
    with training, take one step at a time: a few steps from the record of before.

    The gradient through it is zero: the settings returned are constants.

    Args:
        key: A random key.
        f: Cost, as in `evaluate`; it need not have few draws.
        logits: Unnormalized log-probabilities, [*batch, *rows, k], floating, no unit.
        estimator: The `Estimator` to start from.
        num_steps: Steps, static.
        num_samples: Estimates of a step, at least 1, static.
        optimizer: Any optax transformation, static by identity; None is
            `optax.adam(0.05)`. It moves the logarithm of what must be positive, as tau,
            and no weight below 0 that must not be.

    Returns:
        The `Estimator`, of logits [*batch, *rows, k], with other numbers, of the same
        shapes, dtypes and units.

    Raises:
        TypeError: As `evaluate`, or `optimizer` is none.
        ValueError: A number is out of range, the estimator has no floating settings or
            no noise, or as `Estimator.expect`.

    Example:
        >>> key, logits = jax.random.key(0), jnp.array([1.0, 0.0, -1.0])
        >>> f = lambda row: (row @ jnp.array([1.0, 2.0, 4.0])) ** 2
        >>> tuned = dk.tune(key, f, logits, es.rebar(), num_steps=100)
        >>> reports = dk.evaluate(key, f, logits, [es.rebar(), tuned])
        >>> bool(reports[1].total_variance < 0.8 * reports[0].total_variance)
        True

    Source: Tucker et al. 2017, https://arxiv.org/abs/1703.07370; Grathwohl et al. 2018,
        https://arxiv.org/abs/1711.00123
    """
    check_key(key)
    check_estimator(estimator)
    check_integer("num_steps", num_steps, minimum=0)
    check_integer("num_samples", num_samples, minimum=1)
    if optimizer is None:
        optimizer = DEFAULT
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be one of optax's, got {shown(optimizer)}")
    logits = as_choices(logits)
    if not _floating(estimator) or not estimator.num_draws:
        raise ValueError(
            f"estimator must have noise, and floating settings to tune, got "
            f"{estimator.name}"
        )
    cost = traced_cost(f, logits)
    arrays, kind = split_settings(estimator)
    found = _tuned(kind, optimizer, num_steps, num_samples, key, cost, logits, arrays)
    return replace(estimator, settings={**estimator.settings, **found})


def _floating(record: Estimator) -> dict[str, Any]:
    """The settings of a record that are floating, as arrays."""

    def is_floating(value: Any) -> bool:
        is_array = isinstance(value, ARRAYS)
        return is_array and jnp.issubdtype(jnp.result_type(value), jnp.floating)

    return {
        name: jax.tree.map(jnp.asarray, value)
        for name, value in record.settings.items()
        if (leaves := jax.tree.leaves(value)) and all(map(is_floating, leaves))
    }


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _tuned(
    kind: Any,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    num_samples: int,
    key: jax.Array,
    cost: TracedCost,
    logits: jax.Array,
    arrays: list,
) -> dict:
    given = with_settings(kind, arrays)
    settings = _floating(given)
    # Held, so that the derivative in the settings is the only one.
    logits = lax.stop_gradient(logits)

    def mean_square(free: dict, step: jax.Array) -> jax.Array:
        record = replace(given, settings=given.settings | _bound(free))

        def square(i: jax.Array) -> jax.Array:
            noise_key = jax.random.fold_in(jax.random.fold_in(key, step), i)
            noise = record.draw(noise_key, logits.shape, logits.dtype)
            total = partial(_total, record, cost, noise)
            return jnp.sum(jax.grad(total)(logits) ** 2)

        return jnp.mean(jax.vmap(square)(jnp.arange(num_samples)))

    def step(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
        free, state = carry
        gradient = jax.grad(mean_square)(free, i)
        # Many of optax's add integers to floats, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, free)
            moved = optax.apply_updates(free, updates)
        # Neither a step that is not finite nor one out of range.
        safe = jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(a), a, b), moved, free)
        kept = {n: jnp.maximum(a, 0) if RANGES.get(n) else a for n, a in safe.items()}
        return (kept, state), None

    free = {n: jnp.log(a) if RANGES.get(n) is False else a for n, a in settings.items()}
    start = free, optimizer.init(free)
    (free, _), _ = lax.scan(step, start, jnp.arange(num_steps))
    return lax.stop_gradient(_bound(free))


def _bound(free: dict) -> dict:
    """The settings of numbers that an optimizer may move freely."""
    least, most = (float(x) for x in (LIMITS.tiny, LIMITS.max))

    def bound(a: jax.Array) -> jax.Array:
        return jnp.clip(jnp.exp(a), least, most)

    return {n: bound(a) if RANGES.get(n) is False else a for n, a in free.items()}


def _total(
    record: Estimator, cost: TracedCost, noise: jax.Array, logits: jax.Array
) -> jax.Array:
    return jnp.sum(record.expect(cost, logits, noise))
