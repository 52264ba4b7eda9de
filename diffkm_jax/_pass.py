"""One pass over the points, by the distance and the temperature that it is for.

No other file chooses by the distance. Here too is the pass of hard assignment, with one
rule for its derivative that is linear in the tangents and calls the decorated function,
so that every mode and every order of differentiation follows from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import zero_from_primal

from diffkm_jax._blocks import (
    block_for,
    fill_inert,
    fill_rows,
    finite_costs,
    over_points,
    psum,
    sum_by_label,
    weigh,
)
from diffkm_jax._distance_pass import distance_labels, distance_loss, distance_sums
from diffkm_jax._expansion import Expanded, expand
from diffkm_jax._geometry import masked, nearest
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._sharding import ROWS, over_rows
from diffkm_jax._soft_pass import soft_pass
from diffkm_jax._tangents import combine, is_zero, partition
from diffkm_jax.distances._forms import form_of, known_form


def has_means(problem: Problem) -> bool:
    """Whether the distance has means, so that its pass is a matrix product."""
    return form_of(problem.distance) is not None


@over_rows(1)
def sums(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss [], counts [k] and shifts [k, d]; these are −½ ∂loss/∂c without a mean."""
    if not has_means(problem):
        return distance_sums(plan, problem, centroids)
    if problem.temperature is None:
        return hard_pass(plan, problem, centroids)[:3]
    return soft_pass(plan, problem, centroids)[:3]


@over_rows(1)
def total_loss(plan: Plan, problem: Problem, centroids: jax.Array) -> jax.Array:
    """The loss alone, []: that of `sums`, without the gradient that it takes."""
    if has_means(problem):
        return sums(plan, problem, centroids)[0]
    return distance_loss(plan, problem, centroids)


@over_rows(1, ROWS)
def nearest_labels(plan: Plan, problem: Problem, centroids: jax.Array) -> jax.Array:
    """The index of the nearest centroid of every point, [n], int32."""
    problem, centroids = lax.stop_gradient((problem, centroids))
    if has_means(problem):
        return hard_pass(plan, problem._replace(temperature=None), centroids)[3]
    return distance_labels(plan, problem, centroids)


