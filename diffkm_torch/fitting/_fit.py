"""The fit: checks, the loop, and one pass at the centroids that it returns."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import check_integer, check_scalar
from diffkm_torch._domain import out_of_domain
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._problem import Problem
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.fitting._derivative import check_derivative, differentiate
from diffkm_torch.fitting._empty import EmptyPolicy, is_empty
from diffkm_torch.fitting._loop import Progress, run
from diffkm_torch.fitting._state import (
    FitResult,
    State,
    Status,
    check_state,
    detached,
    initial_state,
)
from diffkm_torch.fitting._step import Temperature, as_algorithm, at_step
from diffkm_torch.optimizers import GradientTransformation
from diffkm_torch.statistics import labels_of, residual_of, statistics_of


def fit(
    points: Tensor,
    centroids: Tensor | State,
    *,
    optimizer: GradientTransformation | None = None,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    temperature: Temperature = None,
    distance: Distance = squared_euclidean,
    tol: float | Tensor = 1e-4,
    max_steps: int = 300,
    empty: str | EmptyPolicy = "keep",
    derivative: str = "implicit",
    block_size: int | None = None,
) -> FitResult:
    """Mirrors `diffkm_jax.fit`: updates until the centroids rest.

    The implicit derivative of a fit that is soft, or of another distance, is exact up
    to the second order.
    """
    start = centroids.centroids if isinstance(centroids, State) else centroids
    algorithm, problem = as_algorithm(
        points,
        start,
        optimizer=optimizer,
        empty=empty,
        temperature=temperature,
        weights=weights,
        active=active,
        distance=distance,
        block_size=block_size,
    )
    check_derivative(derivative, distance)
    k, n = len(start), len(points)
    if k > n and active is None:
        raise ValueError(f"centroids must be at most n = {n} (the points), got k = {k}")
    check_scalar("tol", tol, zero=True)
    check_integer("max_steps", max_steps, minimum=0)
    if isinstance(centroids, State):
        state, dtype = centroids, points.dtype
        check_state(state, algorithm.optimizer)
    else:
        acc = accumulation_dtype(points, start, weights)
        state = initial_state(start.to(acc), algorithm.optimizer, active)
        dtype = start.dtype
    unrolled = derivative == "unrolled"
    with torch.set_grad_enabled(unrolled and torch.is_grad_enabled()):
        limit = float(torch.as_tensor(tol).detach())
        progress = run(algorithm, problem, state, limit, max_steps)
    last = max(progress.state.step - 1, state.step)
    problem = at_step(algorithm, problem, last)
    return result_of(derivative, problem, state, dtype, max_steps, progress)


def result_of(
    derivative: str,
    problem: Problem,
    start: State,
    dtype: torch.dtype,
    max_steps: int,
    progress: Progress,
) -> FitResult:
    """What a loop found, by a pass at the centroids as they are returned."""
    state = progress.state if derivative == "unrolled" else detached(progress.state)
    c, trusted = differentiate(derivative, problem, state.centroids)
    centroids = c.to(dtype)
    stats = statistics_of(problem, centroids)
    loss, t = stats.loss.detach(), problem.temperature
    failed = progress.failed or not bool(loss.isfinite())
    failed = failed or (t is not None and not bool(t > 0))
    if failed:
        status = Status.NON_FINITE
    else:
        status = Status.CONVERGED if progress.converged else Status.MAX_STEPS
    if is_empty(stats.counts, problem.active).any():
        status |= Status.EMPTY_CLUSTER
    if not trusted:
        status |= Status.LINEAR_SOLVE
    if out_of_domain(problem, start.centroids, centroids):
        status |= Status.DOMAIN
    padding = [loss] * (max_steps + 1 - len(progress.history))
    return FitResult(
        centroids=centroids,
        labels=labels_of(problem, centroids),
        loss=stats.loss,
        counts=stats.counts,
        residual=residual_of(stats).detach(),
        history=torch.stack([h.to(loss.dtype) for h in progress.history] + padding),
        num_steps=state.step - start.step,
        status=status,
        temperature=t,
        state=state._replace(centroids=c),
    )
