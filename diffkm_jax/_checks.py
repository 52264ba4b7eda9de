"""The static checks: what an argument must be, found while tracing, at no cost."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import is_key, library_of, no_array, shown

if TYPE_CHECKING:
    from jax.typing import ArrayLike


REAL = jnp.floating, jnp.integer, jnp.bool_
SCALAR = "a number or a scalar array"


def _check(assertion: Callable, array: jax.Array, want: Any, error: Exception) -> None:
    """Raises the error, and not chex's, where an assertion of chex fails."""
    try:
        assertion(array, want)
    except AssertionError:
        raise error from None


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError unless `array` is floating."""
    error = TypeError(f"{name} must be floating, got dtype {array.dtype}")
    _check(chex.assert_type, array, float, error)


def check_shape(name: str, array: jax.Array, shape: tuple, layout: str) -> None:
    """Raises ValueError unless `array` has `shape`, in which None fits any size."""
    error = ValueError(f"{name} must be {layout}, got shape {array.shape}")
    _check(chex.assert_shape, array, shape, error)


def is_real(dtype: Any) -> bool:
    """Whether a dtype is of real numbers."""
    return any(jnp.issubdtype(dtype, kind) for kind in REAL)


def as_array(
    name: str,
    value: ArrayLike,
    *,
    what: str = "an array of real numbers",
    dtype: Any = None,
) -> jax.Array:
    """The value as an array."""
    try:
        if isinstance(value, str):
            raise TypeError  # JAX takes some words for a dtype.
        return jnp.asarray(value, dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and library_of(value) != "torch":
            raise
        why = f" ({error})" if type(value) in (list, tuple) else ""
        got = no_array(name, value) + why
        raise TypeError(f"{name} must be {what}, got {got}") from None


def as_floating(name: str, value: ArrayLike) -> jax.Array:
    """The value as an array that is floating."""
    array = as_array(name, value)
    check_floating(name, array)
    return array


def as_real(name: str, value: ArrayLike) -> jax.Array:
    """The value as an array: floating; of integers or bools, the default float."""
    array = as_array(name, value)
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool:
        return array.astype(jnp.result_type(float))
    check_floating(name, array)
    return array


def as_tree(distance: Callable[..., jax.Array]) -> Any:
    """A distance as a tree: arrays are its leaves, a plain function has none.

    Functions count by identity then, and trees by what they are made of.
    """
    leaves = jax.tree.leaves(distance)
    if all(isinstance(a, jax.Array | np.ndarray) for a in leaves):
        return distance
    return jax.tree_util.Partial(distance)


def as_points_and_centroids(
    points: ArrayLike, centroids: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The two as arrays: floating, [n, d] and [k, d], n and k at least 1."""
    points = as_points(points)
    d = points.shape[1]
    layout = f"[k, d] with d = {d} as in points {points.shape}"
    return points, as_centroids(centroids, d, layout)


def as_centroids(
    centroids: ArrayLike, d: int | None = None, layout: str = "[k, d]"
) -> jax.Array:
    """The centroids as an array: floating, [k, d], k at least 1."""
    centroids = as_real("centroids", centroids)
    if centroids.ndim == 0:
        raise ValueError(
            "centroids must be [k, d], got one number: to draw k of the points, "
            "kmeans_plus_plus(key, points, k); to fit them too, fit_restarts"
        )
    check_shape("centroids", centroids, (None, d), layout)
    if centroids.shape[0] == 0:
        raise ValueError(
            f"centroids must have at least one row, got shape {centroids.shape}"
        )
    return centroids


def as_points(points: ArrayLike) -> jax.Array:
    """The points as an array: floating, [n, d], n at least 1."""
    points = as_real("points", points)
    check_shape("points", points, (None, None), "[n, d]")
    if points.shape[0] == 0:
        raise ValueError(f"points must have at least one row, got shape {points.shape}")
    return points


def as_weights(weights: ArrayLike | None, n: int) -> jax.Array | None:
    """The weights as an array: None or floating, [n]."""
    if weights is None:
        return None
    weights = as_real("weights", weights)
    check_shape("weights", weights, (n,), f"[n] with n = {n}")
    return weights


def as_active(active: ArrayLike | None, k: int) -> jax.Array | None:
    """The mask of clusters as an array: None or bool, [k]."""
    if active is None:
        return None
    active = as_array("active", active)
    error = TypeError(f"active must be bool, got dtype {active.dtype}")
    _check(chex.assert_type, active, bool, error)
    check_shape("active", active, (k,), f"[k] with k = {k}")
    return active


