"""The static checks: what an argument must be, found while tracing, at no cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._problem import Plan, Problem

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError unless `array` is floating."""
    message = f"{name} must be floating, got dtype {array.dtype}"
    chex.assert_type(array, float, custom_message=message, exception_type=TypeError)


def check_shape(name: str, array: jax.Array, shape: tuple, layout: str) -> None:
    """Raises ValueError unless `array` has `shape`, in which None fits any size."""
    message = f"{name} must be {layout}, got shape {array.shape}"
    chex.assert_shape(array, shape, custom_message=message, exception_type=ValueError)


def as_problem(
    points: ArrayLike,
    centroids: ArrayLike,
    *,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    weights: ArrayLike | None = None,
    active: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> tuple[Plan, Problem, jax.Array]:
    """The arguments of a pass, checked: its static plan, its problem, the centroids."""
    points, centroids = as_points_and_centroids(points, centroids)
    weights = as_weights(weights, points.shape[0])
    active = as_active(active, centroids.shape[0])
    check_callable("distance", distance)
    check_block_size(block_size)
    if temperature is not None:
        check_scalar("temperature", temperature)
        dtype = accumulation_dtype(points, centroids, weights)
        temperature = jnp.asarray(temperature, dtype)
    plan = Plan(distance, block_size, axis_name)
    return plan, Problem(points, weights, active, temperature), centroids


def as_points_and_centroids(
    points: ArrayLike, centroids: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The two as arrays: floating, [n, d] and [k, d], n and k at least 1."""
    points, centroids = as_points(points), jnp.asarray(centroids)
    check_floating("centroids", centroids)
    d = points.shape[1]
    layout = f"[k, d] with d = {d} as in points {points.shape}"
    check_shape("centroids", centroids, (None, d), layout)
    if centroids.shape[0] == 0:
        raise ValueError(
            f"centroids must have at least one row, got shape {centroids.shape}"
        )
    return points, centroids


def as_points(points: ArrayLike) -> jax.Array:
    """The points as an array: floating, [n, d], n at least 1."""
    points = jnp.asarray(points)
    check_floating("points", points)
    check_shape("points", points, (None, None), "[n, d]")
    if points.shape[0] == 0:
        raise ValueError(f"points must have at least one row, got shape {points.shape}")
    return points


def as_weights(weights: ArrayLike | None, n: int) -> jax.Array | None:
    """The weights as an array: None or floating, [n]."""
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    check_floating("weights", weights)
    check_shape("weights", weights, (n,), f"[n] with n = {n}")
    return weights


def as_active(active: ArrayLike | None, k: int) -> jax.Array | None:
    """The mask of clusters as an array: None or bool, [k]."""
    if active is None:
        return None
    active = jnp.asarray(active)
    message = f"active must be bool, got dtype {active.dtype}"
    chex.assert_type(active, bool, custom_message=message, exception_type=TypeError)
    check_shape("active", active, (k,), f"[k] with k = {k}")
    return active


def check_scalar(name: str, value: ArrayLike, *, zero: bool = False) -> None:
    """Raises ValueError unless `value` is a scalar and, if a plain number, positive.

    A JAX array is not read: that would wait for the device. With `zero`, 0 passes.
    """
    if value is None:
        raise ValueError(f"{name} must be a number or a scalar array, got None")
    if np.ndim(value) != 0:
        shape = np.shape(value)
        raise ValueError(f"{name} must be a scalar (rank 0), got shape {shape}")
    if isinstance(value, (int, float, np.number, np.ndarray)):
        number = float(value)
        if not (number > 0 or (zero and number == 0)) or math.isinf(number):
            kind = "finite and not negative" if zero else "finite and positive"
            raise ValueError(f"{name} must be {kind}, got {value}")


def check_integer(
    name: str, value: int, *, minimum: int, maximum: int | None = None, why: str = ""
) -> None:
    """Raises TypeError unless `value` is an int, ValueError unless it is in range."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a Python integer (static), got {kind}")
    if value < minimum or (maximum is not None and value > maximum):
        limit = f"at least {minimum}" + (f" and at most {maximum}" if maximum else "")
        raise ValueError(f"{name} must be {limit}{why}, got {value}")


def check_callable(name: str, function: object) -> None:
    """Raises TypeError unless `function` can be called."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {function!r}")


def check_block_size(block_size: int | None) -> None:
    """Raises unless `block_size` is None or an int of at least 1."""
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)


def as_logits(logits: ArrayLike) -> jax.Array:
    """The logits as an array: floating, [..., k], k at least 1."""
    logits = jnp.asarray(logits)
    check_floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        found = f"got shape {logits.shape}"
        raise ValueError(f"logits must be [..., k] with k at least 1, {found}")
    return logits


def as_scalar(
    name: str, value: ArrayLike, *arrays: jax.Array, zero: bool = False
) -> jax.Array:
    """A checked positive scalar, of the widest dtype of the arrays, or float32."""
    check_scalar(name, value, zero=zero)
    return jnp.asarray(value, accumulation_dtype(*arrays))


def as_noise(
    noise: ArrayLike, logits: jax.Array, *, draws: int | None = None
) -> jax.Array:
    """The noise as an array: floating, the shape of the logits, or a stack of it.

    Args:
        noise: Standard Gumbel noise.
        logits: What it is for, [..., k].
        draws: None for noise [..., k]; a number for noise [m, ..., k] of at least that
            many draws.
    """
    noise = jnp.asarray(noise)
    check_floating("noise", noise)
    if draws is None:
        layout = f"of the shape of logits {logits.shape} (one row of an estimator's)"
        check_shape("noise", noise, logits.shape, layout)
    else:
        least = f"m at least {draws}, over logits {logits.shape}"
        check_shape("noise", noise, (None, *logits.shape), f"[m, ..., k], {least}")
        if len(noise) < draws:
            raise ValueError(f"noise must be [m, ..., k], {least}, got {noise.shape}")
    return noise
