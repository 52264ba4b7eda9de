"""The fit with clusters of given or bounded size, and these at given centroids."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import as_problem, check_given, check_integer, check_scalar
from diffkm_torch._domain import out_of_domain
from diffkm_torch._hints import hinted, shown
from diffkm_torch._pass import has_means
from diffkm_torch._problem import Problem
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.distances._forms import WITH_MEANS
from diffkm_torch.fitting._bounded_derivative import differentiate
from diffkm_torch.fitting._bounded_pass import plan_at, shared, statistics_at
from diffkm_torch.fitting._bounds import Bounds, Sizes, as_bounds
from diffkm_torch.fitting._loop import (
    StopRule,
    has_converged,
    mean_variance,
    rounding_of,
    tolerance,
)
from diffkm_torch.fitting._state import (
    FitResult,
    State,
    Status,
    check_state,
    initial_state,
    remainder_of,
    retracted,
)
from diffkm_torch.optimizers import newton
from diffkm_torch.statistics import means_of, residual_of


@hinted
def fit_bounded(
    points: Tensor,
    centroids: Tensor | State,
    *,
    min_size: Sizes = None,
    max_size: Sizes = None,
    temperature: float | Tensor | None = None,
    weights: Tensor | None = None,
    distance: Distance = squared_euclidean,
    tol: float | Tensor = 1e-4,
    max_steps: int = 300,
    derivative: str = "implicit",
) -> FitResult:
    """Mirrors `diffkm_jax.fit_bounded`: a fit under bounds on the sizes of clusters.

    Sizes and weights that cannot be met raise here. The derivative of a soft fit is
    exact up to the second order, and by autograd: `torch.func.grad` cannot take it.
    """
    if isinstance(centroids, FitResult):
        raise TypeError("centroids must be a tensor or a State: pass result.state")
    rows = centroids.centroids if isinstance(centroids, State) else centroids
    problem, rows, bounds = _checked(
        points, rows, min_size, max_size, weights, distance, temperature
    )
    if derivative not in ("implicit", "one_step", "none"):
        names = "'implicit', 'one_step' or 'none'"
        raise ValueError(f"derivative must be {names}, got {shown(derivative)}")
    acc = problem.dtype(rows)
    check_integer("max_steps", max_steps, minimum=0)
    check_scalar("tol", tol, acc, zero=True)
    if isinstance(centroids, State):
        check_state(centroids, newton())
        at = centroids.centroids + remainder_of(centroids)
        state = centroids._replace(centroids=at, remainder=torch.zeros_like(at))
        dtype = problem.points.dtype
    else:
        state, dtype = initial_state(rows.to(acc), newton()), rows.dtype
    limit = float(torch.as_tensor(tol).detach())
    start, history, converged, failed = state, [], False, False
    with torch.no_grad():
        variance = mean_variance(problem, state.centroids)
        rule = StopRule(limit, variance, temperature)
        while len(history) < max_steps and not converged and not failed:
            state = retracted(problem, state, state)
            c = state.centroids
            stats = statistics_at(problem, c, bounds, shared(problem, c, bounds))
            new = means_of(problem, c, stats).to(c.dtype)
            failed = not bool(stats.loss.isfinite() & new.isfinite().all())
            if failed:
                break
            weighty, residual = stats.counts > 0, residual_of(problem, c, stats)
            converged = bool(has_converged(rule, problem, residual, c, weighty))
            history.append(stats.loss)
            state = state._replace(centroids=new, step=state.step + 1)
        c = retracted(problem, state, state).centroids.detach()
        at = c.to(dtype).to(c.dtype)
        shares = shared(problem, at, bounds)
    c, trusted = differentiate(derivative, problem, c, bounds, shares)
    centroids = c.to(dtype)
    stats = statistics_at(problem, centroids, bounds, shares)
    residual, loss = (
        residual_of(problem, centroids, stats).detach(),
        stats.loss.detach(),
    )
    failed, weighty = failed or not bool(loss.isfinite()), stats.counts > 0
    wide, eps = c.detach().to(residual.dtype), torch.finfo(dtype).eps
    bound = tolerance(rule, problem, wide, weighty)
    bound = bound + rounding_of(problem, wide, wide, weighty, eps)
    status = Status(0)
    if failed:
        status |= Status.NON_FINITE
    elif not converged or not shares.met:
        status |= Status.MAX_STEPS
    else:
        status |= Status.CONVERGED if residual <= bound else Status.NOT_AT_REST
    if shares.usable and not weighty.all():
        status |= Status.EMPTY_CLUSTER
    if not trusted:
        status |= Status.LINEAR_SOLVE
    if out_of_domain(problem, start.centroids, centroids, shares.labels):
        status |= Status.DOMAIN
    padding = [loss] * (max_steps + 1 - len(history))
    return FitResult(
        centroids=centroids,
        labels=shares.labels if shares.usable else shares.labels * 0 - 1,
        loss=stats.loss,
        counts=stats.counts,
        residual=residual,
        history=torch.stack(history + padding),
        num_steps=len(history),
        status=status,
        temperature=temperature,
        state=state._replace(centroids=c),
    )


@hinted
def assign_bounded(
    points: Tensor,
    centroids: Tensor,
    *,
    min_size: Sizes = None,
    max_size: Sizes = None,
    weights: Tensor | None = None,
    distance: Distance = squared_euclidean,
) -> Tensor:
    """Mirrors `diffkm_jax.assign_bounded`: labels [n] of least total distance."""
    problem, centroids, bounds = _checked(
        points, centroids, min_size, max_size, weights, distance, None
    )
    shares = shared(problem, centroids, bounds)
    return shares.labels if shares.usable else shares.labels * 0 - 1


@hinted
def soft_assign_bounded(
    points: Tensor,
    centroids: Tensor,
    *,
    temperature: float | Tensor,
    min_size: Sizes = None,
    max_size: Sizes = None,
    weights: Tensor | None = None,
    distance: Distance = squared_euclidean,
) -> Tensor:
    """Mirrors `diffkm_jax.soft_assign_bounded`: the plan [n, k], exact to order 2."""
    check_given("temperature", temperature)
    problem, centroids, bounds = _checked(
        points, centroids, min_size, max_size, weights, distance, temperature
    )
    shares = shared(problem, centroids, bounds)
    return plan_at(problem, centroids, bounds, shares)


def _checked(
    points: Tensor,
    centroids: Tensor,
    min_size: Sizes,
    max_size: Sizes,
    weights: Tensor | None,
    distance: Distance,
    temperature: float | Tensor | None,
) -> tuple[Problem, Tensor, Bounds]:
    """The arguments, checked: problem, centroids and bounds."""
    problem, centroids = as_problem(
        points, centroids, distance=distance, weights=weights, temperature=temperature
    )
    if not has_means(problem):
        raise ValueError(
            f"distance must be one that has means ({WITH_MEANS}) where sizes are "
            f"bounded, got {shown(distance)}"
        )
    shape, hard = (len(problem.points), len(centroids)), temperature is None
    dtype = problem.dtype(centroids)
    bounds = as_bounds(min_size, max_size, problem.weights, shape, dtype, hard=hard)
    return problem, centroids, bounds
