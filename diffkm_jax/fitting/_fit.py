"""The fit: checks, the loop, and one pass at the centroids that it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._checks import check_integer
from diffkm_jax._domain import out_of_domain
from diffkm_jax._hints import hinted
from diffkm_jax._pass import sums_and_labels
from diffkm_jax._problem import Axis, Problem
from diffkm_jax._sharding import check_replicated, over_rows
from diffkm_jax._statistics import Statistics, residual_of
from diffkm_jax._units import in_true_unit, in_unit
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting._derivative import (
    check_derivative,
    differentiate,
    differentiate_means,
)
from diffkm_jax.fitting._empty import EmptyPolicy, is_empty
from diffkm_jax.fitting._loop import Progress, StopRule, is_at_rest, run
from diffkm_jax.fitting._start import as_start, as_tol, rows_of
from diffkm_jax.fitting._state import SPECS, FitResult, State
from diffkm_jax.fitting._status import status_of
from diffkm_jax.fitting._step import Algorithm, at_last
from diffkm_jax.fitting._units import counts_in_true_unit, counts_in_unit
from diffkm_jax.fitting._update import as_algorithm

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float


@hinted
def fit(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"] | State,
    *,
    optimizer: optax.GradientTransformation | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    temperature: ArrayLike | optax.Schedule | None = None,
    distance: Distance = squared_euclidean,
    tol: ArrayLike = 1e-4,
    max_steps: int = 300,
    empty: str | EmptyPolicy = "keep",
    derivative: str = "implicit",
    block_size: int | None = None,
    axis_name: Axis = None,
) -> FitResult:
    """Fits centroids to points: updates until the centroids rest, as one program.

    With the default optimizer this is Lloyd's algorithm, or EM at a temperature, and
    stops where scikit-learn stops. A step is a pass at the centroids c and an update;
    the fit stops after the step at which Σ_j distance(c_j + shifts_j / counts_j, c_j)
    is at most `tol` times the mean distance to the mean over d, or rounding: if squared
    Euclidean, Σ_j ‖shifts_j / counts_j‖² and the mean variance of the features. Under a
    temperature schedule it does so only once the temperature has its final value.

    Under `cosine` it is spherical k-means: centroids are unit rows before and after
    every step, of any optimizer, and Newton's step takes them to the mean of unit
    points, normalized; one whose points have the mean zero stays.

    The gradient of the returned centroids in points, weights and temperature is what
    `derivative` says; `loss` and `counts` are functions of these centroids, and so is
    their gradient. In the start it is zero, but for `"unrolled"`. It means what is said
    there only of a fit that CONVERGED, and `certificate` says how far around; the
    centroid of a cluster without weight has gradient zero.

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Start, [k, d], real, in data units; or the `State` of an earlier
            fit with the same optimizer, to go on from there.
        optimizer: Any optax transformation, static by identity; None is `newton()`.
            Gradients are of the sum over points: plain gradient descent is stable at
            a learning rate below 1 / max(counts).
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN. None is ones.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        temperature: Positive scalar in the unit of `distance`, or a schedule of the
            step (static by identity), for deterministic annealing; None is the hard
            assignment. A schedule must come to rest (`exponential_decay` needs an
            `end_value`), or the fit ends with MAX_STEPS. Centroids that merged above
            the critical temperature, or where it falls slowly, stay merged: start below
            it and cool in few steps, or chain `optax.add_noise` after `newton()`.
        distance: Function of two arrays [..., d]; static by identity, or a tree of
            arrays, as `mahalanobis(P)`. Those that have means (`squared_euclidean`,
            `cosine`, `kl_divergence`, `itakura_saito`, `mahalanobis`, `bregman`) take
            one matrix product and any optimizer. Another needs a gradient optimizer,
            and `tol` a value of its own: the residual is then
            Σ_j ‖∂loss/∂c_j / 2 counts_j‖², whose unit is not that of a variance.
            Arrays that a distance holds or closes over are differentiated like points.
        tol: Non-negative scalar, no unit, relative to the mean variance of the
            features, or what the distance has in its place; 0 means to rounding.
        max_steps: Limit of steps in this call, static; 0 evaluates the start.
        empty: As in `update`: `"keep"`, `"farthest"` (scikit-learn's), or a function.
        derivative: How the returned centroids are differentiated, static.
            `"implicit"`: as the stationary point of the loss, whatever optimizer found
            it in however many steps. Hard, these are the cluster means: exact at every
            order while no label changes, for less than a pass. Soft, or under another
            distance, by the implicit function theorem and a linear solve: about 2
            passes for each of its iterations, of which there are some 10 where clusters
            are distinct; off in proportion to the gradient that is left, so take `tol`
            small. Where the Hessian cannot be solved with, as that of `manhattan`,
            which is zero, numbers stay finite and LINEAR_SOLVE is set: return `status`
            beside what is differentiated (`has_aux`), for only there it is tried.
            `"one_step"`: as one more update, of centroids held constant: the same if
            hard, else biased.
            `"unrolled"`: through the steps of the optimizer, as one scan of
            `max_steps`, recomputed in reverse so that only the centroids of each are
            kept; also in the start, and after any number of steps. A row that `empty`
            sets has derivative zero there.
            `"none"`: zero; for the gradient of `loss` alone, which at a minimum is the
            same, the cheapest.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; or
            under `jax.jit`, where an Auto mesh hides it, the `NamedSharding` of points.

    Returns:
        A `FitResult`. Nothing raises at run time: read `status`. It says
        DOMAIN where a distance of this library is not defined, or negative. It cannot
        see squares that underflow: scale data in units so small that they do (10⁻¹⁸ in
        float32).
        Wherever the data are, the fit takes the steps of data about the origin; loss,
        labels and residual are those of the centroids as their dtype holds them, and
        `state` has what rounding took. Of weights only the ratios matter: they may be
        anywhere in the range of their dtype.

    Raises:
        TypeError: An array, `temperature` or `tol` is not real, `active` is not bool,
            `distance` no function, `optimizer` no optax transformation, `max_steps` no
            integer, or `centroids` a `FitResult`.
        ValueError: A shape does not fit; there are more centroids than points (and no
            `active`); `temperature` or `tol` is a number out of range, or not a
            scalar; `empty` or `derivative` is unknown; `derivative` is `"one_step"` and
            `distance` has no means; `max_steps` is negative or `block_size` below 1; a
            `State` is of another optimizer; or `distance` has no means and the
            optimizer needs counts; or a NumPy array has a row outside the domain of
            `distance`; or `axis_name` is
            not an axis of the shard_map around, or not the one that points vary over
            and `centroids` do not.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> result = dk.fit(x, x[:2])
        >>> result.centroids.tolist(), result.flags.name
        ([[0.5], [9.5]], 'CONVERGED')
        >>> jax.jacobian(lambda x: dk.fit(x, x[:2]).centroids[1, 0])(x).ravel().tolist()
        [0.0, 0.0, 0.5, 0.5]

    Source: Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489; Rose 1998
        (annealing), https://doi.org/10.1109/5.726788; Blondel et al. 2022 (implicit
        differentiation), https://arxiv.org/abs/2105.15183
    """
    algorithm, problem, start = as_algorithm(
        points,
        rows_of(centroids),
        optimizer=optimizer,
        weights=weights,
        active=active,
        temperature=temperature,
        distance=distance,
        empty=empty,
        block_size=block_size,
        axis_name=axis_name,
    )
    check_derivative(derivative, problem)
    check_integer("max_steps", max_steps, minimum=0)
    state, dtype = as_start(algorithm, problem, centroids, start)
    check_replicated(algorithm.plan, problem, state)
    tol = as_tol(tol, problem)
    return fit_from(algorithm, derivative, max_steps, dtype, problem, state, tol)


@over_rows(4, SPECS)
def fit_from(
    algorithm: Algorithm,
    derivative: str,
    max_steps: int,
    dtype: Any,
    problem: Problem,
    state: State,
    tol: jax.Array,
) -> FitResult:
    """The fit that starts at a state; its result has centroids of `dtype`."""
    unrolled = derivative == "unrolled"
    problem = in_unit(algorithm.plan, problem, state.centroids)
    opt_state = counts_in_unit(algorithm.optimizer, state.opt_state, problem)
    state = state._replace(opt_state=opt_state)
    found = run(algorithm, max_steps, problem, state, tol, unrolled=unrolled)
    return result_of(algorithm, derivative, dtype, problem, state, *found)


def result_of(
    algorithm: Algorithm,
    derivative: str,
    dtype: Any,
    problem: Problem,
    start: State,
    progress: Progress,
    rule: StopRule | None,
) -> FitResult:
    """What a loop found, by a pass at the centroids as they are returned.

    Without a rule there is none by which it could rest.
    """
    plan, state, active = algorithm.plan, progress.state, problem.active
    problem = at_last(algorithm, problem, start, state)
    exact = problem._replace(remainder=lax.stop_gradient(state.remainder))
    c, solved = differentiate(derivative, plan, exact, state.centroids)
    found, labels = sums_and_labels(plan, problem, c.astype(dtype))
    stats = Statistics(*found)
    c, centroids, stats = differentiate_means(
        derivative, problem, c, c.astype(dtype), stats
    )
    residual = lax.stop_gradient(residual_of(problem, centroids, stats))
    empty, weighty = is_empty(stats.counts, active).any(), stats.counts > 0
    stats = in_true_unit(stats, problem)
    # Losses before each step; from the last one on, the loss at the end.
    num_steps, loss = progress.num_steps, lax.stop_gradient(stats.loss)
    history = in_true_unit(progress.history.astype(loss.dtype), problem)
    taken = jnp.arange(len(history), dtype=num_steps.dtype) < num_steps
    failed = progress.failed | ~jnp.isfinite(loss)
    if problem.temperature is not None:
        failed |= ~(lax.stop_gradient(problem.temperature) > 0)
    stopped, rests = progress.converged & ~failed, jnp.zeros((), bool)
    if rule is not None:
        rests = is_at_rest(rule, problem, c, dtype, residual, weighty)
    status = status_of(
        CONVERGED=stopped & rests,
        MAX_STEPS=~progress.converged & ~failed,
        NON_FINITE=failed,
        EMPTY_CLUSTER=empty,
        LINEAR_SOLVE=~solved,
        DOMAIN=out_of_domain(plan, problem, start.centroids, centroids, labels),
        NOT_AT_REST=stopped & ~rests & (rule is not None),
        NO_IMPROVEMENT=stopped & (rule is None),
    )
    return FitResult(
        centroids=centroids,
        labels=labels,
        loss=stats.loss,
        counts=stats.counts,
        residual=residual,
        history=jnp.where(taken, history, loss),
        num_steps=num_steps,
        status=status,
        temperature=problem.temperature,
        state=state._replace(
            centroids=c,
            opt_state=counts_in_true_unit(
                algorithm.optimizer, state.opt_state, problem
            ),
        ),
    )
