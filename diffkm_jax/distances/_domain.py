"""For which points and centroids a distance of this library is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax._blocks import psum
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances._divergences import itakura_saito, kl_divergence
from diffkm_jax.distances._metrics import cosine

Excluded = Callable[[jax.Array], jax.Array]


class Domain(NamedTuple):
    """Functions of rows [n, d] that say which of them, [n], are not in the domain.

    A NaN is no reason.
    """

    points: Excluded
    centroids: Excluded


def domain_of(distance: Callable) -> Domain | None:
    """The domain of a distance, or None if it is all rows, or not known."""
    if distance is cosine:
        return Domain(_zero, _zero)
    if distance is kl_divergence:
        return Domain(_negative, _not_positive)
    if distance is itakura_saito:
        return Domain(_not_positive, _not_positive)
    return None


def out_of_domain(plan: Plan, problem: Problem, *centroids: jax.Array) -> jax.Array:
    """Whether a point of positive weight, or an active centroid of any set, is, []."""
    domain, points, weights = domain_of(plan.distance), problem.points, problem.weights
    if domain is None:
        return jnp.zeros((), bool)
    acc = accumulation_dtype(points, weights, *centroids)
    outside = domain.points(points.astype(acc))
    if weights is not None:
        outside &= weights > 0
    found = psum(outside.any().astype(jnp.int32), plan.axis_name) > 0
    for c in centroids:
        outside = domain.centroids(c.astype(acc))
        if problem.active is not None:
            outside &= problem.active
        found |= outside.any()
    return found


def _zero(rows: jax.Array) -> jax.Array:
    # As to `cosine`, which takes a subnormal number for zero.
    return (jnp.abs(rows) < jnp.finfo(rows.dtype).tiny).all(axis=-1)


def _negative(rows: jax.Array) -> jax.Array:
    # A minimum takes a tenth of the time of `any`.
    return rows.min(axis=-1, initial=jnp.inf) < 0


def _not_positive(rows: jax.Array) -> jax.Array:
    return rows.min(axis=-1, initial=jnp.inf) <= 0
