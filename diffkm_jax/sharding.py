"""Fits over the devices of a mesh, of any number of points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from diffkm_jax._checks import as_points, as_weights, check_shape
from diffkm_jax._hints import hinted, shown
from diffkm_jax._mesh import axes_of, is_axis
from diffkm_jax._problem import Plan
from diffkm_jax._sharding import devices_of, reshard, whole
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting import FitResult, State, fit
from diffkm_jax.fitting._empty import EmptyPolicy
from diffkm_jax.fitting._start import check_number, rows_of
from diffkm_jax.fitting._state import SPECS

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float

__all__ = ["fit_sharded", "fit_specs"]


@hinted
def fit_sharded(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"] | State,
    *,
    mesh: Mesh,
    axis: Any = None,
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
) -> FitResult:
    """Fits centroids to points that it shards over the devices of a mesh.

    This is `fit`, which takes arrays that are sharded already as they are. It is for
    those that are not; for a number of points that the devices do not divide, to which
    it adds rows of weight zero; and, on a mesh whose axes are Auto, for a call under
    `jax.jit`, where nothing tells `fit` how its arguments are sharded. A step exchanges
    the loss, the counts and the shifts, and never a point.

    The gradient is that of `fit`.

    Args:
        points: Data, [n, d], real, in data units, on one device or on all.
        centroids: As in `fit`.
        mesh: The devices, as `jax.make_mesh((4,), ("data",))`; its axes are names.
        axis: Name of the axis, or a tuple of names, over which rows are sharded; None
            is all axes of the mesh.
        optimizer: As in `fit`.
        weights: As in `fit`.
        active: As in `fit`.
        temperature: As in `fit`.
        distance: As in `fit`.
        tol: As in `fit`.
        max_steps: As in `fit`.
        empty: As in `fit`.
        derivative: As in `fit`.
        block_size: As in `fit`; points of one device.

    Returns:
        The `FitResult` of `fit`; the labels are sharded over rows where the devices
        divide their number, and all else is the same on every device.

    Raises:
        TypeError: As in `fit`, or `mesh` is no mesh.
        ValueError: As in `fit`, or `axis` is not of the mesh.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> dk.fit_sharded(x, x[:2], mesh=mesh).centroids.tolist()
        [[0.5], [9.5]]

    Source: Dhillon & Modha 2000 (k-means on several machines),
        https://doi.org/10.1007/3-540-46502-2_13
    """
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {shown(mesh)}")
    axis = mesh.axis_names if axis is None else axis
    if not is_axis(axis) or not axes_of(axis) <= {*mesh.axis_names}:
        raise ValueError(
            f"axis must be of the mesh, whose axes are {mesh.axis_names}, got {axis!r}"
        )
    rows: Any = points if isinstance(points, np.ndarray) else as_points(points)
    check_shape("points", rows, (None, None), "[n, d]")
    start: Any = rows_of(centroids)
    n, k = len(rows), len(start)
    missing = -n % devices_of(Plan(axis_name=axis, mesh=mesh))
    if active is None:
        check_number(k, n)
    weights = as_weights(weights, n)
    if weights is None and missing:
        weights = jnp.ones(n, jnp.float32)
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    result = fit(
        _placed(rows, missing, sharding),
        centroids,
        optimizer=optimizer,
        weights=None if weights is None else _placed(weights, missing, sharding),
        active=active,
        temperature=temperature,
        distance=distance,
        tol=tol,
        max_steps=max_steps,
        empty=empty,
        derivative=derivative,
        block_size=block_size,
        axis_name=sharding,
    )
    if not missing:
        return result
    return result._replace(labels=whole(result.labels)[:n])


def _placed(array: Any, missing: int, sharding: NamedSharding) -> jax.Array:
    """The array with so many rows of zeros added, on the devices of a mesh."""
    if missing:
        library = np if isinstance(array, np.ndarray) else jnp
        array = library.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)))
    if not isinstance(array, Tracer):
        # From where it is: no device holds all of it.
        return jax.device_put(array, sharding)
    is_explicit = AxisType.Explicit in sharding.mesh.axis_types
    place = reshard if is_explicit else lax.with_sharding_constraint
    return place(array, sharding)


def fit_specs(axis: Any = "data") -> FitResult:
    """Where each part of a `FitResult` is on a mesh: labels are sharded, all else not.

    For the `out_specs` of a `jax.shard_map` of one's own, in which fits are called with
    `axis_name`. Specs have no gradient.

    Args:
        axis: Name of the mesh axis over which points are sharded, or a tuple of names.

    Returns:
        A `FitResult` of `jax.sharding.PartitionSpec`, of no unit.

    Raises:
        TypeError: `axis` is no name.

    Example:
        >>> P, kinds = jax.sharding.PartitionSpec, (jax.sharding.AxisType.Auto,)
        >>> fit = jax.shard_map(
        ...     lambda x, c: dk.fit(x, c, axis_name="data"),
        ...     mesh=jax.make_mesh((1,), ("data",), kinds),
        ...     in_specs=(P("data"), P()),
        ...     out_specs=dk.fit_specs("data"),
        ... )
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> fit(x, x[:2]).centroids.tolist()
        [[0.5], [9.5]]

    Source: https://docs.jax.dev/en/latest/notebooks/shard_map.html
    """
    if not is_axis(axis):
        raise TypeError(f"axis must be the name of a mesh axis, got {shown(axis)}")
    return SPECS._replace(labels=PartitionSpec(axis))
