"""One blocked pass over the points, hard or soft, and the derivative of all it returns.

Everything else reads the three numbers of `Statistics`. Taken at the same centroids
they add: over blocks, over devices, over batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from diffkm_jax._expansion import expand
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import per_count
from diffkm_jax._pass import has_means, nearest_labels, sums
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax.distances import Distance, squared_euclidean

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["Statistics", "assign", "statistics"]


class Statistics(NamedTuple):
    """What one pass over the points knows, in the accumulation dtype.

    One Newton, Lloyd or EM step adds `shifts / counts`. If squared Euclidean, the
    gradient of the loss in the centroids is −2 `shifts` and its Hessian (hard) the
    diagonal 2 `counts`; of a Bregman divergence D of φ they are −∇²φ(c) `shifts` and,
    at rest, ∇²φ(c) `counts`.

    Attributes:
        loss: Σ w min_j distance(x, c_j), or the free energy, [], in the unit of the
            distance.
        counts: Weight of every cluster, Σ w r_j, [k], in the unit of the weights.
        shifts: Σ w r_j (x − c_j), [k, d], in data units; under `cosine` of unit rows x
            and c; of a distance that has no means −½ ∂loss/∂c_j.
    """

    loss: Float[Array, ""]
    counts: Float[Array, " k"]
    shifts: Float[Array, "k d"]


export.register_namedtuple_serialization(
    Statistics, serialized_name="diffkm.Statistics"
)


@hinted
def statistics(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
    temperature: ArrayLike | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    block_size: int | None = None,
    axis_name: Axis = None,
) -> Statistics:
    """Loss, counts and shifts of the points about the centroids, in one blocked pass.

    Without a temperature every point counts for its nearest centroid, ties to the
    lowest index; with one it counts for all, by r = softmax(−distance/temperature).

    The gradient of every output is exact in points, centroids, weights, temperature and
    in the arrays that the distance holds, at every order, in forward and reverse mode,
    labels held constant between ties. That of the loss in the centroids costs nothing
    beyond the pass.

    Of a distance that has means the pass is one matrix product, and float32 finds the
    labels of float64 but for points whose two nearest are as near to about ε times the
    divergences from the middle of the centroids: clusters 10³ standard deviations apart
    need float64. Under `kl_divergence` and `itakura_saito` it is ε times the range of a
    coordinate over centroids that counts: at a ratio of 10⁴ clusters that differ by a
    factor of 1.1 are told apart, and by 1.01 but for some 0.1 % of their points.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN. None is ones.
        distance: Function of two arrays [..., d]; static by identity, or a tree of
            arrays, as `mahalanobis(P)`.
        temperature: Positive scalar, in the unit of `distance`; may be traced. None is
            the hard assignment.
        active: Clusters that exist, [k], bool, at least one of them true; the others
            get no point, whatever their centroid holds. None is all.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded and
            the three numbers are summed; or under `jax.jit`, where an Auto mesh hides
            it, the `NamedSharding` of points.

    Returns:
        Loss [], counts [k] and shifts [k, d] as `Statistics`, in float64 if any array
        is, else float32.

    Raises:
        TypeError: An array or `temperature` is not real, or `active` is not bool.
        ValueError: A shape does not fit; `temperature` is not a scalar, or a number
            and not positive and finite; `block_size` is below 1; a NumPy array has a
            row outside the domain of `distance`; `axis_name` is not an axis of the
            shard_map around.

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [9.0], [10.0]]), jnp.array([[0.0], [10.0]])
        >>> s = dk.statistics(x, c)
        >>> float(s.loss), s.counts.tolist(), s.shifts.tolist()
        (2.0, [2.0, 2.0], [[1.0], [-1.0]])
        >>> (c + s.shifts / s.counts[:, None]).tolist()  # A step of Lloyd's algorithm.
        [[0.5], [9.5]]

    Source: Bottou & Bengio 1995 (gradient, Newton),
        https://leon.bottou.org/papers/bottou-bengio-95;
        Rose 1998 (free energy), https://doi.org/10.1109/5.726788
    """
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=distance,
        weights=weights,
        active=active,
        temperature=temperature,
        block_size=block_size,
        axis_name=axis_name,
    )
    return statistics_of(plan, problem, centroids)


def statistics_of(plan: Plan, problem: Problem, centroids: jax.Array) -> Statistics:
    """The statistics at some centroids."""
    return Statistics(*sums(plan, problem, centroids))


def pull_of(problem: Problem, centroids: jax.Array, stats: Statistics) -> jax.Array:
    """−∂loss/∂centroids, [k, d], from the statistics at these centroids."""
    if not has_means(problem):
        return 2 * stats.shifts
    given = expand(problem, centroids)
    return given.form.pull(given.given, stats.shifts, stats.counts)


def mass_of(problem: Problem, centroids: jax.Array, stats: Statistics) -> jax.Array:
    """About what s ∇²φ(c_j) is to be multiplied by for the Hessian of the loss, [k]."""
    if not has_means(problem):
        return stats.counts
    given = expand(problem, centroids)
    return given.form.mass(given.rows, stats.shifts, stats.counts)


def inverse_root_of(
    problem: Problem, centroids: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The function v ↦ (s ∇²φ(c_j))^−½ v_j of arrays [k, d]; if squared, v/√2."""
    if not has_means(problem):
        return lambda v: v * 0.5**0.5
    given = expand(problem, centroids)
    return partial(given.form.inverse_root, given.rows)


