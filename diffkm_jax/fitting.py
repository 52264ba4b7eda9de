"""Fits: one update, which is one pass and one step of an optimizer, and a loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import export

from diffkm_jax._checks import (
    accumulation_dtype,
    as_points,
    as_weights,
    check_block_size,
    check_callable,
    check_integer,
    check_scalar,
)
from diffkm_jax._loop import FitResult, Status, best_of, run
from diffkm_jax._update import Data, EmptyPolicy, Options, State, initial, one_update
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.initializers import kmeans_plus_plus
from diffkm_jax.optimizers import macqueen, newton
from diffkm_jax.statistics import Statistics, checked

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float, PRNGKeyArray

__all__ = ["FitResult", "State", "Status", "fit", "fit_restarts", "init", "update"]


def init(
    centroids: Float[ArrayLike, "k d"],
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> State:
    """Starts a fit: the centroids in the accumulation dtype and a new optimizer state.

    The gradient is the identity, in the centroids.

    Args:
        centroids: Start, [k, d], floating, in data units.
        optimizer: Any optax transformation; None is `newton()`.

    Returns:
        The `State` of step 0.

    Raises:
        TypeError: `centroids` is not floating.
        ValueError: `centroids` is not [k, d] with k at least 1.

    Example:
        >>> state = dk.init(jnp.zeros((2, 3), jnp.bfloat16), optimizer=optax.adam(0.1))
        >>> state.centroids.dtype.name, int(state.step)
        ('float32', 0)

    Source: the (init, update) pair of optax, https://optax.readthedocs.io
    """
    centroids, _, _, _ = checked(centroids, centroids, None, None)
    centroids = centroids.astype(accumulation_dtype(centroids))
    optimizer = newton() if optimizer is None else optimizer
    return initial(centroids, optimizer)


def update(
    points: Float[ArrayLike, "n d"],
    state: State,
    *,
    optimizer: optax.GradientTransformation | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    temperature: ArrayLike | optax.Schedule | None = None,
    distance: Distance = squared_euclidean,
    empty: str | EmptyPolicy = "keep",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> tuple[State, Statistics]:
    """One pass over the points and one step of the optimizer.

    The optimizer is called as `optimizer.update(gradient, opt_state, centroids,
    counts=, value=, grad=, value_fn=)`, with the gradient of the loss (a sum over
    points) in the centroids; `counts` is None for a distance other than the squared
    Euclidean. The gradient of the new centroids is that of the formulas: through the
    pass and through the optimizer, labels held constant.

    Args:
        points: A batch or all of the data, [n, d], floating, in data units.
        state: The `State` of `init` or of the last update, of the same optimizer.
        optimizer: Any optax transformation, static by identity; None is `newton()`.
        weights: Non-negative, [n], any unit; None is ones.
        active: Clusters that exist, [k], bool; the others do not move. None is all.
        temperature: Positive scalar in squared data units, or a schedule of
            `state.step` (static by identity); None is the hard assignment.
        distance: Function of two arrays [..., d]; static by identity.
        empty: What becomes of active clusters without weight: `"keep"` leaves them;
            `"farthest"` sets the i-th of them to the point of the i-th largest cost;
            or a function of (new centroids, counts, rows [k, d], costs [k]), the rows
            those of largest cost, that returns centroids. A row that is set has its
            optimizer state zeroed and derivative zero.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded.

    Returns:
        The new state, and the `Statistics` at the centroids given.

    Raises:
        TypeError: An array is not floating, `active` is not bool, `distance` no
            function, or `optimizer` no optax transformation.
        ValueError: A shape does not fit; `temperature` is a number and not positive
            and finite, or not a scalar; `empty` is unknown; `block_size` is below 1;
            `state` is of another optimizer; or `distance` is not the squared Euclidean
            and the optimizer needs counts, as `newton` and `macqueen` do.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> state, stats = dk.update(x, dk.init(x[1:3]))
        >>> state.centroids.tolist(), float(stats.loss)  # The new ones, the old loss.
        ([[0.5], [9.5]], 2.0)

    Source: Bottou & Bengio 1995,
        https://leon.bottou.org/papers/bottou-bengio-95
    """
    options = _options(optimizer, distance, empty, temperature, block_size, axis_name)
    data = _data(points, state.centroids, weights, active, temperature)
    _check_state(state, options.optimizer)
    state, stats, _ = _update(options, data, state)
    return state, stats


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
    axis_name: str | None = None,
) -> FitResult:
    """Fits centroids to points: updates until the centroids rest, as one program.

    With the default optimizer this is Lloyd's algorithm, or EM at a temperature, and
    stops where scikit-learn stops. A step is a pass at the centroids c and an update;
    the fit stops after the step at which Σ_j ‖shifts_j / counts_j‖² at c is at most
    `tol` times the mean variance of the features, or rounding. Under a temperature
    schedule it does so only once the temperature has its final value.

    The gradient of the returned centroids in points, weights and temperature is what
    `derivative` says; `loss` and `counts` are functions of these centroids, and so is
    their gradient. In the start it is zero, but for `"unrolled"`. It means what is said
    there only of a fit that CONVERGED, and `certificate` says how far around; the
    centroid of a cluster without weight has gradient zero.

    Args:
        points: Data, [n, d], floating, in data units.
        centroids: Start, [k, d], floating, in data units; or the `State` of an earlier
            fit with the same optimizer, to go on from there.
        optimizer: Any optax transformation, static by identity; None is `newton()`.
            Gradients are of the sum over points: plain gradient descent is stable at
            a learning rate below 1 / max(counts).
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN. None is ones.
        active: Clusters that exist, [k], bool, at least one true; None is all.
        temperature: Positive scalar in squared data units, or a schedule of the step
            (static by identity), for deterministic annealing; None is the hard
            assignment. A schedule must come to rest (`exponential_decay` needs an
            `end_value`), or the fit ends with MAX_STEPS. Centroids that merged above
            the critical temperature stay merged: start below it, or chain
            `optax.add_noise` after `newton()`.
        distance: Function of two arrays [..., d]; static by identity. Other than the
            squared Euclidean it needs a gradient optimizer, and `tol` a value of its
            own: the residual is then Σ_j ‖∂loss/∂c_j / 2 counts_j‖², whose unit is not
            that of a variance. Arrays it closes over are differentiated like points.
        tol: Non-negative scalar, no unit, relative to the mean variance of the
            features; 0 means to rounding.
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
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded.

    Returns:
        A `FitResult`. Nothing raises at run time: read `status`. It cannot see squares
        that underflow: scale data in units so small that they do (10⁻¹⁸ in float32).

    Raises:
        TypeError: An array is not floating, `active` is not bool, `distance` no
            function, `optimizer` no optax transformation, `max_steps` no integer, or
            `centroids` a `FitResult`.
        ValueError: A shape does not fit; there are more centroids than points (and no
            `active`); `temperature` or `tol` is a number out of range, or not a
            scalar; `empty` or `derivative` is unknown; `derivative` is `"one_step"` and
            `distance` not the squared Euclidean; `max_steps` is negative or
            `block_size` below 1; a `State` is of another optimizer; or `distance` is
            not the squared Euclidean and the optimizer needs counts.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> result = dk.fit(x, x[:2])
        >>> result.centroids.tolist(), dk.Status(int(result.status)).name
        ([[0.5], [9.5]], 'CONVERGED')
        >>> jax.jacobian(lambda x: dk.fit(x, x[:2]).centroids[1, 0])(x).ravel().tolist()
        [0.0, 0.0, 0.5, 0.5]

    Source: Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489; Rose 1998
        (annealing), https://doi.org/10.1109/5.726788; Blondel et al. 2022 (implicit
        differentiation), https://arxiv.org/abs/2105.15183
    """
    options = _options(optimizer, distance, empty, temperature, block_size, axis_name)
    options = _differentiated(options, derivative)
    if isinstance(centroids, FitResult):
        raise TypeError("centroids must be an array or a State: pass result.state")
    goes_on = isinstance(centroids, State)
    start = jnp.asarray(centroids.centroids if goes_on else centroids)
    data = _data(points, start, weights, active, temperature)
    k, n = len(start), data.points.shape[0]
    known = active is None and axis_name is None and not export.is_symbolic_dim(n)
    if known and k > n:
        raise ValueError(f"centroids must be at most n = {n} (the points), got k = {k}")
    _check_loop(tol, max_steps)
    if goes_on:
        state, dtype = centroids, data.points.dtype
        _check_state(state, options.optimizer)
    else:
        acc = accumulation_dtype(data.points, start, data.weights)
        state = initial(start.astype(acc), options.optimizer, data.active)
        dtype = start.dtype
    return _fit(options, max_steps, dtype, data, state, _as_tol(tol, data))


def fit_restarts(
    key: PRNGKeyArray,
    points: Float[ArrayLike, "n d"],
    k: int,
    *,
    num_restarts: int = 10,
    initializer: Callable[..., jax.Array] = kmeans_plus_plus,
    optimizer: optax.GradientTransformation | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    temperature: ArrayLike | optax.Schedule | None = None,
    distance: Distance = squared_euclidean,
    tol: ArrayLike = 1e-4,
    max_steps: int = 300,
    empty: str | EmptyPolicy = "keep",
    derivative: str = "implicit",
    block_size: int | None = None,
) -> FitResult:
    """The best of several fits, each from its own random start, as one program.

    The fits run one after the other and only the best is kept, so memory does not grow
    with their number. The gradient is that of the fit chosen: zero through the choice,
    and through the drawing of its start, but for `"unrolled"`, whose start is made of
    points.

    Args:
        key: A JAX random key.
        points: Data, [n, d], floating, in data units.
        k: Number of centroids, static, at most n.
        num_restarts: Number of fits, static.
        initializer: Function (key, points, k, *, weights) of centroids [k, d], static
            by identity.
        optimizer: As in `fit`.
        weights: As in `fit`, and in the drawing of the starts.
        temperature: As in `fit`.
        distance: As in `fit`.
        tol: As in `fit`.
        max_steps: As in `fit`.
        empty: As in `fit`.
        derivative: As in `fit`.
        block_size: As in `fit`.

    Returns:
        The `FitResult` of smallest finite loss; the first, if no loss is finite.

    Raises:
        TypeError: As in `fit`, or `k` or `num_restarts` is no integer.
        ValueError: As in `fit`, or `k` is below 1 or above n, or `num_restarts` is
            below 1.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0], [50.0]])
        >>> result = dk.fit_restarts(jax.random.key(0), x, 3)
        >>> float(result.loss), sorted(result.counts.tolist())
        (1.0, [1.0, 2.0, 2.0])

    Source: Arthur & Vassilvitskii 2007,
        https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """
    options = _options(optimizer, distance, empty, temperature, block_size, None)
    options = _differentiated(options, derivative)
    points = as_points(points)
    n = len(points)
    check_integer("k", k, minimum=1, maximum=n, why=" (the number of points)")
    check_integer("num_restarts", num_restarts, minimum=1)
    _check_loop(tol, max_steps)
    data = _data(points, points[:1], as_weights(weights, n), None, temperature)
    static = options, max_steps, k, num_restarts, initializer
    return _fit_restarts(*static, key, data, _as_tol(tol, data))


def _options(
    optimizer: optax.GradientTransformation | None,
    distance: Distance,
    empty: str | EmptyPolicy,
    temperature: Any,
    block_size: int | None,
    axis_name: str | None,
) -> Options:
    if not callable(empty) and empty not in ("keep", "farthest"):
        expected = "'keep', 'farthest' or a function"
        raise ValueError(f"empty must be {expected}, got {empty!r}")
    check_callable("distance", distance)
    check_block_size(block_size)
    if optimizer is None:
        optimizer = newton()
    if not isinstance(optimizer, optax.GradientTransformation):
        hint = ": call it" if optimizer in (newton, macqueen) else ""
        expected = f"an optax transformation, got {optimizer!r}{hint}"
        raise TypeError(f"optimizer must be {expected}")
    schedule: Any = temperature if callable(temperature) else None
    return Options(optimizer, distance, empty, schedule, block_size, axis_name)


def _data(
    points: ArrayLike,
    centroids: ArrayLike,
    weights: ArrayLike | None,
    active: ArrayLike | None,
    temperature: Any,
) -> Data:
    x, c, w, on = checked(points, centroids, weights, active)
    if temperature is None or callable(temperature):
        return Data(x, w, on, None)
    check_scalar("temperature", temperature)
    return Data(x, w, on, jnp.asarray(temperature, accumulation_dtype(x, c, w)))


def _check_state(state: State, optimizer: optax.GradientTransformation) -> None:
    expected = jax.tree.structure(jax.eval_shape(optimizer.init, state.centroids))
    found = jax.tree.structure(state.opt_state)
    if expected != found:
        raise ValueError(
            f"state must be of the optimizer given, whose state is {expected}, "
            f"got {found}"
        )


def _as_tol(tol: ArrayLike, data: Data) -> jax.Array:
    return jnp.asarray(tol, accumulation_dtype(data.points, data.weights))


def _check_loop(tol: ArrayLike, max_steps: int) -> None:
    check_scalar("tol", tol, zero=True)
    check_integer("max_steps", max_steps, minimum=0)


def _differentiated(options: Options, derivative: str) -> Options:
    if derivative not in ("implicit", "one_step", "unrolled", "none"):
        expected = "'implicit', 'one_step', 'unrolled' or 'none'"
        raise ValueError(f"derivative must be {expected}, got {derivative!r}")
    if derivative == "one_step" and options.distance is not squared_euclidean:
        raise ValueError(
            "derivative 'one_step' is that of a step to the mean and needs distance "
            f"squared_euclidean, got {options.distance}"
        )
    return options._replace(derivative=derivative)


_update = partial(jax.jit, static_argnums=0)(one_update)
_fit = partial(jax.jit, static_argnums=(0, 1, 2))(run)
_fit_restarts = partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))(best_of)
