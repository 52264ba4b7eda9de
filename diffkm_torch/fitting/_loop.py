"""The loop around the step, and the rule that ends it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._blocks import block_for, over_points
from diffkm_torch._geometry import anchor, fill_rows, prepare_centroids, prepare_rows
from diffkm_torch._problem import Problem
from diffkm_torch.distances._form import Form
from diffkm_torch.distances._forms import form_of
from diffkm_torch.fitting._state import State, zero_inactive
from diffkm_torch.fitting._step import Algorithm, at_step, step


class Progress(NamedTuple):
    """How far a fit has come.

    Attributes:
        state: The state after the last step that was finite.
        history: The loss before every step so far, each [].
        converged: Whether the stop rule was met.
        failed: Whether a loss or a step was not finite.
    """

    state: State
    history: list[Tensor]
    converged: bool
    failed: bool


class StopRule(NamedTuple):
    """What decides whether a fit rests.

    Attributes:
        tol: Of the mean variance of the features.
        variance: That variance, [], in squared data units; of a distance that has
            means, the mean distance to the mean, over d.
        temperature: The last of a schedule, or of the problem, or None if hard.
    """

    tol: float
    variance: Tensor
    temperature: float | Tensor | None


def tolerance(
    rule: StopRule, problem: Problem, c: Tensor, weighty: Tensor | None
) -> Tensor:
    """The largest residual at rest: max(tol · v, ε² (Σ‖c − m‖² + 64 k d v)).

    The second is what rounding leaves of a residual, so that tol = 0 is reached; m is
    the origin of a pass, a centroid. Only clusters with weight have a residual: one
    that has none may be anywhere.
    """
    c = c.to(rule.variance.dtype)
    eps = torch.finfo(c.dtype).eps
    form = form_of(problem.distance)
    is_invariant = form is None or form.is_invariant
    parts = c - anchor(c, weighty) if is_invariant else c
    floor = rounding_of(problem, c, parts, weighty, eps)
    floor = floor + eps**2 * 64 * c.numel() * rule.variance
    return torch.maximum(rule.tol * rule.variance, floor)


def rounding_of(
    problem: Problem, c: Tensor, parts: Tensor, weighty: Tensor | None, eps: float
) -> Tensor:
    """No less than what rounding parts of centroids c, [k, d], changes of a residual.

    If squared, that is ε² Σ‖parts‖²; a divergence has the square of its Hessian.
    """
    form = form_of(problem.distance) or Form()
    if weighty is not None:
        c = torch.where(weighty[:, None], c, anchor(c, weighty))
    # Scaled before it is squared, so as not to overflow before the loss does.
    return form.size(c, eps * zero_inactive(parts, weighty))


def has_converged(
    rule: StopRule,
    problem: Problem,
    residual: Tensor,
    c: Tensor,
    weighty: Tensor | None,
) -> bool:
    """Whether a step from c, of this residual, is the last."""
    bound, temperature = tolerance(rule, problem, c, weighty), problem.temperature
    rests = bool((residual <= bound) & bound.isfinite())
    return rests and (temperature is None or bool(temperature == rule.temperature))


def advance(
    algorithm: Algorithm, problem: Problem, rule: StopRule, now: Progress
) -> Progress:
    """One step on; where that is not finite, the state stays as it is."""
    old = now.state
    new, stats, residual, finite = step(algorithm, problem, old)
    if not finite:
        return now._replace(failed=True)
    held, c = at_step(algorithm, problem, old.step), old.centroids.detach()
    converged = has_converged(rule, held, residual.detach(), c, stats.counts > 0)
    return Progress(new, [*now.history, stats.loss.detach()], converged, False)


def run(
    algorithm: Algorithm, problem: Problem, state: State, tol: float, max_steps: int
) -> tuple[Progress, StopRule]:
    """Steps until the stop rule is met."""
    variance = mean_variance(problem, state.centroids).detach()
    last = at_step(algorithm, problem, state.step + max_steps).temperature
    rule = StopRule(tol, variance, last)
    now = Progress(state, [], converged=False, failed=False)
    while len(now.history) < max_steps and not now.converged and not now.failed:
        now = advance(algorithm, problem, rule, now)
    return now, rule


def mean_variance(problem: Problem, centroids: Tensor) -> Tensor:
    """The weighted variance of the features, averaged over them, [].

    Of a distance that has means it is the mean distance to the mean, over d.
    """
    form = form_of(problem.distance) or Form()
    c, _ = prepare_centroids(problem, centroids)
    c = form.embed(c)
    d, origin = c.shape[1], anchor(c, problem.active)

    def rows(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        # About the origin: far from zero the mean itself would be rounded.
        x, w = prepare_rows(x, weights, origin)
        if weights is not None:
            x = fill_rows(x, w, ((x - origin) ** 2).sum(1), origin)
        return form.embed(x) - origin, w

    def first(x: Tensor, weights: Tensor | None, origin: Tensor) -> tuple[Tensor, ...]:
        y, w = rows(x, weights)
        return w.sum(), y.sum(0) if weights is None else (w[:, None] * y).sum(0)

    def second(x: Tensor, weights: Tensor | None, mean: Tensor) -> tuple[Tensor, ...]:
        y, w = rows(x, weights)
        if form.is_invariant:
            costs = form.cost(y, mean, y - mean)
        else:
            x, mean = y + origin, form.retract(origin + mean, origin)
            costs = form.cost(x, mean, x - mean)
        # Outside the domain it need not be finite.
        return ((w * torch.where(costs.isfinite() | (w != 0), costs, 0)).sum(),)

    block = block_for(problem, 1, d)
    total, sums = over_points(first, problem, origin, block)
    (costs,) = over_points(second, problem, sums / total, block)
    return costs / (total * max(1, d))
