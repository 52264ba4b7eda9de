"""From where a fit starts: centroids, or the state of another fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from jax import export

from diffkm_jax._checks import as_scalar
from diffkm_jax._problem import Problem
from diffkm_jax.fitting._state import State, initial_state, remainder_of
from diffkm_jax.fitting._step import Algorithm, check_state

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def rows_of(centroids: ArrayLike | State) -> ArrayLike:
    """The centroids of a start, which is an array or the State of another fit."""
    if hasattr(centroids, "_fields") and hasattr(centroids, "state"):
        raise TypeError("centroids must be an array or a State: pass result.state")
    return centroids.centroids if isinstance(centroids, State) else centroids


def as_start(
    algorithm: Algorithm,
    problem: Problem,
    centroids: ArrayLike | State,
    rows: jax.Array,
) -> tuple[State, Any]:
    """The State to start from, of centroids or their checked rows, and their dtype."""
    k, n = len(rows), problem.points.shape[0]
    plan = algorithm.plan
    known = problem.active is None and (plan.axis_name is None or plan.mesh is not None)
    if known and not export.is_symbolic_dim(n):
        check_number(k, n)
    return start_of(algorithm, problem, centroids, rows)


def start_of(
    algorithm: Algorithm,
    problem: Problem,
    centroids: ArrayLike | State,
    rows: jax.Array,
) -> tuple[State, Any]:
    """The same, of whatever number of points."""
    if isinstance(centroids, State):
        check_state(centroids, algorithm.optimizer)
        state = centroids._replace(remainder=remainder_of(centroids))
        return state, problem.points.dtype
    wide = rows.astype(problem.dtype(rows))
    return initial_state(wide, algorithm.optimizer, problem.active), rows.dtype


def check_number(k: int, n: int, points: str = "the points") -> None:
    """Raises ValueError where there are more centroids than points."""
    if k > n:
        raise ValueError(f"centroids must be at most n = {n} ({points}), got k = {k}")


def as_tol(tol: ArrayLike, problem: Problem) -> jax.Array:
    """The tolerance as a scalar array, so that another value is no other program."""
    return as_scalar("tol", tol, problem.points, problem.weights, zero=True)
