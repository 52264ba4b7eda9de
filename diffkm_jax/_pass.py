"""One pass over the points, by the distance and the temperature that it is for.

No other file looks at the distance. Here too is the pass of hard assignment, with one
rule for its derivative that is linear in the tangents and calls the decorated function,
so that every mode and every order of differentiation follows from it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import zero_from_primal

from diffkm_jax._blocks import (
    block_for,
    fill_inert,
    finite_costs,
    over_points,
    psum,
    sum_by_label,
    weigh,
)
from diffkm_jax._distance_pass import distance_labels, distance_loss, distance_sums
from diffkm_jax._geometry import about, centered, masked, nearest, scores
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._soft_pass import soft_pass
from diffkm_jax._tangents import is_zero
from diffkm_jax.distances import squared_euclidean


def is_expanded(plan: Plan) -> bool:
    """Whether the distance is one whose pass is a matrix product, with its own rule."""
    return plan.distance is squared_euclidean


@partial(jax.jit, static_argnums=0)
def sums(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss [], counts [k] and shifts [k, d] = −½ ∂loss/∂centroids."""
    if not is_expanded(plan):
        return distance_sums(plan, problem, centroids)
    if problem.temperature is None:
        return hard_pass(plan, problem, centroids)[:3]
    return soft_pass(plan, problem, centroids)[:3]


@partial(jax.jit, static_argnums=0)
def total_loss(plan: Plan, problem: Problem, centroids: jax.Array) -> jax.Array:
    """The loss alone, []: that of `sums`, without the gradient that it takes."""
    if is_expanded(plan):
        return sums(plan, problem, centroids)[0]
    return distance_loss(plan, problem, centroids)


@partial(jax.jit, static_argnums=0)
def nearest_labels(plan: Plan, problem: Problem, centroids: jax.Array) -> jax.Array:
    """The index of the nearest centroid of every point, [n], int32."""
    problem, centroids = lax.stop_gradient((problem, centroids))
    if is_expanded(plan):
        return hard_pass(plan, problem._replace(temperature=None), centroids)[3]
    return distance_labels(plan, problem, centroids)


def sums_and_labels(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Both, in one pass where that finds both."""
    if rests_at_means(plan, problem):
        *found, labels = hard_pass(plan, problem, centroids)
        return tuple(found), labels
    labels = nearest_labels(plan, problem, centroids)
    return sums(plan, problem, centroids), labels


def rests_at_means(plan: Plan, problem: Problem) -> bool:
    """Whether the loss is least, for given labels, at the means of the clusters."""
    return is_expanded(plan) and problem.temperature is None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def hard_pass(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Loss [], counts [k], shifts [k, d], labels [n] of the nearest centroids."""
    c, m = centered(problem, centroids)
    b, k, acc = about(m, c, problem.remainder), len(c), c.dtype

    def block(x: jax.Array, w: jax.Array | None):
        label = nearest(masked(scores(x, b, m), problem.active))
        # Loss Σ w e·e and shifts Σ w e from the residual itself: Σ w x − n c, or an
        # expanded square, would cancel far from the origin.
        e = x - c[label]
        # Integer counts are exact; float32 stops counting at 2²⁴.
        one = jnp.ones_like(label) if w is None else w
        counts, shifts = (sum_by_label(v, label, k) for v in (one, weigh(w, e)))
        squared = finite_costs(jnp.sum(e * e, axis=1), w)
        return (jnp.sum(weigh(w, squared)), counts, shifts), label

    total, labels = over_points(
        block, problem, plan.block_size or block_for(*c.shape), m, squares=False
    )
    loss, counts, shifts = psum(total, plan.axis_name)
    counts = counts.astype(acc)
    if problem.remainder is not None:
        # At c + r, with u the shifts at c: shifts u − n r, loss − Σ r·(2u − n r).
        r = problem.remainder.astype(acc)
        moved = shifts - counts[:, None] * r
        loss, shifts = loss - jnp.sum(r * (shifts + moved)), moved
    return loss, counts, shifts, labels


@partial(hard_pass.defjvp, symbolic_zeros=True)
def _hard_rule(plan: Plan, primals: tuple, tangents: tuple):
    """With labels held constant and e = x − c of its label.

    dloss = Σ 2 w e·dx + e·e dw − 2 shifts·dc,  dcounts_j = Σ dw,
    dshifts_j = Σ (w dx + e dw) − counts_j dc_j, the sums of j over its own points.
    """
    (problem, centroids), (dproblem, dc) = primals, tangents
    dx, dw = dproblem.points, dproblem.weights
    loss, counts, shifts, labels = hard_pass(plan, problem, centroids)
    acc = loss.dtype
    dloss, dcounts, dshifts = jax.tree.map(jnp.zeros_like, (loss, counts, shifts))
    if not (is_zero(dx) and is_zero(dw)):
        # The only part that costs a pass: the gradient in the centroids has none.
        own = centroids.astype(acc)[labels]
        w = None if problem.weights is None else problem.weights.astype(acc)
        e = fill_inert(problem.points.astype(acc), w, own) - own
        if problem.remainder is not None:
            e -= problem.remainder.astype(acc)[labels]
        de = jnp.zeros_like(e) if is_zero(dx) else weigh(w, dx.astype(acc))
        dloss += 2 * jnp.sum(e * de)
        if not is_zero(dw):
            dw = dw.astype(acc)
            de += dw[:, None] * e
            dloss += jnp.sum(finite_costs(jnp.sum(e * e, axis=1), w) * dw)
            dcounts += sum_by_label(dw, labels, len(counts))
        dshifts += sum_by_label(de, labels, len(counts))
        dloss, dcounts, dshifts = psum((dloss, dcounts, dshifts), plan.axis_name)
    if not is_zero(dc):
        dc = dc.astype(acc)
        dloss -= 2 * jnp.sum(shifts * dc)
        dshifts -= counts[:, None] * dc
    dlabels = zero_from_primal(labels, symbolic_zeros=True)
    return (loss, counts, shifts, labels), (dloss, dcounts, dshifts, dlabels)
