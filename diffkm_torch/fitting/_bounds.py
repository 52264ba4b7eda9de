"""The sizes that clusters may have, checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_real, check_shape

Sizes = float | Tensor | None


class Bounds(NamedTuple):
    """The least and the largest size of every cluster, [k] each, `high` may be ∞."""

    low: Tensor
    high: Tensor


def as_bounds(
    min_size: Sizes,
    max_size: Sizes,
    weights: Tensor | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    hard: bool,
) -> Bounds:
    """The bounds of n points and k clusters; raises where they cannot be met."""
    n, k = shape
    if hard and min_size is None and max_size is None:
        min_size = 1
    total = float(n)
    if weights is not None:
        counted = weights.detach().double()
        if hard and not bool(((counted == 0) | (counted == 1)).all()):
            bad = counted[(counted != 0) & (counted != 1)][0]
            raise ValueError(
                "weights must be 0 or 1 where sizes are numbers of points, got "
                f"{float(bad)}: other weights need a temperature"
            )
        total = float(counted.sum())
    low = _as_sizes("min_size", 0.0 if min_size is None else min_size, k, dtype)
    high = _as_sizes("max_size", torch.inf if max_size is None else max_size, k, dtype)
    for name, sizes in (("min_size", low), ("max_size", high)):
        _check_sizes(name, sizes.detach().double(), total, hard=hard)
    if bool((low > high).any()):
        j = int((low > high).int().argmax())
        raise ValueError(
            f"min_size must be at most max_size, got {float(low[j])} and "
            f"{float(high[j])} of cluster {j}"
        )
    return Bounds(low, high)


def _as_sizes(name: str, value: float | Tensor, k: int, dtype: torch.dtype) -> Tensor:
    if isinstance(value, int | float):
        return torch.full((k,), float(value), dtype=dtype)
    sizes = as_real(name, value)
    if sizes.ndim:
        check_shape(name, sizes, (k,), f"a scalar or [k] with k = {k}")
    return sizes.to(dtype).expand(k)


def _check_sizes(name: str, sizes: Tensor, total: float, *, hard: bool) -> None:
    """Raises ValueError unless sizes alone could be those of clusters."""
    if not bool((sizes >= 0).all()):
        raise ValueError(f"{name} must not be negative, got {float(sizes.min())}")
    finite = sizes[sizes.isfinite()]
    broken = finite[finite != finite.round()]
    if hard and len(broken):
        raise ValueError(
            f"{name} must be a number of points, got {float(broken[0])}: other sizes "
            "need a temperature"
        )
    # Sizes of weights are sums that were rounded.
    slack, found = 0 if hard else 1e-5 * total, float(sizes.sum())
    of = f"{total:g} ({'the points' if hard else 'the sum of weights'})"
    if name == "min_size" and not found <= total + slack:
        raise ValueError(f"{name} must add up to at most {of}, got {found:g}")
    if name == "max_size" and not found >= total - slack:
        raise ValueError(f"{name} must add up to at least {of}, got {found:g}")
