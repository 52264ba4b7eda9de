"""The loop around the step, and the rule that ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    if form is not None:
        c = form.embed(c)  # Under `cosine` rows of a start may have any length.
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


@torch.no_grad()
def mean_variance(problem: Problem, centroids: Tensor) -> Tensor:
    """The weighted variance of the features, averaged over them, [], in two passes.

    Of a distance that has means it is the mean distance to the mean, over d.
    """
    form = form_of(problem.distance) or Form()
    c = form.embed(prepare_centroids(problem, centroids)[0])
    d, origin = c.shape[1], anchor(c, problem.active)

    def moment(of: Callable[[Tensor, Tensor], Tensor], center: Tensor) -> Any:
        """Σ w and Σ w of(x − origin, center), [] and [d] or []."""

        def block(x: Tensor, weights: Tensor | None, center: Tensor) -> tuple:
            x, w = prepare_rows(x, weights, origin)
            if weights is None:
                return w.sum(), of(form.embed(x) - origin, center).sum(0)
            x = fill_rows(x, w, ((x - origin) ** 2).sum(1), origin)
            values = of(form.embed(x) - origin, center)
            # Outside the domain a distance need not be finite.
            used = (w != 0).reshape(-1, *(1,) * (values.ndim - 1))
            values = torch.where(used | values.isfinite(), values, 0)
            return w.sum(), (w.reshape(used.shape) * values).sum(0)

        return over_points(block, problem, center, block_for(problem, 1, d))

    def to_mean(y: Tensor, mean: Tensor) -> Tensor:
        if form.is_invariant:
            return form.cost(y, mean, y - mean)
        x, mean = y + origin, form.retract(origin + mean, origin)
        return form.cost(x, mean, x - mean)

    # About the origin: far from zero the mean itself would be rounded.
    mass, first = moment(lambda y, _: y, origin)
    _, second = moment(to_mean, first / mass)
    return second / (mass * max(1, d))