def check_given(name: str, value: object) -> None:
    """Raises ValueError where a number has no default and got None."""
    if value is None:
        raise ValueError(f"{name} must be {SCALAR}, got None")


def check_scalar(
    name: str, value: ArrayLike, dtype: Any, *, zero: bool = False
) -> None:
    """Raises unless `value` is a real scalar and, if a plain number, positive.

    In `dtype`, that is, and a normal number there: processors flush the others to 0. A
    JAX array is not read: that would wait for the device. With `zero`, 0 passes.
    """
    check_given(name, value)
    if callable(value):
        raise TypeError(
            f"{name} must be {SCALAR}, got {shown(value)}: a schedule is for fit and "
            f"update; elsewhere call it, {name}=schedule(step), or pass result.{name}"
        )
    if not hasattr(value, "shape") and not isinstance(value, int | float):
        value = as_array(name, value, what=SCALAR)
    shape = tuple(np.shape(value))
    if shape:
        raise ValueError(f"{name} must be a scalar (rank 0), got shape {shape}")
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    if is_array and not is_real(value.dtype):
        raise TypeError(f"{name} must be real, got dtype {value.dtype}")
    number: Any = value.item() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(number, int | float):
        check_range(name, number, dtype, zero=zero)


def check_range(name: str, number: float, dtype: Any, *, zero: bool) -> None:
    """Raises ValueError unless a number is positive, finite and normal in `dtype`."""
    least, most = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    if least <= number <= most or (zero and 0 <= number <= most):
        return
    kind = "finite and not negative" if zero else "finite and positive"
    if 0 < number < math.inf:
        kind += f" in {np.dtype(dtype)}, from {least} to {most}"
    raise ValueError(f"{name} must be {kind}, got {number}")


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


def check_callable(name: str, function: object, num_arrays: int | None = None) -> None:
    """Raises TypeError unless `function` can be called, with so many arrays alone."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {shown(function)}")
    code = getattr(function, "__code__", None)
    if code is None or num_arrays is None:
        return
    if (code.co_argcount, code.co_kwonlyargcount) == (num_arrays, 0):
        return  # The others take longer to look at.
    signature = inspect.signature(function)
    try:
        signature.bind(*[None] * num_arrays)
    except TypeError:
        all_of_it = signature.parameters.values()
        needed = ", ".join(p.name for p in all_of_it if p.default is p.empty)
        raise TypeError(
            f"{name} must be a function of {num_arrays} array"
            f"{'s' * (num_arrays > 1)}, got {shown(function)}({needed}): call it "
            "first, or fix its other arguments by functools.partial"
        ) from None


def check_block_size(block_size: int | None) -> None:
    """Raises unless `block_size` is None or an int of at least 1."""
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)


def check_key(key: Any) -> None:
    """Raises TypeError unless `key` is a random key, typed or raw."""
    if not is_key(key):
        seed = key if isinstance(key, int) else 0
        raise TypeError(
            "key must be a random key, and the first argument, as "
            f"jax.random.key({seed}); got {shown(key)}"
        )


def as_logits(logits: ArrayLike, name: str = "logits") -> jax.Array:
    """The logits as an array: floating, [..., k], k at least 1."""
    logits = as_floating(name, logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        found = f"got shape {logits.shape}"
        raise ValueError(f"{name} must be [..., k] with k at least 1, {found}")
    return logits


def as_scalar(
    name: str, value: ArrayLike, *arrays: jax.Array | None, zero: bool = False
) -> jax.Array:
    """A checked positive scalar, of the widest dtype of the arrays, or float32."""
    dtype = accumulation_dtype(*arrays)
    check_scalar(name, value, dtype, zero=zero)
    return as_array(name, value, what=SCALAR, dtype=dtype)


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
    noise = as_floating("noise", noise)
    if draws is None:
        layout = f"of the shape of logits {logits.shape} (one row of an estimator's)"
        check_shape("noise", noise, logits.shape, layout)
    else:
        least = f"m at least {draws}, over logits {logits.shape}"
        check_shape("noise", noise, (None, *logits.shape), f"[m, ..., k], {least}")
        if len(noise) < draws:
            raise ValueError(f"noise must be [m, ..., k], {least}, got {noise.shape}")
    return noise
