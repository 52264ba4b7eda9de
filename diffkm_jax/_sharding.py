"""Arrays sharded over rows: each device passes over its own, and the sums are added.

How an array is sharded is read from its type, on an Explicit mesh, or from the array
itself. A tracer on an Auto mesh does not know: it is as an array on one device, which
XLA shards as it sees fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffkm_jax._checks import check_block_size
from diffkm_jax._mesh import (
    HAS_PCAST,
    axes_of,
    check_axis,
    index_on,
    size_of,
    varying_axes,
)
from diffkm_jax._problem import Plan, Problem, Rows

# As it is called until jax 0.9.
reshard = getattr(jax, "reshard", None) or jax.sharding.reshard
SAME = PartitionSpec()
# What stands, in the specs of outputs, for the axis over which rows are sharded.
ROWS = PartitionSpec("rows")


def as_plan(axis_name: Any, block_size: int | None, points: Any, weights: Any) -> Plan:
    """The plan of a pass: over an axis that is given, or over which rows are sharded.

    Raises ValueError where the axis is not one of the shard_map around, or an array is
    sharded over another axis than its rows.
    """
    check_block_size(block_size)
    if axis_name is not None and not isinstance(axis_name, NamedSharding):
        check_axis(axis_name)
        _check_sharded(axis_name, points, weights)
        return Plan(block_size, axis_name)
    given = {"points": points, "weights": weights}
    shardings = {name: _sharding_of(array) for name, array in given.items()}
    for name, sharding in {"axis_name": axis_name, **shardings}.items():
        if sharding is not None:
            return Plan(block_size, axis_of(name, sharding), sharding.mesh)
    return Plan(block_size)


def _check_sharded(axis_name: Any, *rows: Any) -> None:
    """Raises ValueError where rows are the same on every device of an axis of sums.

    Every point would count once for each of them. With `check_vma=False` no one knows.
    """
    known = varying_axes(index_on(axis_name))
    missing = sorted((axes_of(axis_name) & known) - varying_axes(rows))
    if missing:
        raise ValueError(
            f"axis_name must be an axis over which the points are sharded, but they "
            f"are the same on every device of {missing[0]!r}: in_specs of the "
            f"jax.shard_map with P({missing[0]!r}) for them, or no axis_name"
        )


def axis_of(name: str, sharding: NamedSharding) -> Any:
    """The axis over which a sharding has rows; ValueError if it has others."""
    axis, *others = (*sharding.spec, None)
    if any(other is not None for other in others):
        rows = axis or sharding.mesh.axis_names[0]
        raise ValueError(
            f"{name} must be sharded over rows only, as by "
            f"NamedSharding(mesh, P({rows!r})), got {sharding.spec}"
        )
    return axis


def _sharding_of(array: Any) -> Any:
    """The sharding of an array over a mesh, or None if it is not known or trivial."""
    if not isinstance(array, jax.Array):
        return None
    kind = getattr(jax.typeof(array), "sharding", None)
    known = [kind] if isinstance(array, Tracer) else [kind, array.sharding]
    for sharding in known:
        if isinstance(sharding, NamedSharding) and any(
            entry is not None and entry is not PartitionSpec.UNCONSTRAINED
            for entry in sharding.spec
        ):
            return sharding
    return None


def devices_of(plan: Plan) -> int:
    """The number of devices over which the points are sharded."""
    if plan.mesh is None:
        return size_of(plan.axis_name)
    return math.prod(plan.mesh.shape[axis] for axis in axes_of(plan.axis_name))


def number_of(plan: Plan, points: jax.Array) -> int:
    """The number of points on all devices."""
    return len(points) * (1 if plan.mesh is not None else devices_of(plan))


def over_rows(num_static: int, outputs: Any = SAME) -> Callable[[Callable], Any]:
    """Jits a function of a plan and more, on the mesh of the plan if it has one.

    Of its first `num_static` arguments, which are static, the first is a `Plan` or has
    one; a `Problem` or `Rows` among the others is sharded over rows, all else the same
    on every device. `outputs` are the specs of what it returns.
    """

    def decorate(function: Callable) -> Callable:
        @partial(jax.jit, static_argnums=tuple(range(num_static)))
        @wraps(function)
        def call(*args: Any) -> Any:
            (first, *static), given = args[:num_static], args[num_static:]
            plan = first if isinstance(first, Plan) else first.plan
            if plan.mesh is None:
                return function(*args)
            alone = plan._replace(mesh=None)
            first = alone if isinstance(first, Plan) else first._replace(plan=alone)
            rows = PartitionSpec(plan.axis_name)
            of_problem = specs_of(Problem, "points", "weights", rows=rows)
            of_kind = {Problem: of_problem, Rows: specs_of(Rows, "array", rows=rows)}
            specs = tuple(of_kind.get(type(a), SAME) for a in given)

            def on_device(*given: Any) -> Any:
                held = [
                    hoisted(a, *given) if isinstance(a, Problem) else a for a in given
                ]
                return function(first, *static, *held)

            run = jax.shard_map(
                on_device,
                mesh=plan.mesh,
                in_specs=specs,
                out_specs=jax.tree.map(
                    lambda spec: rows if spec == ROWS else spec, outputs
                ),
            )
            return run(*_placed(plan.mesh, given, specs))

        return call

    return decorate


def hoisted(problem: Problem, *others: Any) -> Problem:
    """The problem with what its distance closes over as arrays that this holds.

    Done where the pass is: what is traced outside a mesh is of no use on it.
    """
    distance = problem.distance
    if not hasattr(distance, "hoisted"):
        return problem
    floating = [a for a in jax.tree.leaves(others) if jnp.issubdtype(a.dtype, float)]
    row = jnp.ones(problem.points.shape[1], problem.dtype(*floating))
    return problem._replace(distance=distance.hoisted(row))


def whole(array: jax.Array) -> jax.Array:
    """The array, the same on every device where its type says that it is sharded."""
    sharding: Any = getattr(jax.typeof(array), "sharding", None)
    if sharding is None or all(entry is None for entry in sharding.spec):
        return array
    return reshard(array, NamedSharding(sharding.mesh, SAME))


def specs_of(kind: Any, *sharded: str, rows: PartitionSpec = ROWS) -> Any:
    """Where the fields of a tuple are on a mesh: those named are sharded over rows."""
    same = dict.fromkeys(kind._fields, SAME)
    return kind(**(same | dict.fromkeys(sharded, rows)))


def _placed(mesh: Any, given: tuple, specs: tuple) -> tuple:
    """The arguments as their specs say, where a type says that they are not."""
    if AxisType.Explicit not in mesh.axis_types:
        return given

    def place(spec: PartitionSpec, tree: Any) -> Any:
        return jax.tree.map(lambda a: reshard(a, NamedSharding(mesh, spec)), tree)

    return jax.tree.map(place, specs, given)


def check_replicated(plan: Plan, problem: Any, start: Any) -> None:
    """Raises ValueError where points differ over devices and a start does not."""
    if plan.mesh is not None:
        return  # Outside any shard_map.
    axis_name = plan.axis_name
    axes, summed = varying_axes(start), axes_of(axis_name)
    missing = sorted(varying_axes(problem) - axes - summed)
    if missing:
        axis = repr(missing[0])
        cast = f"pcast(centroids, {axis}, to='varying')"
        cast = cast if HAS_PCAST else f"pvary(centroids, {axis})"
        raise ValueError(
            f"axis_name must be {axis}, over which the points are sharded, got "
            f"{axis_name!r}; for one fit per device, centroids is jax.lax.{cast}"
        )
    if summed & axes:
        raise ValueError(
            f"centroids must be the same on every device of axis_name={axis_name!r}"
        )
