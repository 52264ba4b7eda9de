"""The arguments of a pass, as a problem, and what of them can be refused at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from diffkm_jax._checks import (
    as_active,
    as_points_and_centroids,
    as_scalar,
    as_tree,
    as_weights,
    check_callable,
)
from diffkm_jax._hints import shown
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax._sharding import as_plan, hoisted, whole
from diffkm_jax.distances._forms import form_of, plain
from diffkm_jax.distances._mahalanobis import Mahalanobis

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def as_problem(
    points: ArrayLike,
    centroids: ArrayLike,
    *,
    distance: Callable[[jax.Array, jax.Array], jax.Array],
    weights: ArrayLike | None = None,
    active: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    block_size: int | None = None,
    axis_name: Axis = None,
) -> tuple[Plan, Problem, jax.Array]:
    """The arguments of a pass, checked: its static plan, its problem, the centroids."""
    given = points, weights, centroids, active
    points, centroids = as_points_and_centroids(points, centroids)
    weights = as_weights(weights, points.shape[0])
    active = as_active(active, centroids.shape[0])
    check_callable("distance", distance, 2)
    plan = as_plan(axis_name, block_size, points, weights)
    if temperature is not None:
        temperature = as_scalar("temperature", temperature, points, centroids, weights)
    tree = as_tree(distance)
    if isinstance(tree, Mahalanobis):
        tree.check_size(points.shape[1])
    check_domain(tree, *given)
    problem = Problem(points, tree, weights, active, temperature)
    if plan.mesh is None:
        problem, centroids = hoisted(problem, centroids), whole(centroids)
    return plan, problem, centroids


def check_domain(
    distance: Any,
    points: Any,
    weights: Any,
    centroids: Any,
    active: Any,
    names: tuple[str, str] = ("points", "centroids"),
) -> None:
    """Raises ValueError where rows that NumPy holds are outside a distance's domain.

    A JAX array is not read, which would wait for the device: a fit says it in `status`.
    """
    form = form_of(distance)
    if form is None or not form.domain:
        return
    for name, rows, usable in zip(
        names, (points, centroids), (weights, active), strict=True
    ):
        if not is_read(rows) or not (usable is None or is_read(usable)):
            continue
        rows = np.asarray(rows)
        if not rows.size:
            continue
        wide = rows.astype(np.promote_types(rows.dtype, np.float32))
        try:
            with jax.ensure_compile_time_eval():
                outside = np.asarray(form.outside(wide))
        except jax.errors.JAXTypeError:
            continue  # A function that closes over what is traced.
        if usable is not None:
            outside = outside & (np.asarray(usable) > 0)
        if outside.any():
            i = int(outside.argmax())
            row = np.array2string(rows[i], threshold=6, edgeitems=3, precision=4)
            raise ValueError(
                f"{name} must {form.domain} under {shown(plain(distance))}, got {row} "
                f"in row {i}"
            )


def is_read(value: Any) -> bool:
    """Whether the numbers of an argument are here to be read."""
    if isinstance(value, list | tuple):
        return all(isinstance(a, int | float) for a in jax.tree.leaves(value))
    return isinstance(value, np.ndarray)
