"""The hard and the soft pass over the points, each with one rule for its derivative.

The rules are linear in the tangents and call the decorated function, so every mode and
every order of differentiation follows from them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from diffkm_jax._blocks import (
    anchor,
    blocked,
    inert,
    live,
    masked,
    matmul,
    nearest,
    psum,
    row_weights,
    scores,
    weigh,
)
from diffkm_jax._checks import accumulation_dtype


class Plan(NamedTuple):
    """What is static about a pass; `rows` asks the soft one for results by point."""

    block_size: int
    axis_name: str | None = None
    rows: bool = False


def is_zero(tangent: Any) -> bool:
    """Whether a tangent is known to vanish, so that its work can be left out."""
    return tangent is None or isinstance(tangent, SymbolicZero)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def hard_pass(
    plan: Plan,
    points: jax.Array,
    centroids: jax.Array,
    weights: jax.Array | None,
    active: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Loss [], counts [k], shifts [k, d], labels [n] of the nearest centroids."""
    acc, k = accumulation_dtype(points, centroids, weights), len(centroids)
    c = centroids.astype(acc)
    m = anchor(c, active)
    c, weights = live(c, active, m), row_weights(points, weights, acc)

    def block(x: jax.Array, w: jax.Array | None):
        w = None if w is None else w.astype(acc)
        x = inert(x.astype(acc), w, m)
        label = nearest(masked(scores(x, c, m), active))
        e = x - c[label]
        one = 1 if w is None else w
        # Integer counts are exact; float32 stops counting at 2²⁴.
        zeros = jnp.zeros(k, jnp.int32 if w is None else acc)
        counts = zeros.at[label].add(one)
        shifts = jnp.zeros_like(c).at[label].add(weigh(w, e))
        return (jnp.sum(weigh(w, jnp.sum(e * e, axis=1))), counts, shifts), label

    total, labels = blocked(block, plan.block_size, (points, weights))
    loss, counts, shifts = psum(total, plan.axis_name)
    return loss, counts.astype(acc), shifts, labels


@partial(hard_pass.defjvp, symbolic_zeros=True)
def _hard_rule(plan: Plan, primals: tuple, tangents: tuple):
    (points, centroids, weights, _), (dx, dc, dw, _) = primals, tangents
    loss, counts, shifts, labels = hard_pass(plan, *primals)
    acc = loss.dtype
    dloss, dcounts, dshifts = jax.tree.map(jnp.zeros_like, (loss, counts, shifts))
    if not (is_zero(dx) and is_zero(dw)):
        own = centroids.astype(acc)[labels]
        e = inert(points.astype(acc), weights, own) - own
        w = None if weights is None else weights.astype(acc)
        de = jnp.zeros_like(e) if is_zero(dx) else weigh(w, dx.astype(acc))
        dloss += 2 * jnp.sum(e * de)
        if not is_zero(dw):
            dw = dw.astype(acc)
            de += dw[:, None] * e
            dloss += jnp.sum(jnp.sum(e * e, axis=1) * dw)
            dcounts = dcounts.at[labels].add(dw)
        dshifts = dshifts.at[labels].add(de)
        dloss, dcounts, dshifts = psum((dloss, dcounts, dshifts), plan.axis_name)
    if not is_zero(dc):
        dc = dc.astype(acc)
        dloss -= 2 * jnp.sum(shifts * dc)
        dshifts -= counts[:, None] * dc
    dlabels = zero_from_primal(labels, symbolic_zeros=True)
    return (loss, counts, shifts, labels), (dloss, dcounts, dshifts, dlabels)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def soft_pass(
    plan: Plan,
    points: jax.Array,
    centroids: jax.Array,
    weights: jax.Array | None,
    temperature: jax.Array,
    active: jax.Array | None,
):
    """Free energy [], counts [k], shifts [k, d], entropy [], and results by point.

    The last is None without `plan.rows`, else the expected centroid [n, d] and the
    free energy [n] of every point.
    """
    return _soft(
        plan, points, centroids, weights, temperature, active, differentiable=False
    )


