"""Clusters that have had few points, set to rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_active,
    as_points_and_centroids,
    as_scalar,
    check_tensor,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import hinted, shown
from diffkm_torch.fitting._empty import set_rows
from diffkm_torch.fitting._state import State, check_state
from diffkm_torch.optimizers import GradientTransformation, macqueen


@hinted
def reassign(
    points: Tensor,
    state: State,
    index: Tensor,
    *,
    optimizer: GradientTransformation | None = None,
    ratio: float | Tensor = 0.01,
    active: Tensor | None = None,
) -> State:
    """Mirrors `diffkm_jax.reassign`, cluster by cluster."""
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, as of update, got {shown(state)}")
    optimizer = macqueen() if optimizer is None else optimizer
    points, centroids = as_points_and_centroids(points, state.centroids)
    k, half = len(centroids), len(points) // 2
    active = as_active(active, k)
    check_tensor("index", index)
    if index.is_floating_point() or index.ndim != 1 or index.dtype == torch.bool:
        got = f"shape {tuple(index.shape)}, dtype {index.dtype}"
        raise TypeError(f"index must be integers [j], got {got}")
    limit = as_scalar("ratio", ratio, accumulation_dtype(points, centroids), zero=True)
    check_state(state, optimizer)
    counts = next(_counts_in(state.opt_state, k), None)
    if counts is None:
        raise ValueError(
            "optimizer must keep running counts for a reassignment, as macqueen() or "
            "ema()"
        )
    exists = [j for j in range(k) if active is None or bool(active[j])]
    largest = max(counts[j].item() for j in exists)
    low = [j for j in exists if counts[j] < limit * largest and counts[j] < largest]
    lowest = sorted(low, key=lambda j: counts[j].item())[:half]
    chosen = sorted(lowest)[: len(index)]
    if not chosen:
        return state
    least = min(counts[j].item() for j in exists if j not in chosen)
    filled, rows = torch.zeros(k, dtype=torch.bool), centroids.clone()
    for i, j in enumerate(chosen):
        filled[j], rows[j] = True, points[index[i]].to(centroids.dtype)
    return set_rows(
        filled, rows, torch.full_like(counts, least), state, optimizer, active
    )


def _counts_in(opt_state: Any, k: int) -> Iterator[Tensor]:
    """The running counts in the state of an optimizer, each [k]."""
    if not isinstance(opt_state, tuple):
        return
    names = getattr(opt_state, "_fields", ("",) * len(opt_state))
    for name, part in zip(names, opt_state, strict=True):
        if name == "counts" and part.shape == (k,):
            yield part
        yield from _counts_in(part, k)
