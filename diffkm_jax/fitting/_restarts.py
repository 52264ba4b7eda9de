"""The best of several fits, each from its own random start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._checks import as_points, check_integer, check_key
from diffkm_jax._hints import hinted
from diffkm_jax._pass import total_loss
from diffkm_jax._problem import Problem
from diffkm_jax._units import in_unit
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting._derivative import check_derivative
from diffkm_jax.fitting._empty import EmptyPolicy
from diffkm_jax.fitting._fit import as_tol, fit_from, result_of
from diffkm_jax.fitting._loop import Progress, StopRule, run
from diffkm_jax.fitting._state import FitResult, State, initial_state
from diffkm_jax.fitting._step import Algorithm, as_algorithm, at_step
from diffkm_jax.initializers import kmeans_plus_plus
from diffkm_jax.statistics import embedded

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
        TypeError: As in `fit`, or `key` is no random key, or `k` or `num_restarts` no
            integer.
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
    check_key(key)
    points = as_points(points)
    n = len(points)
    check_integer("k", k, minimum=1, maximum=n, why=" (the number of points)")
    check_integer("num_restarts", num_restarts, minimum=1)
    check_integer("max_steps", max_steps, minimum=0)
    algorithm, problem, _ = as_algorithm(
        points,
        points[:1],
        optimizer=optimizer,
        weights=weights,
        temperature=temperature,
        distance=distance,
        empty=empty,
        block_size=block_size,
    )
    check_derivative(derivative, problem)
    static = algorithm, derivative, max_steps, k, num_restarts, initializer
    return best_fit(*static, key, problem, as_tol(tol, problem))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
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
        rows = embedded(problem, problem.points)
        return initializer(key, rows, k, weights=problem.weights)

    def start(key: jax.Array, problem: Problem) -> State:
        c = draw(key, problem)
        acc = problem.dtype(c)
        return initial_state(c.astype(acc), algorithm.optimizer)

    keys, given = jax.random.split(key, num_restarts), problem
    drawn = jax.eval_shape(draw, keys[0], problem)
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
