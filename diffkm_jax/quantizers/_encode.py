"""The pass of a quantizer: labels, nearest or drawn, their centroids and losses."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import (
    block_for,
    fill_inert,
    fill_rows,
    finite_costs,
    over_points,
    psum,
    rows_of,
    sum_by_label,
    weigh,
)
from diffkm_jax._expansion import expand
from diffkm_jax._geometry import centered, largest, masked, nearest
from diffkm_jax._pass import has_means, sums_and_labels
from diffkm_jax._problem import Plan, Problem, Rows
from diffkm_jax._sharding import over_rows, specs_of
from diffkm_jax.distances import pairwise
from diffkm_jax.distances._pairwise import evaluate


class Encoded(NamedTuple):
    """Points and what they are replaced by, in the accumulation dtype.

    Attributes:
        points: [n, d]; what is not finite, where the weight is zero, is the code.
        codes: The centroid of every label, [n, d].
        labels: [n], int32.
        codebook_loss: [].
        commitment_loss: [].
        counts: [k].
    """

    points: jax.Array
    codes: jax.Array
    labels: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array
    counts: jax.Array


@over_rows(1, specs_of(Encoded, "points", "codes", "labels"))
def encode(
    plan: Plan, problem: Problem, centroids: jax.Array, noise: Rows | None
) -> Encoded:
    """By the nearest centroids; or by drawn ones, at the temperature of a problem."""
    # The value of both losses is the same; each holds one side of it constant.
    held = problem._replace(points=lax.stop_gradient(problem.points))
    codebook_loss = None
    if noise is None:
        (codebook_loss, _, _), labels = sums_and_labels(plan, held, centroids)
    else:
        labels = _drawn(plan, problem, centroids, noise.array)
    codes = rows_of(centered(problem, centroids)[0], labels)
    acc, fixed = codes.dtype, lax.stop_gradient(codes)
    w = None if problem.weights is None else problem.weights.astype(acc)
    x = fill_inert(problem.points.astype(acc), w, fixed, squares=False)

    def costs(x: jax.Array, codes: jax.Array) -> jax.Array:
        return evaluate(problem.distance, x, codes)

    finite = x if w is None else fill_rows(x, w, costs(x, fixed), fixed)
    of_points = finite_costs(costs(finite, fixed), w)
    commitment_loss = psum(jnp.sum(weigh(w, of_points)), plan.axis_name)
    if codebook_loss is None:
        of_codes = finite_costs(costs(lax.stop_gradient(finite), codes), w)
        codebook_loss = psum(jnp.sum(weigh(w, of_codes)), plan.axis_name)
    one = jnp.ones_like(labels) if w is None else lax.stop_gradient(w)
    taken = jnp.isfinite(lax.stop_gradient(of_points)) & jnp.isfinite(one)
    counts = sum_by_label(jnp.where(taken, one, 0), labels, len(centroids))
    counts = psum(counts, plan.axis_name).astype(acc)
    return Encoded(x, codes, labels, codebook_loss, commitment_loss, counts)


def _drawn(
    plan: Plan, problem: Problem, centroids: jax.Array, noise: jax.Array
) -> jax.Array:
    """The index of the largest of −distance / temperature + noise, [n], int32."""
    problem, centroids, noise = lax.stop_gradient((problem, centroids, noise))
    if has_means(problem):
        form, _, c, expansion = expand(problem, centroids)
        size, fill = block_for(*c.shape), expansion.anchor

        def score(x: jax.Array) -> jax.Array:
            free = form.directionless(x)
            return form.scale * form.scores(form.embed(x), expansion, free)
    else:
        c, fill = centered(problem, centroids)
        size = block_for(1, c.size)

        def score(x: jax.Array) -> jax.Array:
            return -pairwise(x, c, distance=problem.distance).T

    t = problem.temperature.astype(c.dtype)

    def block(x: jax.Array, w: jax.Array | None, noise: jax.Array):
        del w
        from_best = masked(score(x), problem.active)
        from_best = from_best - largest(from_best)[None]
        # Less the best before it is scaled, which may overflow.
        perturbed = from_best / t + noise.astype(t.dtype).T
        return (), nearest(masked(perturbed, problem.active))

    size = plan.block_size or size
    return over_points(block, problem, size, fill, noise, squares=False)[1]
