"""The fit: checks, the loop, and one pass at the centroids that it returns."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import check_integer, check_scalar
from diffkm_torch._domain import out_of_domain
from diffkm_torch._hints import hinted
from diffkm_torch._pass import labels_of
from diffkm_torch._problem import Problem
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.fitting._derivative import check_derivative, differentiate
from diffkm_torch.fitting._empty import EmptyPolicy, is_empty
from diffkm_torch.fitting._loop import (
    Progress,
    StopRule,
    rounding_of,
    run,
    tolerance,
)
from diffkm_torch.fitting._state import (
    FitResult,
    State,
    Status,
    check_state,
    detached,
    initial_state,
    remainder_of,
)
from diffkm_torch.fitting._step import Algorithm, Temperature, as_algorithm, at_step
from diffkm_torch.fitting._units import (
    counts_in_true_unit,
    counts_in_unit,
    in_true_unit,
    in_unit,
)
from diffkm_torch.optimizers import GradientTransformation
from diffkm_torch.statistics import Statistics, residual_of, statistics_of


@hinted
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
    if isinstance(centroids, FitResult):
        raise TypeError("centroids must be a tensor or a State: pass result.state")
    algorithm, problem, start = as_algorithm(
        points,
        centroids.centroids if isinstance(centroids, State) else centroids,
        optimizer=optimizer,
        empty=empty,
        temperature=temperature,
        weights=weights,
        active=active,
        distance=distance,
        block_size=block_size,
    )
    check_derivative(derivative, problem)
    points, weights = problem.points, problem.weights
    k, n = len(start), len(points)
    if k > n and active is None:
        raise ValueError(f"centroids must be at most n = {n} (the points), got k = {k}")
    acc = problem.dtype(start)
    check_scalar("tol", tol, acc, zero=True)
    check_integer("max_steps", max_steps, minimum=0)
    if isinstance(centroids, State):
        state, dtype = centroids, points.dtype
        state = state._replace(remainder=remainder_of(state))
        check_state(state, algorithm.optimizer)
    else:
        state = initial_state(start.to(acc), algorithm.optimizer, active)
        dtype = start.dtype
    scaled = in_unit(problem, state.centroids)
    if scaled.unit is not None and scaled.unit != 1:
        problem = scaled
    opt_state = counts_in_unit(algorithm.optimizer, state.opt_state, problem)
    state = state._replace(opt_state=opt_state)
    unrolled = derivative == "unrolled"
    with torch.set_grad_enabled(unrolled and torch.is_grad_enabled()):
        limit = float(torch.as_tensor(tol).detach())
        found = run(algorithm, problem, state, limit, max_steps)
    return result_of(algorithm, derivative, problem, state, dtype, max_steps, *found)


def result_of(
    algorithm: Algorithm,
    derivative: str,
    problem: Problem,
    start: State,
    dtype: torch.dtype,
    max_steps: int,
    progress: Progress,
    rule: StopRule,
) -> FitResult:
    """What a loop found, by a pass at the centroids as they are returned."""
    state = progress.state if derivative == "unrolled" else detached(progress.state)
    # Of the last step taken; of the first, if none was.
    problem = at_step(algorithm, problem, max(state.step - 1, start.step))
    exact = problem._replace(remainder=state.remainder)
    c, trusted = differentiate(derivative, exact, state.centroids)
    centroids = c.to(dtype)
    stats = statistics_of(problem, centroids)
    residual = residual_of(problem, centroids, stats).detach()
    empty = is_empty(stats.counts, problem.active)
    stats = Statistics(*(in_true_unit(a, problem) for a in stats))
    loss, t = stats.loss.detach(), problem.temperature
    failed = progress.failed or not bool(loss.isfinite())
    failed = failed or (t is not None and not bool(t > 0))
    # Where rounding to `dtype` moves a centroid, its mean moves too, by no more.
    wide, eps = c.detach().to(residual.dtype), torch.finfo(dtype).eps
    weighty = stats.counts > 0
    bound = tolerance(rule, problem, wide, weighty)
    bound = bound + rounding_of(problem, wide, wide, weighty, eps)
    if failed:
        status = Status.NON_FINITE
    elif not progress.converged:
        status = Status.MAX_STEPS
    else:
        status = Status.CONVERGED if residual <= bound else Status.NOT_AT_REST
    if empty.any():
        status |= Status.EMPTY_CLUSTER
    if not trusted:
        status |= Status.LINEAR_SOLVE
    labels = labels_of(problem, centroids)
    if out_of_domain(problem, start.centroids, centroids, labels):
        status |= Status.DOMAIN
    history = [in_true_unit(h.to(loss.dtype), problem) for h in progress.history]
    padding = [loss] * (max_steps + 1 - len(history))
    opt_state = counts_in_true_unit(algorithm.optimizer, state.opt_state, problem)
    return FitResult(
        centroids=centroids,
        labels=labels,
        loss=stats.loss,
        counts=stats.counts,
        residual=residual,
        history=torch.stack(history + padding),
        num_steps=state.step - start.step,
        status=status,
        temperature=t,
        state=state._replace(centroids=c, opt_state=opt_state),
    )
