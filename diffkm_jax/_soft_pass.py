"""The pass of soft assignment, r = softmax(−‖x − c‖²/T), and its derivative."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import block_for, finite_costs, over_points, psum, weigh
from diffkm_jax._geometry import (
    about,
    centered,
    masked,
    matmul,
    scores,
    sum_of_products,
)
from diffkm_jax._numerics import quotient
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._tangents import combine, is_zero, partition


class SoftSums(NamedTuple):
    """What a soft pass finds; the last two only if it was asked for them by point.

    Attributes:
        loss: The free energy F = −T Σ w log Σ_j exp(−‖x − c_j‖²/T), [].
        counts: Σ w r_j, [k].
        shifts: Σ w r_j (x − c_j), [k, d].
        entropy: −Σ w Σ_j r_j log r_j, [], which is −∂F/∂T.
        residuals: x − Σ_j r_j c_j of every point, [n, d], or None.
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
    c, m = centered(problem, centroids)
    b = about(m, c, problem.remainder)
    t = problem.temperature.astype(c.dtype)

    def block(x: jax.Array, w: jax.Array | None):
        half = scores(x, b, m)
        # The best score is taken off before it is scaled: scaled first, rounding grows
        # with 1/t, and exp overflows at small temperatures.
        best = lax.stop_gradient(masked(half, problem.active).max(0, keepdims=True))
        gap = half - best
        if differentiable:
            # Out where r = 0 anyway, or its derivative in t would be 0 · ∞ far away.
            low = lax.stop_gradient(gap < -1000 * t)
            score = quotient(2 * jnp.where(low, 0, gap), t)
            score = jnp.where(low, -jnp.inf, score)
        else:
            score = gap * (2 / t)
        score = masked(score, problem.active)
        unnormalized = jnp.exp(score)
        z = jnp.sum(unnormalized, axis=0, keepdims=True)
        r, log_z = unnormalized / z, jnp.log(z)[0]
        # −T log Σ_j exp(−‖x − c_j‖²/T), where ‖x − c_j‖² = ‖x − m‖² − 2 half_j.
        free = jnp.sum((x - m) ** 2, axis=1) - 2 * best[0] - t * log_z
        free = finite_costs(free, w)
        # −Σ r log r = log z − Σ r score. An excluded cluster has r = 0 and score −∞.
        entropy = log_z - jnp.sum(r * jnp.where(r > 0, score, 0), axis=0)
        wr = r if w is None else r * w[None]
        counts = jnp.sum(wr, axis=1)
        # Σ w r (x − c) = Σ w r (x − m) − n b with b = c − m, all of it near the origin.
        shifts = sum_of_products(wr, x - m) - counts[:, None] * b
        total = jnp.sum(weigh(w, free)), counts, shifts, jnp.sum(weigh(w, entropy))
        if not by_point:
            return total, (None, None)
        # Near the origin too: means about zero would round far from it.
        return total, ((x - m) - matmul(r.T, b), free)

    total, rows = over_points(
        block, problem, block_size, m, differentiable=differentiable
    )
    return SoftSums(*psum(total, plan.axis_name), *rows)


@partial(soft_pass.defjvp, symbolic_zeros=True)
def _soft_rule(plan: Plan, by_point: bool, primals: tuple, tangents: tuple):
    problem, centroids = primals
    dproblem, _ = tangents
    needed = not (is_zero(dproblem.points) and is_zero(dproblem.weights))
    out = soft_pass(plan, problem, centroids, by_point or needed)
    dloss = _loss_tangent(plan, problem, out, *tangents)
    if not by_point:
        out = out._replace(residuals=None, energies=None)
    dothers = _other_tangents(plan, primals, tangents, by_point)
    return out, dothers._replace(loss=dloss)


def _loss_tangent(
    plan: Plan, problem: Problem, out: SoftSums, dproblem: Any, dc: Any
) -> jax.Array:
    """DF = Σ 2 w (x − Σ_j r_j c_j)·dx + F_i dw_i − 2 shifts·dc − entropy dT."""
    dx, dw, dt = dproblem.points, dproblem.weights, dproblem.temperature
    acc, dloss = out.loss.dtype, jnp.zeros_like(out.loss)
    if not is_zero(dx):
        w = None if problem.weights is None else problem.weights.astype(acc)
        dloss += 2 * jnp.sum(out.residuals * weigh(w, dx.astype(acc)))
    if not is_zero(dw):
        dloss += jnp.sum(out.energies * dw.astype(acc))
    if not (is_zero(dx) and is_zero(dw)):
        dloss = psum(dloss, plan.axis_name)
    if not is_zero(dc):
        dloss -= 2 * jnp.sum(out.shifts * dc.astype(acc))
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
