"""The best of several fits, each from its own random start."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._checks import as_points, check_callable, check_integer, check_key
from diffkm_jax._hints import hinted, shown
from diffkm_jax._pass import total_loss
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax._sharding import number_of, over_rows
from diffkm_jax._units import in_unit
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.distances._forms import embedded
from diffkm_jax.fitting._derivative import check_derivative
from diffkm_jax.fitting._empty import EmptyPolicy
from diffkm_jax.fitting._fit import fit_from, result_of
from diffkm_jax.fitting._loop import Progress, StopRule, run
from diffkm_jax.fitting._start import as_tol
from diffkm_jax.fitting._state import SPECS, FitResult, State, initial_state
from diffkm_jax.fitting._step import Algorithm, at_step
from diffkm_jax.fitting._update import as_algorithm
from diffkm_jax.initializers import kmeans_plus_plus

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Float, PRNGKeyArray


@hinted
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
    axis_name: Axis = None,
) -> FitResult:
    """The best of several fits, each from its own random start, as one program.

    The fits run one after the other, and what is kept of each does not grow with the
    number of points. The gradient is that of the fit chosen: zero through the choice,
    and through the drawing of its start, but for `"unrolled"`, whose start is made of
    points.

    Args:
        key: A JAX random key.
        points: Data, [n, d], real, in data units.
        k: Number of centroids, static, at most n.
        num_restarts: Number of fits, static.
        initializer: Function (key, points, k, *, weights) of centroids [k, d], static
            by identity; of sharded points it is given `axis_name` too, and sees the
            rows of one device.
        optimizer: As in `fit`.
        weights: As in `fit`, and in the drawing of the starts.
        temperature: As in `fit`.
        distance: As in `fit`.
        tol: As in `fit`.
        max_steps: As in `fit`.
        empty: As in `fit`.
        derivative: As in `fit`.
        block_size: As in `fit`.
        axis_name: As in `fit`.

    Returns:
        The `FitResult` of smallest finite loss; the first, if no loss is finite.

    Raises:
        TypeError: As in `fit`, or `key` is no random key, or `k` or `num_restarts` no
            integer.
        ValueError: As in `fit`, or `k` is below 1 or above n, or `num_restarts` is
            below 1, or `initializer` returns no [k, d].

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0], [50.0]])
        >>> result = dk.fit_restarts(jax.random.key(0), x, 3)
        >>> float(result.loss), sorted(result.counts.tolist())
        (1.0, [1.0, 2.0, 2.0])

    Source: Arthur & Vassilvitskii 2007,
        https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """
    check_key(key)
    points = as_points(points)
    check_integer("num_restarts", num_restarts, minimum=1)
    check_integer("max_steps", max_steps, minimum=0)
    algorithm, problem, _ = as_algorithm(
        points,
        jnp.ones((1, points.shape[1]), points.dtype),
        optimizer=optimizer,
        weights=weights,
        temperature=temperature,
        distance=distance,
        empty=empty,
        block_size=block_size,
        axis_name=axis_name,
    )
    n = number_of(algorithm.plan, problem.points)
    check_integer("k", k, minimum=1, maximum=n, why=" (the number of points)")
    check_derivative(derivative, problem)
    check_initializer(initializer, algorithm.plan)
    static = algorithm, derivative, max_steps, k, num_restarts, initializer
    return best_fit(*static, key, problem, as_tol(tol, problem))


def check_initializer(initializer: Callable[..., jax.Array], plan: Plan) -> None:
    """Raises TypeError unless a function can be called as an initializer is."""
    check_callable("initializer", initializer)
    if plan.axis_name is None:
        return
    parameters = inspect.signature(initializer).parameters.values()
    if not any(p.name == "axis_name" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError(
            "initializer must take axis_name, as kmeans_plus_plus does, where points "
            f"are sharded, got {shown(initializer)}"
        )


@over_rows(6, SPECS)
def best_fit(
    algorithm: Algorithm,
    derivative: str,
    max_steps: int,
    k: int,
    num_restarts: int,
    initializer: Callable[..., jax.Array],
    key: jax.Array,
    problem: Problem,
    tol: jax.Array,
) -> FitResult:
    """The fit of smallest finite loss, else the first; only it is differentiated."""

    def draw(key: jax.Array, problem: Problem) -> jax.Array:
        rows = embedded(problem.distance, problem.points)
        axis = algorithm.plan.axis_name
        on_mesh = {} if axis is None else {"axis_name": axis}
        return initializer(key, rows, k, weights=problem.weights, **on_mesh)

    def start(key: jax.Array, problem: Problem) -> State:
        c = draw(key, problem)
        acc = problem.dtype(c)
        return initial_state(c.astype(acc), algorithm.optimizer)

    keys, given = jax.random.split(key, num_restarts), problem
    drawn = jax.eval_shape(draw, keys[0], problem)
    if (expected := (k, problem.points.shape[1])) != drawn.shape:
        raise ValueError(
            f"initializer must return [k, d] = {expected}, got shape {drawn.shape}"
        )
    problem = in_unit(algorithm.plan, problem, drawn)
    held, dtype = lax.stop_gradient(problem), drawn.dtype

    def search(key: jax.Array) -> tuple[State, tuple[Progress, StopRule], jax.Array]:
        begin = start(key, held)
        found = run(algorithm, max_steps, held, begin, tol, unrolled=False)
        state = found[0].state
        last = jnp.maximum(state.step - 1, 0)
        at_last, c = at_step(algorithm, held, last), state.centroids.astype(dtype)
        loss = total_loss(algorithm.plan, at_last, c)
        return lax.stop_gradient((begin, found, loss))

    # One after the other: side by side they would need the memory of all passes.
    *every, losses = lax.map(search, keys)
    best = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
    if derivative == "unrolled":
        state = start(keys[best], given)
        return fit_from(algorithm, derivative, max_steps, dtype, given, state, tol)
    begin, found = jax.tree.map(lambda a: a[best], every)
    return result_of(algorithm, derivative, dtype, problem, begin, *found)
