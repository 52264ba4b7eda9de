"""Loss, counts and shifts: the mirror of `diffkm_jax.statistics`, by another route."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_problem
from diffkm_torch._expansion import given
from diffkm_torch._geometry import prepare_rows
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import per_count
from diffkm_torch._pass import has_means, labels_of, sums
from diffkm_torch._problem import Problem
from diffkm_torch._products import rows_of, sums_by_label
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.distances._forms import form_of

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
    distance: Distance = squared_euclidean,
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
        distance=distance,
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
    """The statistics at some centroids; without a mean, shifts are −½ ∂loss/∂c."""
    if has_means(problem):
        return Statistics(*sums(problem, centroids))

    def loss(c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        loss, counts = sums(problem, c)
        return loss, (loss, counts)

    # Not autograd.grad, which is silently constant in what torch.compile made.
    gradient, (value, counts) = torch.func.grad(loss, has_aux=True)(centroids)
    return Statistics(value, counts, -0.5 * gradient.to(value.dtype))


def statistics_by(problem: Problem, centroids: Tensor, labels: Tensor) -> Statistics:
    """The statistics of points with these labels, [n], by a distance with means."""
    about = given(problem, centroids)
    assert about is not None
    form, _, rows, m = about
    x, w = prepare_rows(problem.points, problem.weights, m)
    x, own = form.embed(x), rows_of(rows, labels)
    e = x - own
    sums = sums_by_label(labels, len(rows), w, w[:, None] * e)
    return Statistics((w * form.cost(x, own, e)).sum(), *sums)


def loss_of(problem: Problem, centroids: Tensor) -> Tensor:
    """The loss at some centroids, [], for autograd to differentiate."""
    return sums(problem, centroids)[0]


def pull_of(problem: Problem, centroids: Tensor, stats: Statistics) -> Tensor:
    """−∂loss/∂centroids, [k, d], from the statistics at these centroids."""
    about = given(problem, centroids)
    if about is None:
        return 2 * stats.shifts
    return about.form.pull(about.centroids, stats.shifts, stats.counts)


def embedded(problem: Problem, rows: Tensor) -> Tensor:
    """Rows, [..., d], where the distance takes them from: on the sphere, if cosine."""
    form = form_of(problem.distance)
    return rows if form is None else form.embed(rows)


def full_step(stats: Statistics) -> Tensor:
    """shifts_j / counts_j, [k, d]; zero for clusters without weight."""
    return per_count(stats.shifts, stats.counts)


def means_of(problem: Problem, centroids: Tensor, stats: Statistics) -> Tensor:
    """The centroids after a full step, [k, d], for a distance that has means."""
    about = given(problem, centroids)
    assert about is not None
    return about.form.retract(about.rows + full_step(stats), about.rows)


def residual_of(problem: Problem, centroids: Tensor, stats: Statistics) -> Tensor:
    """Σ_j distance(c_j + shifts_j / counts_j, c_j) over clusters with weight, [].

    In squares of the step for a distance that has no means.
    """
    about, step = given(problem, centroids), full_step(stats)
    if about is None:
        return (step**2).sum()
    return about.form.step_cost(about.rows, step)
