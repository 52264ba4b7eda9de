"""Loss, counts and shifts: the mirror of `diffkm_jax.statistics`.

The same contract by another route: the labels are found without gradient, and autograd
does the rest through the gather at the nearest centroid, or through the softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._blocks import block_for, over_points
from diffkm_torch._checks import as_problem, as_scalar
from diffkm_torch._geometry import fill_rows, masked, prepare_centroids, prepare_rows
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import per_count
from diffkm_torch._problem import Problem
from diffkm_torch._products import (
    product,
    product_of_rows,
    rows_of,
    rows_product,
    sums_by_label,
)
from diffkm_torch.assignments._softmax import below_largest
from diffkm_torch.distances import Distance, evaluate, pairwise, squared_euclidean

__all__ = ["Statistics", "assign", "statistics"]


Scores = Callable[[Tensor], Tensor]


class Statistics(NamedTuple):
    """Mirrors `diffkm_jax.Statistics`: loss [], counts [k], shifts [k, d]."""

    loss: Tensor
    counts: Tensor
    shifts: Tensor


@hinted
def statistics(
    points: Tensor,
    centroids: Tensor,
    *,
    weights: Tensor | None = None,
    temperature: float | Tensor | None = None,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Statistics:
    """Mirrors `diffkm_jax.statistics`; `block_size` None chooses it by shape.

    But where it is None on an accelerator, or under torch.compile, all points are taken
    at once.
    """
    problem, centroids = as_problem(
        points,
        centroids,
        distance=squared_euclidean,
        weights=weights,
        active=active,
        temperature=temperature,
        block_size=block_size,
    )
    return statistics_of(problem, centroids)


@hinted
def assign(
    points: Tensor,
    centroids: Tensor,
    *,
    active: Tensor | None = None,
    distance: Distance = squared_euclidean,
    block_size: int | None = None,
) -> Tensor:
    """Mirrors `diffkm_jax.assign`: labels [n], int64, ties to the lowest index."""
    problem, centroids = as_problem(
        points, centroids, distance=distance, active=active, block_size=block_size
    )
    return labels_of(problem, centroids)


def statistics_of(problem: Problem, centroids: Tensor) -> Statistics:
    """The statistics at some centroids; of every distance shifts = −½ ∂loss/∂c."""
    if problem.distance is squared_euclidean:
        return Statistics(*_sums(problem, centroids))

    def loss(c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        loss, counts = _sums(problem, c)
        return loss, (loss, counts)

    # Not autograd.grad, which is silently constant in what torch.compile made.
    gradient, (value, counts) = torch.func.grad(loss, has_aux=True)(centroids)
    return Statistics(value, counts, -0.5 * gradient.to(value.dtype))


def loss_of(problem: Problem, centroids: Tensor) -> Tensor:
    """The loss at some centroids, [], for autograd to differentiate."""
    return _sums(problem, centroids)[0]


def labels_of(problem: Problem, centroids: Tensor) -> Tensor:
    """The nearest centroid of every point, [n], whatever its weight."""
    problem = problem._replace(weights=None)
    with torch.no_grad():
        c, m = prepare_centroids(problem, centroids)
        scores = _scoring(problem, c, m)
        blocks = problem.points.split(_block_size(problem, c))
        return torch.cat([scores(x.to(c.dtype)).max(1).indices for x in blocks])


def full_step(stats: Statistics) -> Tensor:
    """shifts_j / counts_j, [k, d]: to the mean; zero for clusters without weight."""
    return per_count(stats.shifts, stats.counts)


def residual_of(stats: Statistics) -> Tensor:
    """Σ_j ‖shifts_j / counts_j‖² over clusters with weight, []."""
    return (full_step(stats) ** 2).sum()


def _sums(problem: Problem, centroids: Tensor) -> tuple[Tensor, ...]:
    """Loss [] and counts [k]; if squared Euclidean, shifts [k, d] too."""
    squared, temperature = problem.distance is squared_euclidean, problem.temperature
    c, m = prepare_centroids(problem, centroids, with_data=not squared)
    if temperature is not None:
        # Checked here too, because it may be what a schedule returned.
        temperature = as_scalar("temperature", temperature, c.dtype)
        problem = problem._replace(temperature=temperature)
    scores = _scoring(problem, c, m)

    def of_block(x: Tensor, weights: Tensor | None, c: Tensor) -> tuple[Tensor, ...]:
        x, w = prepare_rows(x, weights, m)
        if not squared:
            return _distance_block(problem, x, c, w, m, scores)
        if temperature is None:
            return _hard_block(problem, x, c, w, scores)
        return _soft_block(problem, x, c, w, m)

    sums = over_points(of_block, problem, c, _block_size(problem, c))
    hard = squared and temperature is None
    return _less(problem.remainder, *sums) if hard else sums


def _block_size(problem: Problem, c: Tensor) -> int:
    k, d = c.shape
    squared = problem.distance is squared_euclidean
    # Others than the squared Euclidean distance take [k, d] numbers for each point.
    return block_for(problem, *((k, d) if squared else (1, k * d)))


def _hard_block(
    problem: Problem, x: Tensor, c: Tensor, w: Tensor, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Of residuals e = x − c at the label: Σ w ‖e‖², Σ w and shifts Σ w e by label."""

    def weigh(rows: Tensor) -> Tensor:
        return rows if problem.weights is None else w[:, None] * rows

    labels = scores(x).max(1).indices
    nearest = rows_of(c, labels)
    if problem.weights is not None:
        held = nearest.detach()
        x = fill_rows(x, w, ((x - held) ** 2).sum(1), held)
    e = x - nearest
    counts, shifts = sums_by_label(labels, len(c), w, weigh(e))
    return weigh(e * e).sum(), counts, shifts


