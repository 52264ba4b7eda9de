"""How the end of a fit is differentiated: the mirror of `diffkm_jax._implicit`.

The same derivatives by another route: a step whose value is subtracted again leaves
only its derivative behind.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffkm_torch._products import product
from diffkm_torch._update import Problem, step_of
from diffkm_torch.distances import squared_euclidean


def attach(
    problem: Problem, c: Tensor, temperature: float | Tensor | None, derivative: str
) -> tuple[Tensor, bool]:
    """Centroids with the derivative asked for, and whether its solve can be trusted.

    The means of hard clusters are exact at every order. Else two Newton steps with a
    Hessian held constant make the first and the second derivative exact, if the fit
    is at rest, and no higher one.
    """
    c, dtype = c.detach(), c.dtype
    if derivative == "none":
        return c, True
    stats = problem.statistics(c, temperature)
    if not _is_differentiated(stats.loss):
        return c, True
    if not all(field.isfinite().all() for field in stats):
        return _constant(problem, c, temperature), True
    c = c.to(stats.loss.dtype)
    hard = temperature is None and problem.distance is squared_euclidean
    if hard or derivative == "one_step":
        step = step_of(stats)
        return (c + (step - step.detach())).to(dtype), True
    inverse, solved = _inverse_hessian(problem, c, temperature, stats.counts.detach())
    if inverse is None:
        return _constant(problem, c.to(dtype), temperature), solved
    for _ in range(2):
        shifts = problem.statistics(c, temperature).shifts
        step = product(inverse, (2 * shifts).reshape(-1, 1)).reshape(c.shape)
        c = c + (step - step.detach())
    return c.to(dtype), solved


def _is_differentiated(loss: Tensor) -> bool:
    return loss.requires_grad or forward_ad.unpack_dual(loss).tangent is not None


def _constant(
    problem: Problem, c: Tensor, temperature: float | Tensor | None
) -> Tensor:
    """Centroids whose derivative is zero in whatever the fit is of, even in NaN."""
    for a in (problem.points, problem.weights, temperature):
        if isinstance(a, Tensor):
            c = c + a.flatten()[:0].sum()
    return c


def _inverse_hessian(
    problem: Problem, c: Tensor, temperature: float | Tensor | None, counts: Tensor
) -> tuple[Tensor | None, bool]:
    """The inverse of the Hessian in c, [kd, kd], and whether it can be trusted.

    A pseudo-inverse: zero for clusters without weight, and along directions in which
    the Hessian, in units of 2 counts, is not positive. A negative one is not trusted;
    a flat one, as lengths under `cosine`, only if the data do not push along it. None,
    if the Hessian is not finite.
    """

    def gradient(c: Tensor) -> Tensor:
        return -2 * problem.statistics(c, temperature).shifts

    eps, tiny = torch.finfo(c.dtype).eps, torch.finfo(c.dtype).tiny
    # Of smaller counts the inverse may overflow.
    scale = torch.where(counts > tiny / eps, (2 * counts).rsqrt(), 0)
    scale = scale.repeat_interleave(c.shape[1])
    # Row by row, because a distance of the user need not bear vmap.
    hessian = torch.func.jacrev(gradient, chunk_size=1)(c).detach()
    hessian = scale[:, None] * hessian.reshape(len(scale), -1) * scale
    if not hessian.isfinite().all():
        return None, False
    values, vectors = torch.linalg.eigh(hessian)
    flat = eps**0.75 * values.abs().max()
    positive = values > flat
    inverses = torch.where(positive, 1 / torch.where(positive, values, 1), 0)
    inverse = product(vectors * inverses, vectors.T)

    # Shifts are linear in the weights.
    change = torch.arange(len(problem.points), dtype=c.dtype, device=c.device).cos()
    if problem.weights is not None:
        change = change * problem.weights
    push = problem._replace(weights=change).statistics(c, temperature).shifts
    push = scale * push.flatten().detach()
    push = product(vectors.T, push[:, None])[:, 0]
    harmless = push[~positive].norm() <= eps**0.5 * push.norm()
    trusted = bool(harmless and values.min() >= -flat)
    return scale[:, None] * inverse * scale, trusted
