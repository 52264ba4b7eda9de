"""How far every point is from another label, and what rounding leaves open."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import block_for, over_points
from diffkm_jax._geometry import about, centered, masked, nearest, scores
from diffkm_jax._problem import Plan, Problem


def margins(
    plan: Plan, problem: Problem, centroids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The margin of every point, and how far centroids may move before its label does.

    Both [n] and infinite where there is one active cluster. The second is 0 where
    rounding may have chosen the label, and infinite in rows of weight zero.
    """
    c, m = centered(problem, centroids)
    around = about(m, c)
    active, (k, d) = problem.active, c.shape
    farthest = jnp.sqrt(jnp.max(jnp.sum(around**2, axis=1)))
    number = jnp.asarray(k) if active is None else active.sum()

    def block(x: jax.Array, w: jax.Array | None):
        score = masked(scores(x, around, m), active)
        first = nearest(score)
        index = lax.broadcasted_iota(jnp.int32, score.shape, 0)
        second = nearest(jnp.where(index == first[None], -jnp.inf, score))
        a, b = x - c[first], x - c[second]
        # No difference of squares, which would cancel far from both.
        margin = jnp.abs(jnp.sum((c[first] - c[second]) * (a + b), axis=1))
        roots = jnp.sqrt(jnp.sum(a * a, axis=1)) + jnp.sqrt(jnp.sum(b * b, axis=1))
        away = jnp.sqrt(jnp.sum((x - m) ** 2, axis=1))
        roots = jnp.where(roots > 0, roots, 1)
        bound = _rounding(d, farthest, away, margin / roots, roots)
        radius = (margin - bound) / (2 * roots) * (1 - _gamma(d, c.dtype))
        radius = jnp.where(jnp.isfinite(radius), jnp.maximum(radius, 0), 0)
        margin, radius = (jnp.where(number > 1, v, jnp.inf) for v in (margin, radius))
        if w is not None:
            margin = jnp.where((w != 0) | jnp.isfinite(margin), margin, jnp.inf)
            radius = jnp.where(w == 0, jnp.inf, radius)
        return (), (margin, radius)

    block_size = plan.block_size or block_for(k, d)
    return over_points(block, problem, block_size, m, squares=False)[1]


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
