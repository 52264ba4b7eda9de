"""The loop around the step, and the rule that ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._blocks import block_for, over_points
from diffkm_torch._geometry import anchor, fill_rows, prepare_centroids, prepare_rows
from diffkm_torch._problem import Problem
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
        variance: That variance, [], in squared data units.
        temperature: The last of a schedule, or of the problem, or None if hard.
    """

    tol: float
    variance: Tensor
    temperature: float | Tensor | None


def tolerance(rule: StopRule, c: Tensor, weighty: Tensor | None) -> Tensor:
    """The largest residual at rest: max(tol · v, ε² (Σ‖c − m‖² + 64 k d v)).

    The second is what rounding leaves of a residual, so that tol = 0 is reached; m is
    the origin of a pass, a centroid. Only clusters with weight have a residual: one
    that has none may be anywhere.
    """
    c = c.to(rule.variance.dtype)
    eps = torch.finfo(c.dtype).eps
    floor = rounding_of(c - anchor(c, weighty), weighty, eps)
    floor = floor + eps**2 * 64 * c.numel() * rule.variance
    return torch.maximum(rule.tol * rule.variance, floor)


def rounding_of(centroids: Tensor, weighty: Tensor | None, eps: float) -> Tensor:
    """ε² Σ‖c‖²: no less than what rounding centroids changes of a residual."""
    # Scaled before it is squared, so as not to overflow before the loss does.
    return ((eps * zero_inactive(centroids, weighty)) ** 2).sum()


def has_converged(
    rule: StopRule,
    residual: Tensor,
    c: Tensor,
    weighty: Tensor | None,
    temperature: float | Tensor | None,
) -> bool:
    """Whether a step from c at a temperature, of this residual, is the last."""
    bound = tolerance(rule, c, weighty)
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
    temperature = at_step(algorithm, problem, old.step).temperature
    c = old.centroids.detach()
    converged = has_converged(rule, residual, c, stats.counts > 0, temperature)
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
    """The weighted variance of the features, averaged over them, [], in two passes."""
    c, origin = prepare_centroids(problem, centroids)
    d = c.shape[1]

    def moment(of: Callable[[Tensor, Tensor], Tensor], center: Tensor) -> Any:
        """Σ w and Σ w of(x − origin, center), [] and [d]."""

        def block(x: Tensor, weights: Tensor | None, center: Tensor) -> tuple:
            x, w = prepare_rows(x, weights, origin)
            if weights is None:
                return w.sum(), of(x - origin, center).sum(0)
            x = fill_rows(x, w, ((x - origin) ** 2).sum(1), origin)
            return w.sum(), (w[:, None] * of(x - origin, center)).sum(0)

        return over_points(block, problem, center, block_for(problem, 1, d))

    # About the origin: far from zero the mean itself would be rounded.
    mass, first = moment(lambda y, _: y, origin)
    _, second = moment(lambda y, mean: y.sub_(mean).square_(), first / mass)
    return second.sum() / (mass * max(1, d))
