"""Loss, counts and shifts: the mirror of `diffkm_jax.statistics`.

The same contract by another route: the labels are found without gradient, and autograd
does the rest through the gather at the nearest centroid, or through the softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import (
    accumulation_dtype,
    as_active,
    as_points_and_centroids,
    as_scalar,
    as_weights,
    check_block_size,
    check_callable,
)
from diffkm_torch._products import product
from diffkm_torch.distances import Distance, pairwise, squared_euclidean

__all__ = ["Statistics", "assign", "statistics"]


class Statistics(NamedTuple):
    """Mirrors `diffkm_jax.Statistics`: loss [], counts [k], shifts [k, d]."""

    loss: Tensor
    counts: Tensor
    shifts: Tensor


def statistics(
    points: Tensor,
    centroids: Tensor,
    *,
    weights: Tensor | None = None,
    temperature: float | Tensor | None = None,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Statistics:
    """Mirrors `diffkm_jax.statistics`; `block_size` None takes all points at once."""
    x, c, w, active = prepared(points, centroids, weights, active)
    check_block_size(block_size)
    if temperature is not None:
        temperature = as_scalar("temperature", temperature, x.dtype)
    m = anchor(c, active)
    size = block_size or len(x)
    parts = [
        _block(rows, c, mass, temperature, active, m)
        for rows, mass in zip(x.split(size), w.split(size), strict=True)
    ]
    fields = zip(*parts, strict=True)
    return Statistics(*(torch.stack(field).sum(0) for field in fields))


def _block(
    x: Tensor,
    c: Tensor,
    w: Tensor,
    temperature: Tensor | None,
    active: Tensor | None,
    m: Tensor,
) -> Statistics:
    score = scores(x, c, m)
    if temperature is None:
        labels = masked(score.detach(), active).argmax(1)
        e = x - c[labels]
        loss = (w * (e * e).sum(1)).sum()
        counts = x.new_zeros(len(c)).index_add(0, labels, w)
        shifts = torch.zeros_like(c).index_add(0, labels, w[:, None] * e)
        return Statistics(loss, counts, shifts)
    score = masked(score * (2 / temperature), active)
    free = ((x - m) ** 2).sum(1) - temperature * score.logsumexp(1)
    wr = w[:, None] * score.softmax(1)
    counts = wr.sum(0)
    shifts = product(wr.T, x - m) - counts[:, None] * (c - m)
    return Statistics((w * free).sum(), counts, shifts)


def assign(
    points: Tensor,
    centroids: Tensor,
    *,
    active: Tensor | None = None,
    distance: Distance = squared_euclidean,
    block_size: int | None = None,
) -> Tensor:
    """Mirrors `diffkm_jax.assign`: labels [n], int64, ties to the lowest index."""
    x, c, _, active = prepared(points, centroids, None, active)
    check_callable("distance", distance)
    check_block_size(block_size)
    labels = []
    with torch.no_grad():
        m = anchor(c, active)
        for rows in x.split(block_size or len(x)):
            if distance is squared_euclidean:
                score = scores(rows, c, m)
            else:
                score = -pairwise(rows, c, distance=distance)
            labels.append(masked(score, active).argmax(1))
    return torch.cat(labels)


def prepared(
    points: Tensor, centroids: Tensor, weights: Tensor | None, active: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The arguments checked, in the accumulation dtype, and without what is inert.

    Inert is what is not finite in a row of weight zero, and an inactive centroid.
    """
    x, c = as_points_and_centroids(points, centroids)
    w, active = as_weights(weights, len(x)), as_active(active, len(c))
    dtype = accumulation_dtype(x, c, w)
    x, c = x.to(dtype), c.to(dtype)
    m = anchor(c, active)
    if active is not None:
        c = torch.where(active[:, None], c, m)
        c = torch.where(active.any(), c, torch.nan)
    c = torch.where(c.isfinite().all(), c, torch.nan)
    if w is None:
        return x, c, x.new_ones(len(x)), active
    x = torch.where(x.isfinite() | (w != 0)[:, None], x, m)
    return x, c, w.to(dtype), active


def anchor(centroids: Tensor, active: Tensor | None) -> Tensor:
    """The active centroid nearest the mean of the active ones, [1, d], detached."""
    c = centroids.detach()
    on = torch.ones_like(c[:, 0], dtype=torch.bool) if active is None else active
    mean = torch.where(on[:, None], c, 0).sum(0) / on.sum().clamp(min=1)
    away = (c - mean).abs().sum(1)
    index = torch.where(on, away, torch.inf).argmin()
    return c.index_select(0, index[None])


def scores(x: Tensor, c: Tensor, m: Tensor) -> Tensor:
    """(‖x − m‖² − ‖x − c‖²)/2 about m, [n, k]: the nearest is the largest."""
    return product(x - m, (c - m).T) - 0.5 * ((c - m) ** 2).sum(1)


def masked(score: Tensor, active: Tensor | None) -> Tensor:
    """Scores [n, k] with −∞ for inactive clusters."""
    return score if active is None else score.masked_fill(~active, -torch.inf)
