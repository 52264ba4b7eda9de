"""Finite scalar quantization: every coordinate rounded to one of a few levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_real, check_integer, check_tensor
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import hinted, shown
from diffkm_torch.quantizers._quantize import straight_through_vector

# How much of the outermost half steps the bound leaves out.
MARGIN = 1e-3


class ScalarQuantized(NamedTuple):
    """Mirrors `diffkm_jax.ScalarQuantized`: values and labels."""

    values: Tensor
    labels: Tensor


@hinted
def finite_scalar_quantize(points: Tensor, *, levels: Sequence[int]) -> ScalarQuantized:
    """Mirrors `diffkm_jax.finite_scalar_quantize`: rounded straight-through."""
    levels = _as_levels(levels)
    points = as_real("points", points)
    if points.ndim == 0 or points.shape[-1] != len(levels):
        layout = f"[..., d] with d = {len(levels)} as levels {levels}"
        raise ValueError(f"points must be {layout}, got shape {tuple(points.shape)}")
    dtype, device = accumulation_dtype(points), points.device
    number = torch.tensor(levels, device=device)
    half = (number.double() - 1) * (1 - MARGIN) / 2
    offset = torch.where(number % 2 == 0, 0.5, 0.0).double()
    shift = (offset / half).tan()
    half, offset, shift = (a.to(dtype) for a in (half, offset, shift))
    bounded = half * (points.to(dtype) + shift).tanh() - offset
    rounded = bounded.detach().round()
    width = number // 2
    values = straight_through_vector(bounded / width, _as_values(rounded, width))
    digits = torch.where(rounded.isnan(), 0, rounded + width).long()
    labels = (digits * _places(levels, device)).sum(-1)
    return ScalarQuantized(values.to(points.dtype), labels)


@hinted
def finite_scalar_values(
    labels: Tensor, *, levels: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """Mirrors `diffkm_jax.finite_scalar_values`: the digits of labels, as values."""
    levels = _as_levels(levels)
    labels, found = as_labels(labels), as_float_dtype(dtype)
    number = torch.tensor(levels, device=labels.device)
    width = number // 2
    steps = labels[..., None] // _places(levels, labels.device) % number - width
    wide = accumulation_dtype(torch.zeros((), dtype=found))
    return _as_values(steps.to(wide), width).to(found)


def _as_values(steps: Tensor, width: Tensor) -> Tensor:
    """Whole steps from the middle as values from −1 to 1, rounded as in JAX."""
    inverse = width.double().reciprocal().to(steps.dtype)
    return torch.where(steps.abs() == width, steps.sign(), steps * inverse)


def as_labels(labels: Tensor) -> Tensor:
    """The labels, checked: integers, as int64."""
    check_tensor("labels", labels)
    kind = labels.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise TypeError(f"labels must be integers, got dtype {kind}")
    return labels.long()


def as_float_dtype(dtype: Any) -> torch.dtype:
    """The dtype, checked: floating; the default float for None."""
    found = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise TypeError(f"dtype must be floating, got {shown(found)}")
    return found


def _as_levels(levels: Any) -> tuple[int, ...]:
    if not isinstance(levels, Sequence) or isinstance(levels, str):
        found = shown(levels)
        raise TypeError(f"levels must be a tuple of integers (static), got {found}")
    for level in levels:
        check_integer("levels", level, minimum=2)
    levels = tuple(map(int, levels))
    if not levels or math.prod(levels) > 2**31:
        limit = "one level or more, of at most 2³¹ combinations"
        raise ValueError(f"levels must be {limit}, got {levels}")
    return levels


def _places(levels: tuple[int, ...], device: torch.device) -> Tensor:
    """What a step of each coordinate adds to the label."""
    places = [math.prod(levels[:i]) for i in range(len(levels))]
    return torch.tensor(places, device=device)
