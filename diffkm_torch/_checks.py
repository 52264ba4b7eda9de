"""The static checks, under the names that `diffkm_jax._checks` gives them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import no_tensor, shown
from diffkm_torch._problem import Problem

SCALAR = "a number or a scalar array"


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless `tensor` is a dense tensor."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a tensor, got {no_tensor(name, tensor)}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless `tensor` is a floating tensor."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating, got dtype {tensor.dtype}")


def as_real(name: str, tensor: Tensor) -> Tensor:
    """The tensor, checked: floating; of integers or bools, in the default dtype."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point() and not tensor.is_complex():
        return tensor.to(torch.get_default_dtype())
    check_floating(name, tensor)
    return tensor


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
) -> tuple[Problem, Tensor]:
    """The arguments of a pass over points, checked: its problem, the centroids."""
    points, centroids = as_points_and_centroids(points, centroids)
    weights = as_weights(weights, len(points))
    active = as_active(active, len(centroids))
    check_callable("distance", distance, 2)
    check_block_size(block_size)
    if temperature is not None:
        dtype = accumulation_dtype(points, centroids, weights)
        check_scalar("temperature", temperature, dtype)
    problem = Problem(points, weights, active, temperature, distance, block_size)
    return problem, centroids


def as_points_and_centroids(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The two, checked: floating, [n, d] and [k, d], n and k at least 1."""
    points, centroids = as_real("points", points), as_real("centroids", centroids)
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
    if weights is None:
        return None
    weights = as_real("weights", weights)
    check_shape("weights", weights, (n,), f"[n] with n = {n}")
    return weights


def as_rows(
    points: Tensor, weights: Tensor | None, centroids: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Points [n, d] and weights [n], checked, their leading axes made one."""
    points = as_real("points", points)
    shape, d = tuple(points.shape), centroids.shape[1]
    if shape[-1:] != (d,):
        layout = f"[..., d] with d = {d} as in centroids {tuple(centroids.shape)}"
        raise ValueError(f"points must be {layout}, got shape {shape}")
    return flattened(points, weights)


def flattened(points: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Points [n, d] and weights [n] of [..., d] and [...], checked."""
    points = as_real("points", points)
    shape = tuple(points.shape)
    if not shape:
        raise ValueError(f"points must be [..., d], got shape {shape}")
    n = math.prod(shape[:-1])
    if n == 0:
        raise ValueError(f"points must have at least one row, got shape {shape}")
    if weights is not None:
        weights = as_real("weights", weights)
        check_shape("weights", weights, shape[:-1], f"[...] as points {shape}")
        weights = weights.reshape(-1)
    return points.reshape(n, shape[-1]), weights


def as_active(active: Tensor | None, k: int) -> Tensor | None:
    """The mask of clusters, checked: None or bool, [k]."""
    if active is not None:
        check_tensor("active", active)
        if active.dtype != torch.bool:
            raise TypeError(f"active must be bool, got dtype {active.dtype}")
        check_shape("active", active, (k,), f"[k] with k = {k}")
    return active


def check_given(name: str, value: object) -> None:
    """Raises ValueError where a number has no default and got None."""
    if value is None:
        raise ValueError(f"{name} must be {SCALAR}, got None")


def check_scalar(
    name: str, value: float | Tensor, dtype: torch.dtype, *, zero: bool = False
) -> None:
    """Raises unless `value` is a real scalar and, if a plain number, positive.

    In `dtype`, that is, and a normal number there: processors may flush the others to
    0. A tensor is not read: that would wait for the device. With `zero`, 0 passes.
    """
    check_given(name, value)
    if callable(value):
        raise TypeError(
            f"{name} must be {SCALAR}, got {shown(value)}: a schedule is for fit and "
            f"update; elsewhere call it, {name}=schedule(step), or pass result.{name}"
        )
    shape = tuple(getattr(value, "shape", ()))
    if shape:
        raise ValueError(f"{name} must be a scalar (rank 0), got shape {shape}")
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name} must be real, got dtype {value.dtype}")
        return
    number: Any = value
    if hasattr(value, "item"):
        number = number.item()
    if not isinstance(number, int | float):
        raise TypeError(f"{name} must be {SCALAR}, got {shown(value)}")
    check_range(name, number, dtype, zero=zero)


def check_range(name: str, number: float, dtype: torch.dtype, *, zero: bool) -> None:
    """Raises ValueError unless a number is positive, finite and normal in `dtype`."""
    least, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    if least <= number <= most or (zero and 0 <= number <= most):
        return
    kind = "finite and not negative" if zero else "finite and positive"
    if 0 < number < math.inf:
        kind += f" in {str(dtype).removeprefix('torch.')}, from {least} to {most}"
    raise ValueError(f"{name} must be {kind}, got {number}")


def check_integer(
    name: str, value: int, *, minimum: int, maximum: int | None = None
) -> None:
    """Raises TypeError unless `value` is an int, ValueError unless it is in range."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a Python integer (static), got {kind}")
    if value < minimum or (maximum is not None and value > maximum):
        limit = f"at least {minimum}" + (f" and at most {maximum}" if maximum else "")
        raise ValueError(f"{name} must be {limit}, got {value}")


def check_callable(name: str, function: object, num_arrays: int | None = None) -> None:
    """Raises TypeError unless `function` can be called, with so many tensors alone."""
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
            f"{name} must be a function of {num_arrays} tensor"
            f"{'s' * (num_arrays > 1)}, got {shown(function)}({needed}): call it "
            "first, or fix its other arguments by functools.partial"
        ) from None


def check_block_size(block_size: int | None) -> None:
    """Raises unless `block_size` is None or an int of at least 1."""
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)


def as_logits(logits: Tensor, name: str = "logits") -> Tensor:
    """The logits, checked: floating, [..., k], k at least 1."""
    check_floating(name, logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        found = f"got shape {tuple(logits.shape)}"
        raise ValueError(f"{name} must be [..., k] with k at least 1, {found}")
    return logits


def as_scalar(
    name: str, value: float | Tensor, dtype: torch.dtype, *, zero: bool = False
) -> Tensor:
    """A checked positive scalar as a tensor of `dtype`, with its gradient."""
    check_scalar(name, value, dtype, zero=zero)
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
