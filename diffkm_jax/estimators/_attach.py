"""Costs with an estimate as their gradient in the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from diffkm_jax._checks import as_floating, as_logits, check_shape
from diffkm_jax.assignments._declared import declared

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def attach(
    costs: Float[Array, "*batch"],
    logits: Float[ArrayLike, "*batch_rows k"],
    gradient: Float[Array, "*batch_rows k"],
) -> Float[Array, "*batch"]:
    """Costs with a declared gradient in the logits: what a score-function rule returns.

    The value is `costs`. The derivative in `logits` is `gradient`, in `costs` it is 1,
    in `gradient` none; reverse mode only. A second derivative is that of `gradient`
    itself, in all that it was computed from: so the variance of an estimate can be
    minimized over its settings.

    Args:
        costs: Costs, [*batch], floating, in any unit.
        logits: The logits, [*batch, *rows, k], floating, no unit.
        gradient: The estimate of the gradient of each cost, [*batch, *rows, k],
            floating, in the unit of the costs.

    Returns:
        Costs, [*batch], in their dtype.

    Raises:
        TypeError: An array is not floating.
        ValueError: `gradient` has not the shape of `logits`, or that of `costs` is no
            prefix of it.

    Example:
        >>> def cost(z):
        ...     return es.attach(jnp.array(3.0), z, jnp.array([1.0, -1.0]))
        >>> [a.tolist() for a in jax.value_and_grad(cost)(jnp.zeros(2))]
        [3.0, [1.0, -1.0]]

    Source: Schulman et al. 2015 (stochastic computation graphs),
        https://arxiv.org/abs/1506.05254
    """
    logits = as_logits(logits)
    costs, gradient = as_floating("costs", costs), as_floating("gradient", gradient)
    layout = f"of the shape of logits {logits.shape}"
    check_shape("gradient", gradient, logits.shape, layout)
    prefix = logits.shape[: min(costs.ndim, logits.ndim - 1)]
    check_shape("costs", costs, prefix, f"a prefix {prefix} of logits {logits.shape}")
    # Cast here, so that the product with a cotangent is rounded once.
    logits = logits.astype(gradient.dtype)
    return declared(_costs, _estimate, costs, logits, gradient)


def _costs(costs: jax.Array, logits: jax.Array, gradient: jax.Array) -> jax.Array:
    del logits, gradient
    return costs


def _estimate(
    cotangent: jax.Array, costs: jax.Array, logits: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    del costs, logits
    weight = over_rows(cotangent, gradient).astype(gradient.dtype)
    return cotangent, weight * gradient, None


def over_rows(
    costs: Float[Array, "*batch"], rows: Float[Array, "*batch_rows k"]
) -> Float[Array, ...]:
    """Costs with an axis of length 1 for each that they lack of their rows.

    So that a number per problem multiplies its rows, in a rule of one's own. The
    gradient is exact, in both modes and at every order.

    Args:
        costs: Numbers, [*batch], in any unit.
        rows: What they are for, [*batch, *rows, k], of no unit: only its shape counts.

    Returns:
        The costs, [*batch, 1, ...], in their dtype.

    Raises:
        ValueError: An axis of `costs` is neither that of `rows` nor of length 1.

    Example:
        >>> es.over_rows(jnp.ones(4), jnp.ones((4, 2, 3))).shape
        (4, 1, 1)

    Source: Schulman et al. 2015 (stochastic computation graphs),
        https://arxiv.org/abs/1506.05254
    """
    pairs = list(zip(costs.shape, rows.shape, strict=False))
    if costs.ndim > rows.ndim or any(size not in (1, full) for size, full in pairs):
        raise ValueError(
            f"costs must have the first axes of rows {rows.shape}, or 1 in their "
            f"place, got shape {costs.shape}"
        )
    return costs.reshape(costs.shape + (1,) * (rows.ndim - costs.ndim))
