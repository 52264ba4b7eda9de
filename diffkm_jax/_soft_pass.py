"""The pass of soft assignment, r = softmax(−distance/T), and its derivative."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import (
    block_for,
    fill_inert,
    finite_costs,
    over_points,
    psum,
    weigh,
)
from diffkm_jax._expansion import expand
from diffkm_jax._geometry import best_of, masked, matmul, sum_of_products
from diffkm_jax._numerics import quotient
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._tangents import combine, is_zero, partition
from diffkm_jax.distances._forms import known_form


class SoftSums(NamedTuple):
    """What a soft pass finds; the last two only if it was asked for them by point.

    Attributes:
        loss: The free energy F = −T Σ w log Σ_j exp(−distance_j/T), [].
        counts: Σ w r_j, [k].
        shifts: Σ w r_j (x − c_j), [k, d].
        entropy: −Σ w Σ_j r_j log r_j, [], which is −∂F/∂T.
        residuals: ∇φ(x) − Σ_j r_j ∇φ(c_j) of every embedded point, [n, d], or None: if
            squared Euclidean, x − Σ_j r_j c_j.
        energies: The free energy of every point, [n], or None.
    """

    loss: jax.Array
    counts: jax.Array
    shifts: jax.Array
    entropy: jax.Array
    residuals: Any
    energies: Any


@partial(jax.custom_jvp, nondiff_argnums=(0, 3))
def soft_pass(
    plan: Plan, problem: Problem, centroids: jax.Array, by_point: bool = False
) -> SoftSums:
    """The sums of a soft pass, by point too if asked."""
    block = plan.block_size or block_for(*centroids.shape)
    return soft_sums(plan, problem, centroids, block, by_point=by_point)


def soft_sums(
    plan: Plan,
    problem: Problem,
    centroids: jax.Array,
    block_size: int,
    *,
    by_point: bool = False,
    differentiable: bool = False,
) -> SoftSums:
    """The same without a rule: by autodiff of checkpointed blocks, `differentiable`."""
    given = expand(problem, centroids)
    form, c, expansion = given.form, given.rows, given.expansion
    t = problem.temperature.astype(c.dtype)

    def block(x: jax.Array, w: jax.Array | None):
        # Where the distance is not finite; on the sphere it is, of a row of zeros too.
        outside = None if form.is_curved else form.outside(x)
        if w is not None and outside is not None:
            x = jnp.where((outside & (w == 0))[:, None], given.anchor, x)
        free, x = form.directionless(x), form.embed(x)
        from_anchor = form.scores(x, expansion, free)
        # The best score is taken off before it is scaled: scaled first, rounding grows
        # with 1/t, and exp overflows at small temperatures.
        best, _ = best_of(lax.stop_gradient(masked(from_anchor, problem.active)))
        best_cost = form.energy(x, expansion) - form.scale * best
        gap = from_anchor - best[None]
        if differentiable:
            # Out where r = 0 anyway, or its derivative in t would be 0 · ∞ far away.
            low = lax.stop_gradient(gap < -1000 * t)
            score = quotient(form.scale * jnp.where(low, 0, gap), t)
            score = jnp.where(low, -jnp.inf, score)
        else:
            score = gap * (form.scale / t)
        score = masked(score, problem.active)
        p = jnp.exp(score)  # r = p / z
        z = jnp.sum(p, axis=0)
        log_z = jnp.log(z)
        # −T log Σ_j exp(−distance_j/T)
        energy = finite_costs(best_cost - t * log_z, w)
        # −Σ r log r = log z − Σ r score. An excluded cluster has p = 0 and score −∞.
        score = jnp.where(p > 0, score, 0)
        entropy = log_z - jnp.sum(p * score, axis=0) / z
        # Σ w r (x − c) = Σ p w y/z − n b with y and b from the origin, and near it; and
        # n = Σ p w/z is one more column of that product.
        share = (1 if w is None else w) / z
        y = jnp.concatenate([x - expansion.origin, jnp.ones_like(z)[:, None]], axis=1)
        sums = sum_of_products(p, share[:, None] * y)
        counts = sums[:, -1]
        shifts = sums[:, :-1] - counts[:, None] * expansion.centers
        total = jnp.sum(weigh(w, energy)), counts, shifts, jnp.sum(weigh(w, entropy))
        if not by_point:
            return total, (None, None)
        # Near the origin too: means about zero would round far from it.
        mean = matmul(p.T, expansion.duals) / z[:, None]
        return total, (form.slope(x, expansion, mean), energy)

    total, rows = over_points(
        block, problem, block_size, given.anchor, differentiable=differentiable
    )
    return SoftSums(*psum(total, plan.axis_name), *rows)


@partial(soft_pass.defjvp, symbolic_zeros=True)
def _soft_rule(plan: Plan, by_point: bool, primals: tuple, tangents: tuple):
    problem, centroids = primals
    dproblem, _ = tangents
    needed = not (is_zero(dproblem.points) and is_zero(dproblem.weights))
    out = soft_pass(plan, problem, centroids, by_point or needed)
    dloss = _loss_tangent(plan, out, primals, tangents)
    if not by_point:
        out = out._replace(residuals=None, energies=None)
    dothers = _other_tangents(plan, primals, tangents, by_point)
    return out, dothers._replace(loss=dloss)


def _loss_tangent(
    plan: Plan, out: SoftSums, primals: tuple, tangents: tuple
) -> jax.Array:
    """The sum of the parts of DF that points, weights, distance, c and T make.

    Σ s w (∇φ(x) − Σ_j r_j ∇φ(c_j))·dx + F_i dw_i + Σ w r_ij ∂D_ij/∂P·dP − pull_j·dc_j
    − entropy dT, P the arrays that the distance holds.
    """
    (problem, c), (dproblem, dc) = primals, tangents
    dx, dw, dt = dproblem.points, dproblem.weights, dproblem.temperature
    acc, dloss = out.loss.dtype, jnp.zeros_like(out.loss)
    w = None if problem.weights is None else problem.weights.astype(acc)
    given = expand(problem, c)
    form, m = given.form, given.anchor
    moving, fixed, dmoving = partition(problem.distance, dproblem.distance)
    has_moved = bool(jax.tree.leaves(dmoving))
    x = fill_inert(problem.points.astype(acc), w, m)
    if not is_zero(dx):
        dx = jax.jvp(form.embed, (x,), (dx.astype(acc),))[1]
        residuals = out.residuals
        if w is not None:
            inert = ~jnp.isfinite(residuals) & (w == 0)[:, None]
            residuals = jnp.where(inert, 0, residuals)
        dloss += form.scale * jnp.sum(residuals * weigh(w, dx))
    if not is_zero(dw):
        dloss += jnp.sum(out.energies * dw.astype(acc))
    if has_moved:

        def from_anchor(moving: Any) -> jax.Array:
            form = known_form(combine(moving, fixed))
            costs = finite_costs(form.cost(form.embed(x), m), w)
            return jnp.sum(weigh(w, costs))

        dloss += jax.jvp(from_anchor, (moving,), (dmoving,))[1]
    if not (is_zero(dx) and is_zero(dw)) or has_moved:
        dloss = psum(dloss, plan.axis_name)
    if has_moved:

        def scores(moving: Any) -> jax.Array:
            # Σ_ij w r_ij of the scores, which are D(x, m) − D(x, c_j).
            e = expand(problem._replace(distance=combine(moving, fixed)), c).expansion
            sums = out.shifts + out.counts[:, None] * e.centers
            total = jnp.sum(sums * e.duals) - jnp.sum(out.counts * e.offsets[:, 0])
            return form.scale * total

        dloss -= jax.jvp(scores, (moving,), (dmoving,))[1]
    if not is_zero(dc):
        dloss -= jnp.sum(
            form.pull(given.given, out.shifts, out.counts) * dc.astype(acc)
        )
    if not is_zero(dt):
        dloss -= out.entropy * dt.astype(acc)
    return dloss


def _other_tangents(
    plan: Plan, primals: tuple, tangents: tuple, by_point: bool
) -> SoftSums:
    """By autodiff: dead code if only the loss is differentiated, once."""
    moving, fixed, dmoving = partition(primals, tangents)
    block = plan.block_size or block_for(*primals[1].shape)
    # Autodiff holds several times as much of a block.
    block = min(block, max(256, block // 4))

    def others(moving: tuple) -> SoftSums:
        problem, centroids = combine(moving, fixed)
        out = soft_sums(
            plan, problem, centroids, block, by_point=by_point, differentiable=True
        )
        return out._replace(loss=None)

    return jax.jvp(others, (moving,), (dmoving,))[1]
