"""Clusters of given or bounded size at given centroids: labels, and the soft plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from diffkm_jax._checks import check_given
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted
from diffkm_jax._problem import Problem
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting._bounded import check_bounded
from diffkm_jax.fitting._bounded_pass import plan_at, shared
from diffkm_jax.fitting._bounds import Bounds, as_bounds

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, Int


@hinted
def assign_bounded(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    min_size: ArrayLike | None = None,
    max_size: ArrayLike | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
) -> Int[Array, " n"]:
    """The labels of least total distance under bounds on the sizes of clusters.

    Exactly optimal, and sizes are met exactly. The labels are integers and have no
    gradient. All distances are held, [k, n].

    Args:
        points: As in `fit_bounded`.
        centroids: Centroids, [k, d], real, in data units.
        min_size: As in `fit_bounded`.
        max_size: As in `fit_bounded`.
        weights: 1, or 0 for a row that does not count, [n], no unit; None is ones.
        distance: As in `fit_bounded`.

    Returns:
        Labels, [n], int32; of rows of weight 0 the nearest. All are −1 if sizes that
        could not be read cannot be met, or data are not finite.

    Raises:
        TypeError: An array is not real, or `distance` no function.
        ValueError: A shape does not fit; `min_size` adds up to more than the points, or
            `max_size` to less; one is negative or no whole number, or `min_size` above
            `max_size`; a weight is not 0 or 1; `distance` has no means; points are
            sharded; or a NumPy array has a row outside the domain of `distance`.

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [2.0], [9.0]]), jnp.array([[0.0], [9.0]])
        >>> dk.assign(x, c).tolist(), dk.assign_bounded(x, c, max_size=2).tolist()
        ([0, 0, 0, 1], [0, 0, 1, 1])

    Source: Murota 2003, https://doi.org/10.1137/1.9780898718508
    """
    plan, problem, centroids = as_problem(
        points, centroids, distance=distance, weights=weights
    )
    check_bounded(plan, problem)
    shape, acc = (problem.points.shape[0], len(centroids)), problem.dtype(centroids)
    bounds = as_bounds(min_size, max_size, weights, shape, acc, hard=True)
    return _shares(problem, centroids, bounds)


@hinted
def soft_assign_bounded(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    temperature: ArrayLike,
    min_size: ArrayLike | None = None,
    max_size: ArrayLike | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
) -> Float[Array, "n k"]:
    """The shares of points in clusters of bounded size: entropic transport.

    The plan P that minimizes Σ_ij w_i P_ij (distance_ij + temperature log P_ij), its
    rows summing to one and its columns Σ_i w_i P_ij within the bounds. The gradient is
    exact in points, centroids, weights, temperature and sizes, at every order, while
    the same bounds hold: by the implicit function theorem for the prices of clusters.
    Where all sizes are given, that in sizes is of changes with sum zero.

    Args:
        points: As in `fit_bounded`.
        centroids: Centroids, [k, d], real, in data units.
        temperature: Positive scalar in the unit of `distance`; may be traced.
        min_size: As in `fit_bounded`: in the unit of the weights.
        max_size: As in `fit_bounded`: in the unit of the weights.
        weights: As in `fit_bounded`.
        distance: As in `fit_bounded`.

    Returns:
        Rows that sum to one, [n, k], float64 if an array is, else float32; columns as
        in `fit_bounded`. NaN if sizes that could not be read cannot be met, if they are
        missed, or if data are not finite.

    Raises:
        TypeError: An array or `temperature` is not real, or `distance` no function.
        ValueError: A shape does not fit; `temperature` is not a scalar, or a number and
            not positive; `min_size` adds up to more than the weights, or `max_size` to
            less; one is negative, or `min_size` above `max_size`; `distance` has no
            means; points are sharded; or a NumPy array has a row outside the domain of
            `distance`.

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [2.0], [9.0]]), jnp.array([[0.0], [9.0]])
        >>> rows = dk.soft_assign_bounded(x, c, temperature=9.0, max_size=2.0)
        >>> [f"{p:.2f}" for p in rows.sum(axis=0)], f"{rows[2, 1]:.2f}"
        (['2.00', '2.00'], '0.71')

    Source: Cuturi 2013, https://arxiv.org/abs/1306.0895
    """
    check_given("temperature", temperature)
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=distance,
        weights=weights,
        temperature=temperature,
    )
    check_bounded(plan, problem)
    shape, acc = (problem.points.shape[0], len(centroids)), problem.dtype(centroids)
    bounds = as_bounds(min_size, max_size, weights, shape, acc, hard=False)
    return _shares(problem, centroids, bounds)


@jax.jit
def _shares(problem: Problem, centroids: jax.Array, bounds: Bounds) -> jax.Array:
    shares = shared(problem, centroids, bounds, jnp.zeros_like(bounds.low))
    if problem.temperature is None:
        return jnp.where(shares.usable, shares.labels, -1)
    return plan_at(problem, centroids, bounds, shares)
