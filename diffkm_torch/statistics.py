"""Loss, counts and shifts: the mirror of `diffkm_jax.statistics`.

The same contract by another route: the labels are found without gradient, and autograd
does the rest through the gather at the nearest centroid, or through the softmax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_problem, as_scalar
from diffkm_torch._geometry import fill_rows, masked, prepare
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import per_count
from diffkm_torch._problem import Problem
from diffkm_torch._products import (
    product_of_rows,
    rows_of,
    rows_product,
    sum_by_label,
)
from diffkm_torch.assignments._softmax import below_largest
from diffkm_torch.distances import Distance, pairwise, squared_euclidean
from diffkm_torch.distances._pairwise import evaluate

__all__ = ["Statistics", "assign", "statistics"]


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
    """Mirrors `diffkm_jax.statistics`; `block_size` None takes all points at once."""
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
    labels = []
    with torch.no_grad():
        x, c, _, m = prepare(problem._replace(weights=None), centroids)
        for rows in x.split(problem.block_size or len(x)):
            if problem.distance is squared_euclidean:
                score = _scores(rows, _about(m, c, problem), m)
            else:
                score = -pairwise(rows, c, distance=problem.distance)
            labels.append(masked(score, problem.active).argmax(1))
    return torch.cat(labels)


def full_step(stats: Statistics) -> Tensor:
    """shifts_j / counts_j, [k, d]: to the mean; zero for clusters without weight."""
    return per_count(stats.shifts, stats.counts)


def residual_of(stats: Statistics) -> Tensor:
    """Σ_j ‖shifts_j / counts_j‖² over clusters with weight, []."""
    return (full_step(stats) ** 2).sum()


def _sums(problem: Problem, centroids: Tensor) -> tuple[Tensor, ...]:
    """Loss [] and counts [k]; if squared Euclidean, shifts [k, d] too."""
    squared = problem.distance is squared_euclidean
    block = _squared_euclidean_block if squared else _distance_block
    x, c, w, m = prepare(problem, centroids, with_data=not squared)
    temperature = problem.temperature
    if temperature is not None:
        # Checked here too, because it may be what a schedule returned.
        temperature = as_scalar("temperature", temperature, x.dtype)
    problem = problem._replace(temperature=temperature)
    size = problem.block_size or len(x)
    blocks = x.split(size)
    # One copy for every block, so that their derivatives are not added one by one.
    copies = c.expand(len(blocks), *c.shape)
    parts = [
        block(problem, *of_block, m)
        for of_block in zip(blocks, copies, w.split(size), strict=True)
    ]
    return tuple(torch.stack(field).sum(0) for field in zip(*parts, strict=True))


def _squared_euclidean_block(
    problem: Problem, x: Tensor, c: Tensor, w: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Shifts are Σ_i w_i r_ij (x_i − c_j), r one-hot or softmax(−distance / T)."""
    b = _about(m, c, problem)
    t, weighted = problem.temperature, problem.weights is not None
    if t is None:
        score = _scores(x.detach(), b.detach(), m)
        labels = masked(score, problem.active).argmax(1)
        nearest = rows_of(c, labels)
        if weighted:
            held = nearest.detach()
            x = fill_rows(x, w, ((x - held) ** 2).sum(1), held)
        e = x - nearest
        if problem.remainder is not None:
            e = e - problem.remainder.to(c.dtype)[labels]
        loss = (w * (e * e).sum(1)).sum()
        counts = sum_by_label(w, labels, len(c))
        return loss, counts, sum_by_label(w[:, None] * e, labels, len(c))
    if weighted:
        x = fill_rows(x, w, ((x - m) ** 2).sum(1), m)
    # −T log Σ_j exp(−‖x − c_j‖² / T), where ‖x − c_j‖² = ‖x − m‖² − 2 score_j
    soft_max, r = _soften(masked(2 * _scores(x, b, m), problem.active), t)
    free = ((x - m) ** 2).sum(1) - soft_max
    wr = w[:, None] * r
    counts = wr.sum(0)
    shifts = product_of_rows(wr, x - m) - counts[:, None] * b
    return (w * free).sum(), counts, shifts


def _distance_block(
    problem: Problem, x: Tensor, c: Tensor, w: Tensor, fill: Tensor
) -> tuple[Tensor, Tensor]:
    """Without shifts: what ∂loss/∂c is, autograd knows. `fill` is a point, [1, d]."""
    t, distance = problem.temperature, problem.distance

    def held_score(x: Tensor) -> Tensor:
        with torch.no_grad():
            return masked(-pairwise(x, c, distance=distance), problem.active)

    if problem.weights is not None:
        x = fill_rows(x, w, held_score(x).amax(1), fill)
    if t is None:
        labels = held_score(x).argmax(1)
        loss = (w * evaluate(distance, x, rows_of(c, labels))).sum()
        return loss, sum_by_label(w, labels, len(c))
    costs = pairwise(x, c, distance=distance)
    soft_max, r = _soften(masked(-costs, problem.active), t)
    return -(w * soft_max).sum(), (w[:, None] * r).sum(0)


def _soften(score: Tensor, t: Any) -> tuple[Tensor, Tensor]:
    """T log Σ_j exp(score_j / T), [n], and softmax(score / T), [n, k], however cold."""
    scaled, out = below_largest(score, t, -1000)
    scaled = scaled.masked_fill(out, -torch.inf)
    return score.detach().amax(1) + t * scaled.logsumexp(1), scaled.softmax(1)


def _about(m: Tensor, c: Tensor, problem: Problem) -> Tensor:
    """Where the centroids are from m, [k, d], with what rounding took of them."""
    b, remainder = c - m, problem.remainder
    return b if remainder is None else b + remainder.to(b.dtype)


def _scores(x: Tensor, b: Tensor, m: Tensor) -> Tensor:
    """(‖x − m‖² − ‖x − c‖²)/2 for b = c − m, [n, k]: the nearest is the largest.

    Centered before it is expanded, or float32 loses the labels of data far from 0.
    """
    return rows_product(x - m, b) - 0.5 * (b**2).sum(1)
