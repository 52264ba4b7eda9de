"""How the centroids at the end of a fit depend on its data.

The derivatives of `diffkm_jax` by another route: a step whose value is subtracted
again, s − detach(s), leaves only its derivative behind.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffkm_torch._hints import shown
from diffkm_torch._problem import Problem
from diffkm_torch._products import product
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.fitting._pseudo_inverse import pseudo_inverse
from diffkm_torch.statistics import full_step, loss_of, statistics_of


def check_derivative(derivative: str, distance: Distance) -> None:
    """Raises ValueError unless the derivative is one that the distance has."""
    if derivative not in ("implicit", "one_step", "unrolled", "none"):
        expected = "'implicit', 'one_step', 'unrolled' or 'none'"
        raise ValueError(f"derivative must be {expected}, got {shown(derivative)}")
    if derivative == "one_step" and distance is not squared_euclidean:
        raise ValueError(
            "derivative 'one_step' is that of a step to the mean and needs distance "
            f"squared_euclidean, got {shown(distance)}"
        )


def differentiate(derivative: str, problem: Problem, c: Tensor) -> tuple[Tensor, bool]:
    """The centroids with the derivative asked for, and whether it can be trusted."""
    if derivative == "unrolled":
        return c, True
    c, dtype = c.detach(), c.dtype
    if derivative == "none":
        return c, True
    if not _is_differentiated(problem, c):
        return c, True
    stats = statistics_of(problem, c)
    if not c.numel() or not all(field.isfinite().all() for field in stats):
        return _with_derivative_zero(problem, c), True
    c = c.to(stats.loss.dtype)
    hard = problem.temperature is None and problem.distance is squared_euclidean
    if hard or derivative == "one_step":
        # T(c) = c + shifts / counts. Of hard clusters these are the means, wherever
        # they are measured from, so that this is exact at every order.
        move = full_step(stats)
        return (c + (move - move.detach())).to(dtype), True
    counts = stats.counts.detach()
    inverse, trusted = pseudo_inverse(_hessian(problem, c), counts, _push(problem, c))
    if inverse is None:
        return _with_derivative_zero(problem, c.to(dtype)), trusted
    return _implicit(problem, c, inverse).to(dtype), trusted


def _implicit(problem: Problem, c: Tensor, inverse: Tensor) -> Tensor:
    """Centroids at rest with the derivative of the implicit function theorem.

    Where g(c(θ), θ) = 0, dc = −H⁻¹ ∂g/∂θ dθ with H = ∂g/∂c: that of a Newton step
    c − H⁻¹ g(c, θ) with H held constant. The second such step starts at a c that has
    the first derivative, which makes the second derivative exact too, and no higher.
    """
    for _ in range(2):
        gradient = -2 * statistics_of(problem, c).shifts
        move = -product(inverse, gradient.reshape(-1, 1)).reshape(c.shape)
        c = c + (move - move.detach())
    return c


def _hessian(problem: Problem, c: Tensor) -> Tensor:
    """The second derivative of the loss in c, [kd, kd], without a graph."""

    def gradient(c: Tensor) -> Tensor:
        return -2 * statistics_of(problem, c).shifts

    # Row by row, because a distance of the user need not bear vmap.
    hessian = torch.func.jacrev(gradient, chunk_size=1)(c).detach()
    return hessian.reshape(c.numel(), c.numel())


def _push(problem: Problem, c: Tensor) -> Tensor:
    """How some change of the weights changes the shifts, which are linear, [kd]."""
    change = torch.arange(len(problem.points), dtype=c.dtype, device=c.device).cos()
    if problem.weights is not None:
        change = change * problem.weights
    stats = statistics_of(problem._replace(weights=change), c)
    return stats.shifts.flatten().detach()


def _is_differentiated(problem: Problem, c: Tensor) -> bool:
    """Whether a gradient or a tangent is asked for: one point is enough to say."""
    points, weights = problem.points[:1], problem.weights
    weights = None if weights is None else weights[:1]
    loss = loss_of(problem._replace(points=points, weights=weights), c)
    return loss.requires_grad or forward_ad.unpack_dual(loss).tangent is not None


def _with_derivative_zero(problem: Problem, c: Tensor) -> Tensor:
    """Centroids whose derivative is zero in whatever the fit is of, even in NaN."""
    for a in (problem.points, problem.weights, problem.temperature):
        if isinstance(a, Tensor):
            c = c + a.flatten()[:0].sum()
    return c
