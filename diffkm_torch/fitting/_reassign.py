"""Clusters that have had few points, set to rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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
from diffkm_torch._problem import Problem
from diffkm_torch.fitting._empty import set_rows
from diffkm_torch.fitting._state import State, check_state, retracted
from diffkm_torch.optimizers import GradientTransformation, macqueen


class Rule(NamedTuple):
    """Which clusters are to be set: below `ratio` of the largest count, or a count."""

    ratio: Tensor | None = None
    min_count: Tensor | None = None


@hinted
def reassign(
    points: Tensor,
    state: State,
    index: Tensor,
    *,
    optimizer: GradientTransformation | None = None,
    ratio: float | Tensor = 0.01,
    min_count: float | Tensor | None = None,
    active: Tensor | None = None,
) -> State:
    """Mirrors `diffkm_jax.reassign`: clusters of few points, set to rows of a batch."""
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, as of update, got {shown(state)}")
    optimizer = macqueen() if optimizer is None else optimizer
    points, centroids = as_points_and_centroids(points, state.centroids)
    active = as_active(active, len(centroids))
    index = as_index(index)
    dtype = accumulation_dtype(points, centroids)
    rule = Rule(as_scalar("ratio", ratio, dtype, zero=True))
    if min_count is not None:
        rule = Rule(min_count=as_scalar("min_count", min_count, dtype, zero=True))
    check_state(state, optimizer)
    finite = points.isfinite().all(1)
    index, number = usable_first(index, finite, len(centroids))
    rows = points.masked_fill(~finite[:, None], 0)[index]
    half = torch.as_tensor(len(points) // 2, device=points.device)
    return reassigned(optimizer, state, rows, rule, active, half, number)


def as_index(index: Tensor) -> Tensor:
    """The rows of a batch, checked: integers, [j]."""
    check_tensor("index", index)
    if index.is_floating_point() or index.ndim != 1 or index.dtype == torch.bool:
        got = f"shape {tuple(index.shape)}, dtype {index.dtype}"
        raise TypeError(f"index must be integers [j], got {got}")
    return index


def usable_first(index: Tensor, usable: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k rows of an index, and how many of all are usable: those are first.

    The others are as if there were none.
    """
    last = ~usable[index]
    first = index[last.to(torch.uint8).argsort(stable=True)[:k]]
    return first, (~last).sum()


def reassigned(
    optimizer: GradientTransformation,
    state: State,
    rows: Tensor,
    rule: Rule,
    active: Tensor | None,
    limit: Tensor,
    usable: Tensor,
) -> State:
    """The state with at most `limit` clusters set to the first usable rows, [j, d].

    Without a number of Python's, so that nothing waits for the device.
    """
    k, counts = len(state.centroids), counts_of(state)
    exists = torch.ones_like(counts, dtype=torch.bool) if active is None else active
    if rule.min_count is None:
        assert rule.ratio is not None
        largest = torch.where(exists, counts, 0).amax()
        low = (counts < rule.ratio.to(counts) * largest) & (counts < largest) & exists
    else:
        low = (counts < rule.min_count.to(counts)) & exists
    order = torch.where(low, counts, torch.inf).argsort(stable=True)
    places = torch.arange(k, device=counts.device)
    low = low & torch.zeros_like(low).scatter(0, order, places < limit)
    which = low.cumsum(0) - 1
    low = low & (which < usable)
    if len(rows) == 0:
        return state
    if rule.min_count is None:
        begin = torch.where(exists & ~low, counts, torch.inf).amin()
    else:
        begin = 2 * rule.min_count.to(counts)
    rows = rows[which.clamp(0, len(rows) - 1)]
    weights = begin.expand(k)
    return set_rows(low, rows, weights, state, optimizer, active)


def restarted(
    optimizer: GradientTransformation,
    problem: Problem,
    state: State,
    min_count: Tensor,
    index: Tensor,
) -> State:
    """A state with clusters set to rows of a batch by an index."""
    usable = problem.points.new_ones(len(problem.points), dtype=torch.bool)
    if problem.weights is not None:
        usable = problem.weights > 0
    chosen, number = usable_first(index, usable, len(state.centroids))
    new = reassigned(
        optimizer,
        state,
        problem.points[chosen],
        Rule(min_count=min_count),
        problem.active,
        usable.sum() // 2,
        number,
    )
    return retracted_where_set(problem, new, state)


def retracted_where_set(problem: Problem, state: State, old: State) -> State:
    """The state with the rows that were set where those of its distance are."""
    is_set = (state.centroids != old.centroids).any(1)[:, None]
    state = retracted(problem, state, old)
    c = torch.where(is_set, state.centroids, old.centroids)
    return state._replace(centroids=c)


def counts_of(state: State) -> Tensor:
    """The running counts in the state of an optimizer, [k]."""
    counts = next(_counts_in(state.opt_state, len(state.centroids)), None)
    if counts is None:
        raise ValueError(
            "optimizer must keep running counts for a reassignment, as macqueen() or "
            "ema()"
        )
    return counts


def _counts_in(opt_state: Any, k: int) -> Iterator[Tensor]:
    """The running counts in the state of an optimizer, each [k]."""
    if not isinstance(opt_state, tuple):
        return
    names = getattr(opt_state, "_fields", ("",) * len(opt_state))
    for name, part in zip(names, opt_state, strict=True):
        if name == "counts" and part.shape == (k,):
            yield part
        yield from _counts_in(part, k)