def _less(
    remainder: Tensor | None, loss: Tensor, counts: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of a hard pass for residuals e − r, of centroids c + r.

    Σ w (e − r) = Σ w e − n r, and Σ w ‖e − r‖² = Σ w ‖e‖² − r · (2 Σ w e − n r).
    """
    if remainder is None:
        return loss, counts, shifts
    r = remainder.to(shifts.dtype)
    less = shifts - counts[:, None] * r
    # An infinite loss stays one, whatever the shifts are.
    finite = loss - (r * (shifts + less)).sum()
    return torch.where(loss.isfinite(), finite, loss), counts, less


def _soft_block(
    problem: Problem, x: Tensor, c: Tensor, w: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Shifts are Σ_i w_i r_ij (x_i − c_j), r = softmax(−distance / T)."""
    if problem.weights is not None:
        x = fill_rows(x, w, ((x - m) ** 2).sum(1), m)
    y, b = x - m, _about(m, c, problem)
    # −T log Σ_j exp(−‖x − c_j‖² / T), where ‖x − c_j‖² = ‖x − m‖² − score_j
    score = masked(2 * rows_product(y, b) - (b**2).sum(1), problem.active)
    soft_max, r = _soften(score, problem.temperature)
    free = (y**2).sum(1) - soft_max
    wr = w[:, None] * r
    counts = wr.sum(0)
    shifts = product_of_rows(wr, y) - counts[:, None] * b
    return (w * free).sum(), counts, shifts


def _distance_block(
    problem: Problem, x: Tensor, c: Tensor, w: Tensor, fill: Tensor, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Without shifts: what ∂loss/∂c is, autograd knows. `fill` is a point, [1, d]."""
    t, distance = problem.temperature, problem.distance
    if problem.weights is not None:
        x = fill_rows(x, w, scores(x).amax(1), fill)
    if t is None:
        labels = scores(x).max(1).indices
        loss = (w * evaluate(distance, x, rows_of(c, labels))).sum()
        (counts,) = sums_by_label(labels, len(c), w)
        return loss, counts
    costs = pairwise(x, c, distance=distance)
    soft_max, r = _soften(masked(-costs, problem.active), t)
    return -(w * soft_max).sum(), (w[:, None] * r).sum(0)


def _soften(score: Tensor, t: Any) -> tuple[Tensor, Tensor]:
    """T log Σ_j exp(score_j / T), [n], and softmax(score / T), [n, k], however cold."""
    scaled, out = below_largest(score, t, -1000)
    scaled = scaled.masked_fill(out, -torch.inf)
    return score.detach().amax(1) + t * scaled.logsumexp(1), scaled.softmax(1)


def _scoring(problem: Problem, c: Tensor, m: Tensor) -> Scores:
    """The scores [n, k] of points [n, d], without gradient: the nearest's is largest.

    Of the squared Euclidean distance (‖x − m‖² − ‖x − c‖²)/2: centered before it is
    expanded, or float32 loses the labels of data far from 0.
    """
    with torch.no_grad():
        b = _about(m, c, problem)
        half = 0.5 * (b**2).sum(1)

    def scores(x: Tensor) -> Tensor:
        with torch.no_grad():
            if problem.distance is squared_euclidean:
                score = product(x - m, b.mT) - half
            else:
                score = -pairwise(x, c, distance=problem.distance)
            return masked(score, problem.active)

    return scores


def _about(m: Tensor, c: Tensor, problem: Problem) -> Tensor:
    """Where the centroids are from m, [k, d], with what rounding took of them."""
    b, remainder = c - m, problem.remainder
    return b if remainder is None else b + remainder.to(b.dtype)