def sums_and_labels(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Both, in one pass where that finds both."""
    if rests_at_means(problem):
        *found, labels = hard_pass(plan, problem, centroids)
        return tuple(found), labels
    labels = nearest_labels(plan, problem, centroids)
    return sums(plan, problem, centroids), labels


def rests_at_means(problem: Problem) -> bool:
    """Whether the loss is least, for given labels, at the means of the clusters."""
    return has_means(problem) and problem.temperature is None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def hard_pass(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Loss [], counts [k], shifts [k, d], labels [n] of the nearest centroids."""
    given = expand(problem, centroids)
    form, _, c, expansion = given
    k, acc, free_centroids = len(c), c.dtype, form.directionless(c)

    def block(x: jax.Array, w: jax.Array | None):
        free, x = form.directionless(x), form.embed(x)
        label = nearest(masked(form.scores(x, expansion, free), problem.active))
        # Loss Σ w D and shifts Σ w e from the residual itself: Σ w x − n c, or an
        # expanded distance, would cancel far from the origin.
        own = c[label]
        e = x - own
        # Integer counts are exact; float32 stops counting at 2²⁴.
        one = jnp.ones_like(label) if w is None else w
        counts, shifts = (sum_by_label(v, label, k) for v in (one, weigh(w, e)))
        if free is not None and free_centroids is not None:
            free |= free_centroids[label]
        costs = finite_costs(form.cost(x, own, free), w)
        return (jnp.sum(weigh(w, costs)), counts, shifts), label

    total, labels = over_points(
        block,
        problem,
        plan.block_size or block_for(*c.shape),
        given.anchor,
        squares=False,
    )
    loss, counts, shifts = psum(total, plan.axis_name)
    counts = counts.astype(acc)
    if problem.remainder is not None:
        # At c + r, with u the shifts at c: shifts u − n r and, as ∂loss/∂c is −pull(u),
        # loss − Σ r·(pull(u) + pull(u − n r))/2.
        r = problem.remainder.astype(acc)
        moved = shifts - counts[:, None] * r
        pull = form.pull(given.given, shifts + moved, 2 * counts)
        loss, shifts = loss - 0.5 * jnp.sum(r * pull), moved
    return loss, counts, shifts, labels


@partial(hard_pass.defjvp, symbolic_zeros=True)
def _hard_rule(plan: Plan, primals: tuple, tangents: tuple):
    """With labels held constant, D the distance and e = x − c of its label.

    dloss = Σ w ∂D·(dx, dP) + D dw − Σ_j pull_j·dc_j,  dcounts_j = Σ dw,
    dshifts_j = Σ (w dx + e dw) − counts_j dc_j, the sums of j over its own points; x, c
    embedded, P the arrays that the distance holds.
    """
    (problem, centroids), (dproblem, dc) = primals, tangents
    dx, dw = dproblem.points, dproblem.weights
    loss, counts, shifts, labels = hard_pass(plan, problem, centroids)
    acc = loss.dtype
    given = expand(problem, centroids)
    dloss, dcounts, dshifts = jax.tree.map(jnp.zeros_like, (loss, counts, shifts))
    if not all(map(is_zero, (dx, dw, *jax.tree.leaves(dproblem.distance)))):
        # The only part that costs a pass: the gradient in the centroids has none.
        w = None if problem.weights is None else problem.weights.astype(acc)
        dcosts, de, costs, e = _row_tangents(problem, dproblem, given, labels, w)
        dloss += jnp.sum(weigh(w, dcosts))
        de = weigh(w, de)
        if not is_zero(dw):
            dw = dw.astype(acc)
            de += dw[:, None] * e
            dloss += jnp.sum(costs * dw)
            dcounts += sum_by_label(dw, labels, len(counts))
        dshifts += sum_by_label(de, labels, len(counts))
        dloss, dcounts, dshifts = psum((dloss, dcounts, dshifts), plan.axis_name)
    if not is_zero(dc):
        dc = dc.astype(acc)
        dloss -= jnp.sum(given.form.pull(given.given, shifts, counts) * dc)
        drows = jax.jvp(given.form.embed, (given.given,), (dc,))[1]
        dshifts -= counts[:, None] * drows
    dlabels = zero_from_primal(labels, symbolic_zeros=True)
    return (loss, counts, shifts, labels), (dloss, dcounts, dshifts, dlabels)


def _row_tangents(
    problem: Problem,
    dproblem: Problem,
    given: Expanded,
    labels: jax.Array,
    w: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The tangents of costs [n] and residuals [n, d], in points and distance; and both.

    Centroids are held constant; rows of weight zero that cost no finite number are
    taken to be their nearest centroid.
    """
    own = given.rows[labels]
    acc, r = own.dtype, 0
    x = fill_inert(problem.points.astype(acc), w, own, squares=False)
    if problem.remainder is not None:
        r = problem.remainder.astype(acc)[labels]

    def rows(x: jax.Array, distance: Any) -> tuple[jax.Array, jax.Array]:
        form = known_form(distance)
        embedded = form.embed(x)
        near = embedded - r if form.is_invariant else embedded
        return form.cost(near, own), embedded - own - r

    costs = rows(x, problem.distance)[0]
    x = fill_rows(x, w, costs, own)
    dx = dproblem.points
    primals = x, problem.distance
    tangents = dx if is_zero(dx) else dx.astype(acc), dproblem.distance
    moving, fixed, dmoving = partition(primals, tangents)
    (costs, e), (dcosts, de) = jax.jvp(
        lambda moving: rows(*combine(moving, fixed)), (moving,), (dmoving,)
    )
    return dcosts, de, costs, e
