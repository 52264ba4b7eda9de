"""Points and centroids as a pass takes them: in one dtype, filled where void."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._problem import Problem


def prepare(
    problem: Problem, centroids: Tensor, *, with_data: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points [n, d], centroids [k, d], weights [n] and the anchor [1, d] of a pass."""
    c, m = prepare_centroids(problem, centroids, with_data=with_data)
    x, w = prepare_rows(problem.points, problem.weights, m)
    return x, c, w, m


def prepare_centroids(
    problem: Problem, centroids: Tensor, *, with_data: bool = False
) -> tuple[Tensor, Tensor]:
    """Centroids [k, d] and the anchor [1, d] of a pass, in the accumulation dtype.

    What is not finite and must not count is to be filled, and the centroids are, with
    the anchor or, `with_data`, with the heaviest point, then returned in its place.
    """
    points, weights, active = problem.points, problem.weights, problem.active
    c = centroids.to(problem.dtype(centroids))
    m = anchor(c, active)
    c = fill_inactive(c, active, m)
    if with_data and weights is not None:
        m = heaviest(points, weights, m)
    return c, m


def prepare_rows(x: Tensor, weights: Tensor | None, m: Tensor) -> tuple[Tensor, Tensor]:
    """Points [n, d] and weights [n] of a pass or block, in the dtype of its anchor."""
    x = x.to(m.dtype)
    w = x.new_ones(len(x)) if weights is None else weights.to(m.dtype)
    return fill_inert(x, weights, m), w


def anchor(centroids: Tensor, active: Tensor | None) -> Tensor:
    """The active centroid nearest the mean of the active ones, [1, d], detached.

    The origin of scores: a mean itself would break exact ties on integer grids.
    """
    c = centroids.detach()
    on = c.new_ones(len(c), dtype=torch.bool) if active is None else active
    # About one of them, so that far from the origin too rounding does not choose.
    near = c - c.index_select(0, on.int().argmax()[None])
    mean = torch.where(on[:, None], near, 0).sum(0) / on.sum().clamp(min=1)
    away = (near - mean).abs().sum(1)
    index = torch.where(on, away, torch.inf).argmin()
    return c.index_select(0, index[None])


def fill_inactive(c: Tensor, active: Tensor | None, value: Tensor) -> Tensor:
    """Centroids [k, d] with `value` where inactive.

    All NaN if none is active, or if an active one is not finite: an argmin would pass
    over it, and the loss must not look right.
    """
    usable = True
    if active is not None:
        c, usable = torch.where(active[:, None], c, value), active.any()
    return torch.where(usable & c.isfinite().all(), c, torch.nan)


def fill_inert(x: Tensor, weights: Tensor | None, value: Tensor) -> Tensor:
    """Points [n, d] with `value` where x − value is not finite in rows of weight zero.

    Filled before any arithmetic, because 0 · NaN = NaN, in values and in gradients.
    """
    if weights is None:
        return x
    finite = (x - value).isfinite()
    return torch.where(finite | (weights != 0)[:, None], x, value)


def fill_rows(x: Tensor, weights: Tensor, costs: Tensor, value: Tensor) -> Tensor:
    """Points [n, d] with `value` in rows of weight zero whose cost [n] is not finite.

    Other rows stay, so that the derivative in their weight is still the formula's.
    """
    kept = costs.detach().isfinite() | (weights != 0)
    return torch.where(kept[:, None], x, value)


def heaviest(x: Tensor, w: Tensor, m: Tensor) -> Tensor:
    """The point of the largest weight, [1, d], or m where no point has any.

    What stands for rows of weight zero: where a distance has derivatives at the data,
    it has them there, and perhaps not at a centroid.
    """
    i = w.detach().argmax()[None]
    positive = w.detach().index_select(0, i)[:, None] > 0
    return torch.where(positive, x.detach().index_select(0, i).to(m.dtype), m)


def masked(score: Tensor, active: Tensor | None) -> Tensor:
    """Scores [n, k] with −∞ for inactive clusters.

    To be masked last: a later factor would have the derivative 0 · ∞.
    """
    return score if active is None else score.masked_fill(~active, -torch.inf)
