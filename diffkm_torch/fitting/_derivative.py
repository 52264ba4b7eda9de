"""How the centroids at the end of a fit depend on its data.

The derivatives of `diffkm_jax` by another route: a step whose value is subtracted
again, s − detach(s), leaves only its derivative behind.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffkm_torch._expansion import given
from diffkm_torch._hints import shown
from diffkm_torch._pass import has_means
from diffkm_torch._problem import Problem
from diffkm_torch._products import product
from diffkm_torch.distances._form import Form
from diffkm_torch.distances._forms import WITH_MEANS, form_of
from diffkm_torch.fitting._pseudo_inverse import pseudo_inverse
from diffkm_torch.fitting._state import detached
from diffkm_torch.statistics import (
    Statistics,
    loss_of,
    means_of,
    pull_of,
    statistics_of,
)


def check_derivative(derivative: str, problem: Problem) -> None:
    """Raises ValueError unless the derivative is one that the distance has."""
    if derivative not in ("implicit", "one_step", "unrolled", "none"):
        expected = "'implicit', 'one_step', 'unrolled' or 'none'"
        raise ValueError(f"derivative must be {expected}, got {shown(derivative)}")
    if derivative == "one_step" and not has_means(problem):
        raise ValueError(
            "derivative 'one_step' is that of a step to the mean and needs a distance "
            f"that has one ({WITH_MEANS}), got {shown(problem.distance)}"
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
    hard = problem.temperature is None and has_means(problem)
    if hard or derivative == "one_step":
        # Of hard clusters these are the means, wherever they are measured from, so that
        # this is exact at every order.
        return _one_step(problem, c, stats).to(dtype), True
    scale = scale_of(problem, c, stats)
    inverse, trusted = pseudo_inverse(_hessian(problem, c), scale, _push(problem, c))
    if inverse is None:
        return _with_derivative_zero(problem, c.to(dtype)), trusted
    return _implicit(problem, c, inverse).to(dtype), trusted


def _one_step(problem: Problem, c: Tensor, stats: Statistics) -> Tensor:
    """Centroids with the derivative of their means, by which they do not move."""
    means = means_of(problem, c, stats)
    return c.detach() + (means - means.detach())


def _implicit(problem: Problem, c: Tensor, inverse: Tensor) -> Tensor:
    """Centroids at rest with the derivative of the implicit function theorem.

    Where g(c(θ), θ) = 0, dc = −H⁻¹ ∂g/∂θ dθ with H = ∂g/∂c: that of a Newton step
    c − H⁻¹ g(c, θ) with H held constant. The second such step starts at a c that has
    the first derivative, which makes the second derivative exact too, and no higher.
    """
    for _ in range(2):
        move = product(inverse, _pull(problem, c).reshape(-1, 1)).reshape(c.shape)
        c = c + (move - move.detach())
    form = form_of(problem.distance)
    if form is None or not form.is_flat:
        return c
    if form.is_curved:
        # The second derivative of a way on a sphere leaves its tangents.
        unit = form.embed(c)
        return c.detach() + (unit - unit.detach())
    # Where the distance does not depend on c, centroids are means still: the derivative
    # is that of one more step, of centroids that move as the others say.
    return _one_step(problem, c, statistics_of(problem, c))


def _pull(problem: Problem, c: Tensor) -> Tensor:
    """Minus the gradient of the loss in c, [k, d]."""
    return pull_of(problem, c, statistics_of(problem, c))


def _hessian(problem: Problem, c: Tensor) -> Tensor:
    """The second derivative of the loss in c, [kd, kd], without a graph."""
    # Row by row, because a distance of the user need not bear vmap.
    rows = torch.func.jacrev(partial(_pull, problem), chunk_size=1)(c).detach()
    return -rows.reshape(c.numel(), c.numel())


def scale_of(problem: Problem, c: Tensor, stats: Statistics) -> Tensor:
    """S = (counts_j s ∇²φ(c_j))^−½, [kd, kd], and zero for clusters without weight.

    With 2 for s ∇²φ if the distance has no means.
    """
    about = given(problem, c)
    form, rows = (Form(), c) if about is None else (about.form, about.rows)
    rows, (_, counts, shifts) = rows.detach(), detached(stats)
    mass, limits = form.mass(rows, shifts, counts)[:, None, None], torch.finfo(c.dtype)
    basis = torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    blocks = torch.stack([form.inverse_root(rows, e.expand_as(c)) for e in basis], 1)
    # Of a smaller mass the inverse may overflow.
    usable = mass > limits.tiny / limits.eps
    blocks = torch.where(usable, blocks * torch.where(usable, mass, 1).rsqrt(), 0)
    return torch.block_diag(*blocks.detach())


def _push(problem: Problem, c: Tensor) -> Tensor:
    """How some change of the weights changes the gradient, which is linear, [kd]."""
    change = torch.arange(len(problem.points), dtype=c.dtype, device=c.device).cos()
    if problem.weights is not None:
        change = change * problem.weights
    return _pull(problem._replace(weights=change), c).flatten().detach()


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
