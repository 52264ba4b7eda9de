"""The loop around the step, and the rule that ends it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import block_for, over_points, psum, weigh
from diffkm_jax._geometry import about, anchor, centered
from diffkm_jax._mesh import vary_as
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances._form import Form
from diffkm_jax.distances._forms import form_of
from diffkm_jax.fitting._state import State, zero_inactive
from diffkm_jax.fitting._step import Algorithm, Step, at_step, step


class Progress(NamedTuple):
    """How far a fit has come.

    Attributes:
        state: The state after the last step that was finite.
        history: The loss before every step, [max_steps + 1], zero from `num_steps` on;
            in the unit of the problem.
        num_steps: Steps taken.
        converged: Whether the stop rule was met.
        failed: Whether a loss or a step was not finite.
    """

    state: State
    history: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    failed: jax.Array


def begun(state: State, max_steps: int, dtype: Any) -> Progress:
    """A fit of at most so many steps, before the first."""
    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    return Progress(state, jnp.zeros(max_steps + 1, dtype), zero, no, no)


def goes_on(now: Progress) -> jax.Array:
    """Whether there is another step, [], bool."""
    return (now.num_steps < len(now.history) - 1) & ~now.converged & ~now.failed


def after(now: Progress, found: Step, loss: jax.Array, rests: jax.Array) -> Progress:
    """One step on, from a loss; where it is not finite, the state stays as it is."""
    taken = found.finite.astype(jnp.int32)
    loss = lax.stop_gradient(loss).astype(now.history.dtype)
    return Progress(
        found.state._replace(step=now.state.step + taken),
        now.history.at[now.num_steps].set(loss),
        now.num_steps + taken,
        found.finite & rests,
        ~found.finite,
    )


class StopRule(NamedTuple):
    """What decides whether a fit rests.

    Attributes:
        tol: Of the mean variance of the features, [].
        variance: That variance, [], in squared data units; of a distance that has
            means, the mean distance to the mean, over d.
        temperature: The last of a schedule, or of the problem, or None if hard.
    """

    tol: jax.Array
    variance: jax.Array
    temperature: jax.Array | None


def tolerance(
    rule: StopRule, problem: Problem, c: jax.Array, weighty: jax.Array | None
) -> jax.Array:
    """The largest residual at rest: max(tol · v, ε² (Σ‖c − m‖² + 64 k d v)).

    The second is what rounding leaves of a residual, so that tol = 0 is reached; m is
    the origin of a pass, a centroid. Only clusters with weight have a residual: one
    that has none may be anywhere.
    """
    form = form_of(problem.distance) or Form()
    # Under `cosine` rows of a start may have any length.
    c = form.embed(c.astype(rule.variance.dtype))
    eps = float(jnp.finfo(c.dtype).eps)
    about_m = about(anchor(c, weighty), c) if form.is_invariant else c
    floor = rounding_of(problem, c, about_m, weighty, eps)
    floor += eps**2 * 64 * c.size * rule.variance
    return jnp.maximum(rule.tol * rule.variance, floor)


def rounding_of(
    problem: Problem,
    c: jax.Array,
    parts: jax.Array,
    weighty: jax.Array | None,
    eps: float,
) -> jax.Array:
    """No less than what rounding parts of centroids c, [k, d], changes of a residual.

    If squared, that is ε² Σ‖parts‖²; a divergence has the square of its Hessian.
    """
    form = form_of(problem.distance) or Form()
    if weighty is not None:
        c = jnp.where(weighty[:, None], c, anchor(c, weighty))
    # Scaled before it is squared, so as not to overflow before the loss does.
    return form.size(c, eps * zero_inactive(parts, weighty))


def has_converged(
    rule: StopRule,
    problem: Problem,
    residual: jax.Array,
    c: jax.Array,
    weighty: jax.Array | None,
) -> jax.Array:
    """Whether a step from c, of this residual, is the last."""
    bound = tolerance(rule, problem, c, weighty)
    rests = (residual <= bound) & jnp.isfinite(bound)
    if problem.temperature is None:
        return rests
    return rests & (problem.temperature == rule.temperature)


def is_at_rest(
    rule: StopRule,
    problem: Problem,
    c: jax.Array,
    dtype: Any,
    residual: jax.Array,
    weighty: jax.Array,
) -> jax.Array:
    """Whether centroids rest where they are returned, rounded to a dtype.

    Where rounding moves a centroid, its mean moves too, by no more.
    """
    wide, eps = lax.stop_gradient(c).astype(residual.dtype), jnp.finfo(dtype).eps
    bound = tolerance(rule, problem, wide, weighty)
    bound += rounding_of(problem, wide, wide, weighty, float(eps))
    return residual <= bound


def advance(
    algorithm: Algorithm, problem: Problem, rule: StopRule, now: Progress
) -> Progress:
    """One step on, by all points, and whether the rule is met."""
    old, found = now.state, step(algorithm, problem, now.state)
    held = at_step(algorithm, lax.stop_gradient(problem), old.step)
    weighty = found.stats.counts > 0
    rests = has_converged(rule, held, found.residual, old.centroids, weighty)
    return after(now, found, found.stats.loss, rests)


def run(
    algorithm: Algorithm,
    max_steps: int,
    problem: Problem,
    state: State,
    tol: Any,
    *,
    unrolled: bool,
) -> tuple[Progress, StopRule]:
    """Steps until the stop rule is met, which carry a derivative if `unrolled`."""
    held, start = lax.stop_gradient((problem, state))
    variance = mean_variance(algorithm.plan, held, start.centroids)
    last = at_step(algorithm, held, start.step + max_steps).temperature
    rule = StopRule(jnp.asarray(tol, variance.dtype), variance, last)
    # A carry that varies over a mesh as what comes of it does: a fit per device.
    begin = begun(state, max_steps, variance.dtype)
    begin = vary_as(begin, variance, start.centroids)

    # A while_loop has no reverse mode, and needs none where nothing is unrolled.
    if not unrolled:
        # Held at every step, because an optimizer, a schedule or a distance may close
        # over what is differentiated.
        end = lax.while_loop(
            goes_on,
            lambda now: lax.stop_gradient(advance(algorithm, held, rule, now)),
            lax.stop_gradient(begin),
        )
        return end, rule

    # Recomputed in reverse, so that only the centroids of each step are kept.
    @partial(jax.checkpoint, prevent_cse=False)
    def advance_if_going_on(problem: Problem, now: Progress) -> Progress:
        return lax.cond(
            goes_on(now),
            lambda problem, now: advance(algorithm, problem, rule, now),
            lambda _, now: now,
            problem,
            now,
        )

    def body(now: Progress, _: None) -> tuple[Progress, None]:
        return advance_if_going_on(problem, now), None

    return lax.scan(body, begin, length=max_steps)[0], rule


class Moments(NamedTuple):
    """Of points less an origin, embedded as the distance takes them.

    Attributes:
        mass: Σ w, [].
        first: Σ w (x − m), [1, d], m the origin of a pass at the start.
        spread: Σ w D(x, mean), [], about the mean of these points.
    """

    mass: jax.Array
    first: jax.Array
    spread: jax.Array


def mean_variance(plan: Plan, problem: Problem, centroids: jax.Array) -> jax.Array:
    """The weighted variance of the features, averaged over them, [], in two passes.

    Of a distance that has means it is the mean distance to the mean, over d.
    """
    found = moments(plan, problem, centroids)
    every = jax.tree.map(lambda a: a[None], found)
    return variance_of(problem, centroids, every)


def moments(plan: Plan, problem: Problem, centroids: jax.Array) -> Moments:
    """The moments of the points of a problem, in two passes."""
    form = form_of(problem.distance) or Form()
    _, origin = centered(problem, form.embed(centroids))
    acc = origin.dtype
    weights = problem.weights
    weights = jnp.ones(problem.points.shape[0], acc) if weights is None else weights
    problem = problem._replace(weights=weights)

    def total(of_rows: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Σ w, and Σ w f of rows less the origin."""

        def block(x: jax.Array, w: Any):
            values = of_rows(form.embed(x) - origin)
            counted = (w != 0).reshape(-1, *(1,) * (values.ndim - 1))
            # Outside the domain a distance need not be finite.
            values = jnp.where(counted | jnp.isfinite(values), values, 0)
            total = jnp.sum(weigh(w, values), axis=0, keepdims=True)
            return (w.sum(), total), None

        found, _ = over_points(block, problem, block_for(1, origin.shape[1]), origin)
        return psum(found, plan.axis_name)

    def to_mean(y: jax.Array) -> jax.Array:
        # About the mean: E x² − (E x)² would cancel; and far from zero the mean itself
        # would be rounded.
        if form.is_invariant:
            return form.cost(y, first / mass)
        return form.cost(y + origin, origin + first / mass)

    mass, first = total(lambda y: y)
    return Moments(mass, first, jnp.sum(total(to_mean)[1]))


def variance_of(problem: Problem, centroids: jax.Array, parts: Moments) -> jax.Array:
    """The mean distance to the mean of all, over d, [], of the moments of parts.

    Σ w D(x, m) = Σ_b (Σ_{x in b} w D(x, m_b) + W_b D(m_b, m)), whatever divergence D.
    """
    form = form_of(problem.distance) or Form()
    _, origin = centered(problem, form.embed(centroids))
    mass, mean = parts.mass.sum(), parts.first.sum(axis=0) / parts.mass.sum()
    some = jnp.where(parts.mass > 0, parts.mass, 1)[:, None]
    means = jnp.where(parts.mass[:, None] > 0, parts.first[:, 0] / some, mean)
    if form.is_invariant:
        apart = form.cost(means, mean)
    else:
        apart = form.cost(means + origin, form.retract(origin + mean, origin))
    total = jnp.sum(parts.spread + jnp.where(parts.mass > 0, parts.mass * apart, 0))
    return total / (mass * max(1, origin.shape[1]))
