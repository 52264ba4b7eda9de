"""NSVQ and DiVeQ: points moved as far as their quantization error is long."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffkm_torch._checks import (
    as_problem,
    as_real,
    as_scalar,
    check_floating,
    check_shape,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import polar
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.quantizers._quantize import Method, Quantized, as_rows, encode


@hinted
def nsvq(
    points: Tensor,
    centroids: Tensor,
    noise: Tensor,
    *,
    distance: Distance = squared_euclidean,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Mirrors `diffkm_jax.nsvq`: x + ‖x − q‖ v/‖v‖, with gradient to x and q."""
    return _moved(
        lambda noise, error: noise,
        points,
        centroids,
        noise,
        distance=distance,
        weights=weights,
        active=active,
        block_size=block_size,
    )


@hinted
def diveq(
    points: Tensor,
    centroids: Tensor,
    noise: Tensor,
    *,
    scale: float | Tensor = 0.03,
    distance: Distance = squared_euclidean,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Mirrors `diffkm_jax.diveq`, by x + ‖x − q‖ v/‖v‖, the last factor detached."""
    dtype = accumulation_dtype(
        as_real("points", points), as_real("centroids", centroids)
    )
    factor = as_scalar("scale", scale, dtype, zero=True)
    return _moved(
        lambda noise, error: (factor.to(error.dtype) * noise - error).detach(),
        points,
        centroids,
        noise,
        distance=distance,
        weights=weights,
        active=active,
        block_size=block_size,
    )


def _moved(
    direction: Method,
    points: Tensor,
    centroids: Tensor,
    noise: Tensor,
    *,
    weights: Tensor | None,
    **options: Any,
) -> Quantized:
    """Points moved by ‖x − q‖ along a direction: of the noise and the error x − q."""
    rows, of_rows, shape = as_rows(points, weights, centroids)
    problem, centroids = as_problem(rows, centroids, weights=of_rows, **options)
    check_floating("noise", noise)
    check_shape("noise", noise, shape, f"[..., d] as points {shape}")
    x, nearest, labels, *others = encode(problem, centroids, None)
    x, error = x.reshape(shape), (x - nearest).reshape(shape)
    scale, length, _ = polar(error)
    values = x + scale * length * polar(direction(noise.to(x.dtype), error))[2]
    values = values.to(problem.points.dtype)
    return Quantized(values, labels.reshape(shape[:-1]), *others)
