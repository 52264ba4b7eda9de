"""How the centroids of a fit with sizes depend on its data."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._problem import Problem
from diffkm_torch._products import product
from diffkm_torch.distances._forms import form_of
from diffkm_torch.fitting._bounded_pass import Shares, statistics_at
from diffkm_torch.fitting._bounds import Bounds
from diffkm_torch.fitting._derivative import scale_of
from diffkm_torch.fitting._pseudo_inverse import pseudo_inverse
from diffkm_torch.statistics import means_of, pull_of


def differentiate(
    derivative: str, problem: Problem, c: Tensor, bounds: Bounds, shares: Shares
) -> tuple[Tensor, bool]:
    """The centroids with the derivative asked for, and whether it can be trusted."""
    if derivative == "none" or not shares.usable:
        return c, True

    def means(c: Tensor) -> Tensor:
        found = means_of(problem, c, statistics_at(problem, c, bounds, shares))
        return found.to(c.dtype)

    def pull(c: Tensor, weights: Tensor | None = problem.weights) -> Tensor:
        weighed = problem._replace(weights=weights)
        return pull_of(weighed, c, statistics_at(weighed, c, bounds, shares))

    def with_derivative(same: Tensor) -> Tensor:
        move = torch.where(same.isfinite(), same - same.detach(), 0)
        return c.detach() + move

    if derivative == "one_step" or problem.temperature is None:
        return with_derivative(means(c)), True
    if not pull(c).requires_grad:
        return c, True
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(pull, c)
        weights = torch.ones_like(c[:1, 0]).expand(len(problem.points))
        weights = weights if problem.weights is None else problem.weights.detach()
        change = torch.arange(len(weights), dtype=c.dtype).cos() * weights
        _, push = torch.autograd.functional.jvp(
            lambda w: pull(c, w), weights.to(c.dtype), change
        )
    assert isinstance(push, Tensor)
    hessian = -jacobian.detach().reshape(c.numel(), c.numel())
    with torch.no_grad():
        stats = statistics_at(problem, c, bounds, shares)
    scale = scale_of(problem, c, stats)
    inverse, trusted = pseudo_inverse(hessian, scale, push.flatten().detach())
    if inverse is None:
        return c, trusted
    moving = c
    for _ in range(2):
        move = product(inverse, pull(moving).reshape(-1, 1)).reshape(c.shape)
        moving = moving + (move - move.detach())
    form = form_of(problem.distance)
    assert form is not None, "the caller asks first"
    if not form.is_flat:
        return moving, trusted
    return with_derivative(
        form.embed(moving) if form.is_curved else means(moving)
    ), trusted