def _soft(
    plan: Plan,
    points: jax.Array,
    centroids: jax.Array,
    weights: jax.Array | None,
    temperature: jax.Array,
    active: jax.Array | None,
    *,
    differentiable: bool,
):
    acc = accumulation_dtype(points, centroids, weights)
    c, t = centroids.astype(acc), temperature.astype(acc)
    m = anchor(c, active)
    c, weights = live(c, active, m), row_weights(points, weights, acc)

    def block(x: jax.Array, w: jax.Array | None, c: jax.Array, t: jax.Array):
        w = None if w is None else w.astype(acc)
        x = inert(x.astype(acc), w, m)
        half = scores(x, c, m)
        # The best score is taken off before it is scaled: scaled first, rounding grows
        # with 1/t, and exp overflows at small temperatures.
        best = lax.stop_gradient(masked(half, active).max(0, keepdims=True))
        score = masked((half - best) * (2 / t), active)
        unnormalized = jnp.exp(score)
        z = jnp.sum(unnormalized, axis=0, keepdims=True)
        r, log_z = unnormalized / z, jnp.log(z)[0]
        free = jnp.sum((x - m) ** 2, axis=1) - 2 * best[0] - t * log_z
        # An excluded cluster has r = 0 and score −∞.
        entropy = log_z - jnp.sum(r * jnp.where(r > 0, score, 0), axis=0)
        wr = r if w is None else r * w[None]
        counts = jnp.sum(wr, axis=1)
        shifts = matmul(wr, x - m) - counts[:, None] * (c - m)
        sums = jnp.sum(weigh(w, free)), counts, shifts, jnp.sum(weigh(w, entropy))
        return sums, (matmul(r.T, c - m) + m, free) if plan.rows else None

    if differentiable:
        # Each nested reverse pass spends one checkpoint: two keep second order flat.
        block = jax.checkpoint(jax.checkpoint(block))
    total, rows = blocked(
        lambda x, w: block(x, w, c, t),
        plan.block_size,
        (points, weights),
        differentiable=differentiable,
    )
    return *psum(total, plan.axis_name), rows


@partial(soft_pass.defjvp, symbolic_zeros=True)
def _soft_rule(plan: Plan, primals: tuple, tangents: tuple):
    (points, _, weights, _, active), (dx, dc, dw, dt, _) = primals, tangents
    by_point = not (is_zero(dx) and is_zero(dw))
    plan_here = plan._replace(rows=plan.rows or by_point)
    loss, counts, shifts, entropy, rows = soft_pass(plan_here, *primals)
    acc, dloss = loss.dtype, jnp.zeros_like(loss)
    if not is_zero(dx):
        mean = rows[0]
        e = inert(points.astype(acc), weights, mean) - mean
        w = None if weights is None else weights.astype(acc)
        dloss += 2 * jnp.sum(e * weigh(w, dx.astype(acc)))
    if not is_zero(dw):
        dloss += jnp.sum(rows[1] * dw.astype(acc))
    if by_point:
        dloss = psum(dloss, plan.axis_name)
    if not is_zero(dc):
        dloss -= 2 * jnp.sum(shifts * dc.astype(acc))
    if not is_zero(dt):
        dloss -= entropy * dt.astype(acc)

    # The other outputs by autodiff of checkpointed blocks: dead code if only the loss
    # is differentiated, once.
    live_args = [i for i in range(4) if not is_zero(tangents[i])]
    # They hold several times as much of a block.
    small = min(plan.block_size, max(256, plan.block_size // 4))
    plan_small = plan._replace(block_size=small)

    def rest(*args: jax.Array):
        full = dict(enumerate(primals[:4])) | dict(zip(live_args, args, strict=True))
        x, c, w, t = full.values()
        return _soft(plan_small, x, c, w, t, active, differentiable=True)[1:]

    some_primals = [primals[i] for i in live_args]
    _, drest = jax.jvp(rest, some_primals, [tangents[i] for i in live_args])
    out = loss, counts, shifts, entropy, rows if plan.rows else None
    return out, (dloss, *drest)
