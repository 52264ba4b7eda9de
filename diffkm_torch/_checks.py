"""The static checks, under the names that `diffkm_jax._checks` gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from diffkm_torch._problem import Problem


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless `tensor` is a floating tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating, got dtype {tensor.dtype}")


def check_shape(name: str, tensor: Tensor, shape: tuple, layout: str) -> None:
    """Raises ValueError unless `tensor` has `shape`, in which None fits any size."""
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(
        want is None or want == size for want, size in zip(shape, found, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must be {layout}, got shape {found}")


def as_problem(
    points: Tensor,
    centroids: Tensor,
    *,
    distance: Callable[[Tensor, Tensor], Tensor],
    weights: Tensor | None = None,
    active: Tensor | None = None,
    temperature: float | Tensor | None = None,
    block_size: int | None = None,
) -> Problem:
    """The arguments of a pass over points, checked: the problem they are."""
    points, centroids = as_points_and_centroids(points, centroids)
    weights = as_weights(weights, len(points))
    active = as_active(active, len(centroids))
    check_callable("distance", distance)
    check_block_size(block_size)
    if temperature is not None:
        check_scalar("temperature", temperature)
    return Problem(points, weights, active, temperature, distance, block_size)


def as_points_and_centroids(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The two, checked: floating, [n, d] and [k, d], n and k at least 1."""
    check_floating("points", points)
    check_floating("centroids", centroids)
    check_shape("points", points, (None, None), "[n, d]")
    d = points.shape[1]
    layout = f"[k, d] with d = {d} as in points {tuple(points.shape)}"
    check_shape("centroids", centroids, (None, d), layout)
    for name, tensor in (("points", points), ("centroids", centroids)):
        if tensor.shape[0] == 0:
            shape = tuple(tensor.shape)
            raise ValueError(f"{name} must have at least one row, got shape {shape}")
    return points, centroids


def as_weights(weights: Tensor | None, n: int) -> Tensor | None:
    """The weights, checked: None or floating, [n]."""
    if weights is not None:
        check_floating("weights", weights)
        check_shape("weights", weights, (n,), f"[n] with n = {n}")
    return weights


def as_active(active: Tensor | None, k: int) -> Tensor | None:
    """The mask of clusters, checked: None or bool, [k]."""
    if active is not None:
        if active.dtype != torch.bool:
            raise TypeError(f"active must be bool, got dtype {active.dtype}")
        check_shape("active", active, (k,), f"[k] with k = {k}")
    return active


def check_scalar(name: str, value: float | Tensor, *, zero: bool = False) -> None:
    """Raises ValueError unless `value` is a scalar and, if a plain number, positive.

    A tensor is not read: that would wait for the device. With `zero`, 0 passes.
    """
    if value is None:
        raise ValueError(f"{name} must be a number or a scalar array, got None")
    shape = tuple(getattr(value, "shape", ()))
    if shape:
        raise ValueError(f"{name} must be a scalar (rank 0), got shape {shape}")
    if not isinstance(value, Tensor):
        number = float(value)
        if not (number > 0 or (zero and number == 0)) or math.isinf(number):
            kind = "finite and not negative" if zero else "finite and positive"
            raise ValueError(f"{name} must be {kind}, got {value}")


def check_integer(name: str, value: int, *, minimum: int) -> None:
    """Raises TypeError unless `value` is an int, ValueError unless it is in range."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a Python integer (static), got {kind}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_callable(name: str, function: object) -> None:
    """Raises TypeError unless `function` can be called."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {function!r}")


def check_block_size(block_size: int | None) -> None:
    """Raises unless `block_size` is None or an int of at least 1."""
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)


def as_logits(logits: Tensor) -> Tensor:
    """The logits, checked: floating, [..., k], k at least 1."""
    check_floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        found = f"got shape {tuple(logits.shape)}"
        raise ValueError(f"logits must be [..., k] with k at least 1, {found}")
    return logits


def as_scalar(
    name: str, value: float | Tensor, dtype: torch.dtype, *, zero: bool = False
) -> Tensor:
    """A checked positive scalar as a tensor of `dtype`, with its gradient."""
    check_scalar(name, value, zero=zero)
    return torch.as_tensor(value, dtype=dtype)


def as_noise(noise: Tensor, logits: Tensor, *, draws: int | None = None) -> Tensor:
    """The noise, checked: floating, the shape of the logits, or a stack of it.

    With `draws` it is [m, ..., k], of at least that many draws.
    """
    check_floating("noise", noise)
    shape = tuple(logits.shape)
    if draws is None:
        layout = f"of the shape of logits {shape} (one row of an estimator's)"
        check_shape("noise", noise, shape, layout)
    else:
        least = f"m at least {draws}, over logits {shape}"
        check_shape("noise", noise, (None, *shape), f"[m, ..., k], {least}")
        if len(noise) < draws:
            found = tuple(noise.shape)
            raise ValueError(f"noise must be [m, ..., k], {least}, got {found}")
    return noise
