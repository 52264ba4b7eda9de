"""How far every point is from another label, and what rounding leaves open."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import block_for, over_points
from diffkm_jax._expansion import expand
from diffkm_jax._geometry import masked, nearest
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances._form import Form


def margins(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The margin of every point, and how far centroids may move before its label does.

    Both [n] and infinite where there is one active cluster. The radius is in the metric
    √(2 distance/s), 0 where rounding may have chosen the label, infinite in rows of
    weight zero, and NaN of a distance that is no squared metric.
    """
    given = expand(problem, centroids)
    form, c, e = given.form, given.rows, given.expansion
    active, (k, d) = problem.active, c.shape
    farthest = jnp.sqrt(jnp.max(jnp.sum(e.centers**2, axis=1)))
    steepest = jnp.sqrt(jnp.max(jnp.sum(e.duals**2, axis=1)))
    number = jnp.asarray(k) if active is None else active.sum()
    half, gamma = 2 / form.scale, _gamma(d, c.dtype)

    def block(x: jax.Array, w: jax.Array | None):
        free, x = form.directionless(x), form.embed(x)
        score = masked(form.scores(x, e, free), active)
        first = nearest(score)
        index = lax.broadcasted_iota(jnp.int32, score.shape, 0)
        second = nearest(jnp.where(index == first[None], -jnp.inf, score))
        a, b = c[first], c[second]
        # D(x, b) − D(x, a) = D(a, b) − ⟨∇φ(b) − ∇φ(a), x − a⟩: no difference of two
        # distances, which would cancel far from both.
        dual, apart = form.dual(b - a, a), form.cost(a, b)
        margin = jnp.abs(apart - form.scale * jnp.sum(dual * (x - a), axis=1))
        roots = sum(jnp.sqrt(half * form.cost(x, own)) for own in (a, b))
        roots = jnp.where(roots > 0, roots, 1)
        away = jnp.sqrt(jnp.sum((x - e.origin) ** 2, axis=1))
        if type(form) is Form:
            bound = _rounding(d, farthest, away, margin / roots, roots)
        else:
            # Of two scores, four times, as there, and of the margin itself.
            of_scores = away * steepest + jnp.max(jnp.abs(e.offsets))
            size = jnp.sqrt(jnp.sum(dual**2, axis=1) * jnp.sum((x - a) ** 2, axis=1))
            bound = form.scale * gamma * (8 * of_scores + 3 * size) + 3 * gamma * apart
        radius = half * (margin - bound) / (2 * roots) * (1 - gamma)
        radius = jnp.where(jnp.isfinite(radius), jnp.maximum(radius, 0), 0)
        if not form.is_metric:
            radius = jnp.where(radius > 0, jnp.nan, 0)
        margin, radius = (jnp.where(number > 1, v, jnp.inf) for v in (margin, radius))
        if w is not None:
            margin = jnp.where((w != 0) | jnp.isfinite(margin), margin, jnp.inf)
            radius = jnp.where(w == 0, jnp.inf, radius)
        return (), (margin, radius)

    # Scores with and without the nearest.
    block_size = plan.block_size or block_for(2 * k, d)
    return over_points(block, problem, block_size, given.anchor, squares=False)[1]


def _gamma(d: int, dtype: jnp.dtype) -> float:
    """The relative error of a sum of d products in any order, and a little more."""
    unit = (d + 16) * float(jnp.finfo(dtype).eps) / 2
    return unit / (1 - unit) if unit < 0.5 else 1.0


def _rounding(
    d: int, farthest: jax.Array, away: jax.Array, gap: jax.Array, roots: jax.Array
) -> jax.Array:
    """What rounding can do to a margin, [block], by the bound of a dot product.

    A score x·c − c²/2 about the anchor is wrong by at most γ |c| (|x| + |c|/2). Scores
    differ by half a margin, so that two of them, here, may hide a third centroid that
    is nearer by four times that. As much may go wrong once centroids, points or both
    have moved, by less than half the gap in all: then another centroid may be the
    anchor, at most `reach` from this one. The margin itself is wrong by at most γ times
    the distance of two centroids times `roots`.
    """
    gamma = _gamma(d, farthest.dtype)
    reach = farthest + gap / 2

    def of_score(c: jax.Array, x: jax.Array) -> jax.Array:
        return gamma * c * (x + c / 2)

    now = of_score(farthest, away)
    moved = of_score(2 * reach, away + reach)
    # 4 and 2 by the above; the rest is for the rounding of this bound itself.
    bound = 5 * (now + moved) + 3 * gamma * farthest * roots
    return bound + 32 * (d + 16) * float(jnp.finfo(farthest.dtype).tiny)