def full_step(stats: Statistics) -> jax.Array:
    """shifts_j / counts_j, [k, d]; zero for clusters without weight."""
    return per_count(stats.shifts, stats.counts)


def means_of(problem: Problem, centroids: jax.Array, stats: Statistics) -> jax.Array:
    """The centroids after a full step, [k, d], for a distance that has means."""
    given = expand(problem, centroids)
    return given.form.retract(given.rows + full_step(stats), given.rows)


def residual_of(problem: Problem, centroids: jax.Array, stats: Statistics) -> jax.Array:
    """Σ_j distance(c_j + shifts_j / counts_j, c_j) over clusters with weight, [].

    In squares of the step for a distance that has no means.
    """
    step = full_step(stats)
    if not has_means(problem):
        return jnp.sum(step**2)
    given = expand(problem, centroids)
    return given.form.step_cost(given.rows, step)


@hinted
def assign(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    active: Bool[ArrayLike, " k"] | None = None,
    distance: Distance = squared_euclidean,
    block_size: int | None = None,
) -> Int[Array, " n"]:
    """The index of the nearest centroid of every point.

    The labels are integers: they have no gradient, and need none, because the losses
    are differentiable with the labels held constant.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        active: Clusters that exist, [k], bool; None is all.
        distance: Function of two arrays [..., d]; static by identity, or a tree of
            arrays, as `mahalanobis(P)`.
        block_size: Points in a block, static; None chooses it by shape.

    Returns:
        Labels, [n], int32, ties to the lowest index; a point of NaN gets some label in
        range.

    Raises:
        TypeError: `points` or `centroids` is not real, `active` is not bool, or
            `distance` no function.
        ValueError: A shape does not fit, `block_size` is below 1, or a NumPy array has
            a row outside the domain of `distance`.

    Example:
        >>> x, c = jnp.array([[1.0], [5.0], [9.0]]), jnp.array([[0.0], [10.0]])
        >>> dk.assign(x, c).tolist()  # 5 is tied.
        [0, 0, 1]
        >>> dk.assign(x, c, active=jnp.array([False, True])).tolist()
        [1, 1, 1]

    Source: Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489
    """
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=distance,
        active=active,
        block_size=block_size,
    )
    return nearest_labels(plan, problem, centroids)
