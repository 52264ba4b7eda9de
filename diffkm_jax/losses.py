"""K-means losses: sums over the points, with exact derivatives.

For a distance that has means they are the loss of `statistics`, derivative and all. Any
other goes through plain autodiff of the distance at the nearest centroid, block by
block, so that arrays it closes over have gradients too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import fill_inert, fill_rows, weigh
from diffkm_jax._checks import check_callable, check_given
from diffkm_jax._distance_pass import heaviest_of_all
from diffkm_jax._geometry import centered
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import quotient
from diffkm_jax._pass import total_loss
from diffkm_jax._problem import Axis
from diffkm_jax.distances import Distance, pairwise, squared_euclidean

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float

__all__ = ["assigned_loss", "kmeans_loss", "soft_kmeans_loss"]


class Assignment(Protocol):
    """A map from logits [..., k] to rows of an assignment matrix [..., k]."""

    def __call__(self, logits: jax.Array, /) -> jax.Array:
        """The rows for these logits."""
        ...


@hinted
def kmeans_loss(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
    active: Bool[ArrayLike, " k"] | None = None,
    block_size: int | None = None,
    axis_name: Axis = None,
) -> Float[Array, ""]:
    """The k-means loss, Σ_i w_i min_j distance(x_i, c_j): inertia, if squared.

    The gradient is exact wherever no point is tied, with labels held constant: for the
    squared Euclidean distance 2 n_j (c_j − mean of cluster j) in the centroids,
    2 w (x − c) in the points and ‖x − c‖² in the weights, and the Hessian in the
    centroids is the diagonal 2 n_j. At a tie the first of the nearest gets it all.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN. None is ones.
        distance: Function of two arrays [..., d]; static by identity, or a tree of
            arrays, as `mahalanobis(P)`.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; or
            under `jax.jit`, where an Auto mesh hides it, the `NamedSharding` of points.

    Returns:
        The loss, [], in the unit of `distance` times that of the weights, float64 if
        any array is, else float32.

    Raises:
        TypeError: An array is not real, `active` is not bool, or `distance` no
            function.
        ValueError: A shape does not fit, `block_size` is below 1, a NumPy array has a
            row outside the domain of `distance`, or `axis_name` is not an axis of the
            shard_map around.

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [9.0], [10.0]]), jnp.array([[0.0], [10.0]])
        >>> loss, gradient = jax.value_and_grad(dk.kmeans_loss, argnums=1)(x, c)
        >>> float(loss), gradient.tolist()  # 4 (0 - 0.5) and 4 (10 - 9.5)
        (2.0, [[-2.0], [2.0]])

    Source: Bottou & Bengio 1995,
        https://leon.bottou.org/papers/bottou-bengio-95
    """
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=distance,
        weights=weights,
        active=active,
        block_size=block_size,
        axis_name=axis_name,
    )
    return total_loss(plan, problem, centroids)


@hinted
def soft_kmeans_loss(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    temperature: ArrayLike,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
    active: Bool[ArrayLike, " k"] | None = None,
    block_size: int | None = None,
    axis_name: Axis = None,
) -> Float[Array, ""]:
    """The soft k-means loss or free energy, −T Σ_i w_i log Σ_j exp(−distance_ij/T).

    The gradient is exact: with r = softmax(−distance/T), and for the squared Euclidean
    distance, −2 Σ_i w_i r_ij (x_i − c_j) in centroid j, 2 w_i Σ_j r_ij (x_i − c_j) in
    point i, and minus the weighted entropy of r in the temperature. As T → 0 the loss
    becomes `kmeans_loss`, from below, by at most T log k for every unit of weight.

    Distances that have means are expanded about a centroid m in the middle of the
    others, so that this loss and its gradient are decided to about ε(D(x, m) + D(m, c))
    for every unit of weight, if squared ε(‖x − m‖² + ‖c − m‖²): groups of points 10³
    standard deviations apart need float64.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        temperature: Positive scalar T, in the unit of `distance`; may be traced.
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN. None is ones.
        distance: Function of two arrays [..., d]; static by identity, or a tree of
            arrays, as `mahalanobis(P)`.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; or
            under `jax.jit`, where an Auto mesh hides it, the `NamedSharding` of points.

    Returns:
        The free energy, [], in the unit of `distance` times that of the weights,
        float64 if any array is, else float32.

    Raises:
        TypeError: An array or `temperature` is not real, `active` is not bool, or
            `distance` no function.
        ValueError: A shape does not fit; `temperature` is None, not a scalar, or a
            number and not positive and finite; `block_size` is below 1; a NumPy array
            has a row outside the domain of `distance`; `axis_name` is not an axis of
            the shard_map around.

    Example:
        >>> x, c = jnp.array([[0.0]]), jnp.array([[-1.0], [1.0]])
        >>> value_and_grad = jax.value_and_grad(dk.soft_kmeans_loss, argnums=1)
        >>> loss, gradient = value_and_grad(x, c, temperature=1.0)
        >>> f"{loss:.3f}", gradient.tolist()  # 1 - log 2, and half of the point each.
        ('0.307', [[-1.0], [1.0]])

    Source: Rose 1998, https://doi.org/10.1109/5.726788
    """
    check_given("temperature", temperature)
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
    return total_loss(plan, problem, centroids)


@hinted
def assigned_loss(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    assignment: Assignment,
    *,
    temperature: ArrayLike = 1.0,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
    active: Bool[ArrayLike, " k"] | None = None,
) -> Float[Array, ""]:
    """The expected cost of an assignment, Σ_ij w_i A_ij distance_ij.

    A = assignment(−distance/temperature). The gradient flows through the
    distances and, by whatever derivative `assignment` declares, through A: with `hard`
    it is that of `kmeans_loss`; with `softmax` exact for this cost, which is not the
    free energy; with `straight_through` biased. Where A is exactly 0 an infinite
    distance counts 0, with derivative 0, in A too: a map that declares a derivative
    there does not learn of it. This function builds the [n, k] array.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        assignment: Map from logits [n, k] to rows [n, k], as in `assignments`; fix its
            other arguments by `functools.partial`: `partial(dk.reinmax, noise=noise)`.
        temperature: Positive scalar, in the unit of `distance`; may be traced.
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN, under a map of single rows (`sinkhorn` still balances it). None is
            ones.
        distance: Function of two arrays [..., d].
        active: Clusters that exist, [k], bool, at least one true; None is all. The
            others have logit −∞.

    Returns:
        The loss, [], in the unit of `distance` times that of the weights, float64 if
        any array is, else float32.

    Raises:
        TypeError: An array or `temperature` is not real, `active` is not bool, or
            `assignment` or `distance` no function.
        ValueError: A shape does not fit, that of the assignment included;
            `temperature` is not a scalar, or a number and not positive and finite; or a
            NumPy array has a row outside the domain of `distance`.

    Example:
        >>> x, c = jnp.array([[0.0]]), jnp.array([[-1.0], [1.0]])
        >>> gradient = jax.grad(dk.assigned_loss, argnums=1)
        >>> gradient(x, c, dk.hard).tolist(), gradient(x, c, dk.softmax).tolist()
        ([[-2.0], [0.0]], [[-1.0], [1.0]])

    Source: Jang, Gu & Poole 2017 (costs of a relaxed choice),
        https://arxiv.org/abs/1611.01144
    """
    check_callable("assignment", assignment, 1)
    check_given("temperature", temperature)
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=distance,
        weights=weights,
        active=active,
        temperature=temperature,
    )
    c, m = centered(problem, centroids)
    w = None if problem.weights is None else problem.weights.astype(c.dtype)
    fill = heaviest_of_all(plan, problem, m)
    x = fill_inert(problem.points.astype(c.dtype), w, fill, squares=False)

    def costs_and_logits(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        costs = pairwise(x, c, distance=distance)
        logits = -quotient(costs, problem.temperature.astype(costs.dtype))
        if problem.active is not None:
            logits = jnp.where(problem.active[None], logits, -jnp.inf)
        return costs, logits

    if w is not None:
        # What a row costs is finite if some logit is, and none is NaN. (Not by their
        # largest: on CPUs that of NaN and a number may be the number.)
        _, logits = lax.stop_gradient(costs_and_logits(x))
        usable = jnp.isfinite(logits).any(1) & ~jnp.isnan(logits).any(1)
        x = fill_rows(x, w, jnp.where(usable, 0, jnp.inf), fill)
    costs, logits = costs_and_logits(x)
    rows = assignment(logits)
    if rows.shape != logits.shape:
        shapes = f"{rows.shape} for logits {logits.shape}"
        raise ValueError(f"assignment must keep the shape of its logits, got {shapes}")
    # Replaced before the product, whose derivatives would be 0 · ∞.
    unused = rows == 0 if w is None else (rows == 0) | (w == 0)[:, None]
    costs = jnp.where(unused & jnp.isinf(costs), 0, costs)
    return jnp.sum(weigh(w, jnp.sum(rows.astype(costs.dtype) * costs, axis=1)))
