"""The fit with clusters of given or bounded size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from diffkm_jax._checks import check_integer
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted, shown
from diffkm_jax._pass import has_means
from diffkm_jax._problem import Plan, Problem
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.distances._forms import WITH_MEANS, plain
from diffkm_jax.fitting._bounded_loop import fitted
from diffkm_jax.fitting._bounds import as_bounds
from diffkm_jax.fitting._start import as_tol, rows_of
from diffkm_jax.fitting._state import FitResult, State, initial_state, remainder_of
from diffkm_jax.fitting._step import check_state
from diffkm_jax.optimizers import newton

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Float


@hinted
def fit_bounded(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"] | State,
    *,
    min_size: ArrayLike | None = None,
    max_size: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
    tol: ArrayLike = 1e-4,
    max_steps: int = 300,
    derivative: str = "implicit",
) -> FitResult:
    """Fits centroids to points under bounds on the sizes of clusters.

    A step assigns all points at once, at the least total cost that the bounds allow,
    and takes each centroid to the mean of its cluster, so that the loss never rises; it
    stops by the rule of `fit`. Hard, the labels of every step are exactly optimal and
    sizes are met exactly: labels nearest by costs plus prices, then exchanges of points
    along shortest paths between clusters until there is none that is better.

    At a temperature T the plan P minimizes Σ_ij w_i P_ij (distance_ij + T log P_ij)
    over rows that sum to one and columns Σ_i w_i P_ij within the bounds: it is
    softmax(−(distance + price)/T), with a price for each cluster that is 0 where no
    bound holds, positive at `max_size` and negative at `min_size`. Sizes are met to
    4·10⁻⁶ of each in float32 and 10⁻¹⁰ in float64, or to what rounding of a price
    leaves, 4 ε price/T, where that is more. `loss` is the least value, which
    without a bound that holds is `soft_kmeans_loss`; its gradient in centroids is
    Σ_i w_i P_ij ∂distance, in bounds that hold minus the price. From high T to low it
    goes from one merged cluster to the hard fit.

    The gradient of the returned centroids in points, weights, temperature and sizes is
    what `derivative` says, while no label changes (hard) and the same bounds hold
    (soft); `loss` and `counts` are functions of these centroids. In the start it is
    zero. Where all sizes are given, that of sizes is of changes with sum zero.

    All distances are held, [k, n]: memory grows with n k, unlike that of `fit`.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Start, [k, d], real, in data units; or the `State` of an earlier
            fit, to go on from there.
        min_size: Least size of every cluster, scalar or [k], real and not negative, in
            the unit of the weights; hard, whole numbers of points. None is 0; but if
            both are None, hard, it is 1, so that no cluster is empty.
        max_size: Largest size, scalar or [k], likewise in the unit of the weights; None
            is no bound. Where it is `min_size`, the size is given.
        temperature: Positive scalar in the unit of `distance`; may be traced. None is
            the hard assignment.
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN. Hard, they are 0 or 1: points are not divided. None is ones.
        distance: One that has means: `squared_euclidean`, `cosine`, `kl_divergence`,
            `itakura_saito`, `mahalanobis(P)` or `bregman(phi)`.
        tol: As in `fit`.
        max_steps: As in `fit`.
        derivative: Static. `"implicit"`: hard, as the means of the clusters, exact at
            every order; soft, as the stationary point of the loss, by a linear solve
            (LINEAR_SOLVE in `status` where it fails). `"one_step"`: as one more step
            from centroids held constant; the same if hard, else biased. `"none"`: zero.

    Returns:
        A `FitResult`; `labels` are the clusters that points were assigned to, not the
        nearest, or soft those of the largest share. Sizes that are not NumPy's or
        Python's are not read: where they cannot be met, or weights of the hard fit are
        not 0 or 1, the fit ends with NON_FINITE, with labels of −1 and a loss of NaN.
        MAX_STEPS is set too where the plan misses a size.

    Raises:
        TypeError: An array, `temperature` or `tol` is not real, `distance` no function,
            `max_steps` no integer, or `centroids` a `FitResult`.
        ValueError: A shape does not fit; `min_size` adds up to more than the points, or
            `max_size` to less; one is negative, or `min_size` above `max_size`; hard, a
            size is no whole number, or a weight not 0 or 1; `temperature` or `tol` is
            a number out of range, or not a scalar; `distance` has no means;
            `derivative` is unknown; `max_steps` is negative; a `State` is of another
            optimizer than `newton`; points are sharded; or a NumPy array has a row
            outside the domain of `distance`.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0]])
        >>> result = dk.fit_bounded(x, x[:2], min_size=3, max_size=3)
        >>> result.labels.tolist(), result.counts.tolist()
        ([0, 0, 0, 1, 1, 1], [3.0, 3.0])
        >>> result.centroids.tolist()
        [[1.0], [8.0]]

    Source: Bradley, Bennett & Demiriz 2000 (bounded sizes),
        https://www.microsoft.com/en-us/research/publication/constrained-k-means-clustering/;
        Murota 2003 (exchanges), https://doi.org/10.1137/1.9780898718508;
        Cuturi 2013 (entropic transport), https://arxiv.org/abs/1306.0895
    """
    plan, problem, rows = as_problem(
        points,
        rows_of(centroids),
        distance=distance,
        weights=weights,
        temperature=temperature,
    )
    check_bounded(plan, problem)
    expected = "implicit", "one_step", "none"
    if derivative not in expected:
        names = "'implicit', 'one_step' or 'none'"
        raise ValueError(f"derivative must be {names}, got {shown(derivative)}")
    check_integer("max_steps", max_steps, minimum=0)
    acc, hard = problem.dtype(rows), temperature is None
    shape = problem.points.shape[0], len(rows)
    bounds = as_bounds(min_size, max_size, weights, shape, acc, hard=hard)
    if isinstance(centroids, State):
        check_state(centroids, newton())
        at = centroids.centroids + remainder_of(centroids)
        zeros = jnp.zeros_like(at)
        state = centroids._replace(centroids=at, remainder=zeros)
        dtype = problem.points.dtype
    else:
        state, dtype = initial_state(rows.astype(acc), newton()), rows.dtype
    tol = as_tol(tol, problem)
    return fitted(derivative, max_steps, dtype, problem, state, bounds, tol)


def check_bounded(plan: Plan, problem: Problem) -> None:
    """Raises ValueError unless points are on one device and the distance has means."""
    if plan.mesh is not None:
        raise ValueError(
            "points must be on one device where sizes are bounded, got them sharded: "
            "jax.device_put(points, jax.local_devices()[0])"
        )
    if not has_means(problem):
        raise ValueError(
            f"distance must be one that has means ({WITH_MEANS}) where sizes are "
            f"bounded, got {shown(plain(problem.distance))}"
        )
