"""The transform matrix: every subject, under every transform, in every dtype.

A value is that of eager float64 at the inputs as cast, and so is a gradient; what a
gradient in float64 is, say central differences, where it is exact. A declared gradient
refuses forward mode with a TypeError, as the table of promises says. Dtypes are those
that the function has eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.campaign._bench import Arrays, Bench, along, programs
from tests.campaign._cells import Cell, Refused
from tests.campaign._judged import assert_near, wide
from tests.campaign._subjects import subjects

DTYPES = "float64", "float32", "bfloat16", "float16"
SCALE = 1.125
# Split over devices inside shard_map: one row or entry a point.
OF_POINTS = {"points", "weights", "noise", "nearest"}
Check = Callable[[Bench, Bench], None]


@cache
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))


def near(bench: Bench, found: Any, kind: str) -> None:
    """Raises unless a tree is the truth of a kind."""
    truth = bench.truth(kind)
    least = bench.dtype if bench.subject.rounded_inside else "float64"
    factor = bench.subject.factor(bench.dtype)
    assert_near(found, truth.tree, truth.floors, least=least, factor=factor)


def near_value(bench: Bench, found: Any) -> None:
    expected = jax.eval_shape(bench.programs.value, bench.moved)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    dtypes = [
        [jnp.result_type(x) for x in jax.tree.leaves(t)] for t in (found, expected)
    ]
    assert dtypes[0] == dtypes[1], f"dtypes {dtypes[0]}, eager {dtypes[1]}"
    near(bench, found, "value")


def near_grad(bench: Bench, found: Any) -> None:
    for name, a in bench.moved.items():
        assert found[name].dtype == a.dtype, f"gradient in {name}: {found[name].dtype}"
    near(bench, found, "grad")


def both(bench: Bench, wrapped: Callable) -> None:
    """Judges a wrapped function, and its gradient if it has one."""
    near_value(bench, wrapped(bench.programs.value)(bench.moved))
    if bench.subject.promised:
        near_grad(bench, jax.grad(wrapped(bench.programs.scalar))(bench.moved))


def stacked(*benches: Bench) -> Arrays:
    return jax.tree.map(lambda *a: jnp.stack(a), *(b.moved for b in benches))


def near_each(benches: tuple[Bench, ...], found: Any, judge: Callable) -> None:
    for i, bench in enumerate(benches):
        judge(bench, jax.tree.map(lambda a, i=i: a[i], found))


def eager(bench: Bench, _: Bench) -> None:
    near_value(bench, bench.programs.value(bench.moved))


def jit(bench: Bench, _: Bench) -> None:
    near_value(bench, bench.programs.jitted("value")(bench.moved))


def vmap(*benches: Bench) -> None:
    found = jax.vmap(benches[0].programs.value)(stacked(*benches))
    near_each(benches, found, near_value)


def vmap_of_jit(*benches: Bench) -> None:
    found = jax.vmap(benches[0].programs.jitted("value"))(stacked(*benches))
    near_each(benches, found, near_value)


def scan_body(*benches: Bench) -> None:
    def body(carry: int, moved: Arrays) -> tuple:
        return carry, benches[0].programs.value(moved)

    near_each(benches, jax.lax.scan(body, 0, stacked(*benches))[1], near_value)


def checkpoint(bench: Bench, _: Bench) -> None:
    both(bench, jax.checkpoint)


def shard_map(*benches: Bench) -> None:
    """Points over devices if the function has an axis name; else a problem on each."""
    bench, held = benches[0], benches[0].programs
    if not bench.subject.sharded:
        four = (*benches, *benches)

        def one(moved: Arrays) -> Any:
            found = held.value(jax.tree.map(lambda a: a[0], moved))
            return jax.tree.map(lambda a: jnp.asarray(a)[None], found)

        split = jax.shard_map(one, mesh=mesh(), in_specs=P("i"), out_specs=P("i"))
        near_each(four, jax.jit(split)(stacked(*four)), near_value)
        return
    shapes = jax.eval_shape(held.value, bench.moved)
    out_specs = jax.tree.map(
        lambda a: P("i") if a.shape[:1] == bench.moved["points"].shape[:1] else P(),
        shapes,
    )
    in_specs = ({name: P("i") if name in OF_POINTS else P() for name in bench.moved},)
    function = partial(bench.subject.function, axis_name="i", **held.fixed)
    split = jax.shard_map(
        lambda moved: function(**moved),
        mesh=mesh(),
        in_specs=in_specs,
        out_specs=out_specs,
    )
    near_value(bench, jax.jit(split)(bench.moved))


def sharded_arrays(bench: Bench, _: Bench) -> None:
    def put(a: jax.Array) -> jax.Array:
        spec = P("i") if a.ndim and a.shape[0] % 4 == 0 else P()
        return jax.device_put(a, NamedSharding(mesh(), spec))

    moved = jax.tree.map(put, bench.moved)
    near_value(bench, jax.jit(bench.programs.value)(moved))


def export_round_trip(bench: Bench, _: Bench) -> None:
    exported = export.export(bench.programs.jitted("value"))(bench.moved)
    loaded = export.deserialize(exported.serialize())
    near_value(bench, loaded.call(bench.moved))


def donated(bench: Bench, _: Bench) -> None:
    function = jax.jit(bench.programs.value, donate_argnums=0)
    near_value(bench, function(bench.copies))


def disable_jit(bench: Bench, _: Bench) -> None:
    with jax.disable_jit():
        found = bench.programs.value(bench.moved)
    near_value(bench, found)


def debug_nans(bench: Bench, _: Bench) -> None:
    bench.truth("value")
    with jax.debug_nans(True):
        found = bench.programs.value(bench.moved)
        if bench.subject.promised:
            jax.grad(bench.programs.scalar)(bench.moved)
    near_value(bench, found)


def strict_promotion(bench: Bench, _: Bench) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = bench.programs.value(bench.moved)
    near_value(bench, found)


def grad(bench: Bench, _: Bench) -> None:
    near_grad(bench, jax.grad(bench.programs.scalar)(bench.moved))
    if bench.dtype == "float64" and bench.subject.differences:
        slope = along(bench.truth("grad").tree, bench.direction)
        difference = bench.difference(jax.jit(bench.programs.scalar))
        np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-6)


def refuses(bench: Bench, function: Callable) -> None:
    """Raises Refused if forward mode is refused as promised."""
    if bench.subject.forward_mode:
        return
    with pytest.raises(TypeError, match="forward-mode"):
        function()
    raise Refused


def jvp(bench: Bench, _: Bench) -> None:
    def function() -> tuple:
        return jax.jvp(bench.programs.scalar, (bench.moved,), (bench.direction,))

    refuses(bench, function)
    truth = bench.truth("grad")
    # An inner product of the gradient: its parts may cancel, its rounding does not.
    parts = [np.abs(t) for t in wide(truth.tree)]
    size = sum(float(part.sum()) for part in parts) + 1.0
    floors = sum(float(floor.sum()) for floor in truth.floors)
    eps = float(jnp.finfo(bench.dtype).eps)
    found = float(function()[1])
    expected = float(along(truth.tree, bench.direction))
    assert abs(found - expected) <= 200 * eps * size + 4 * floors, (found, expected)


def jacobian(mode: Callable, bench: Bench, _: Bench) -> None:
    function = jax.jit(mode(bench.programs.smooth))
    if mode is jax.jacfwd:
        refuses(bench, lambda: function(bench.moved))
    near(bench, function(bench.moved), "jacobian")
    if bench.dtype == "float64":
        step = bench.difference(jax.jit(bench.programs.smooth))
        expected = [
            sum(jnp.tensordot(j[k], t, t.ndim) for k, t in bench.direction.items())
            for j in bench.truth("jacobian").tree
        ]
        if bench.subject.differences:
            for a, b in zip(step, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def hessian(bench: Bench, _: Bench) -> None:
    function = bench.programs.jitted("hessian")
    refuses(bench, lambda: function(bench.moved))
    near(bench, function(bench.moved), "hessian")
    if bench.dtype == "float64" and bench.subject.differences:
        expected = bench.difference(bench.programs.jitted("grad"))
        for name, rows in function(bench.moved).items():
            found = sum(
                jnp.tensordot(rows[k], t, t.ndim) for k, t in bench.direction.items()
            )
            np.testing.assert_allclose(
                found, expected[name], rtol=1e-5, atol=1e-5, err_msg=name
            )


def grad_of_vmap(*benches: Bench) -> None:
    def total(moved: Arrays) -> jax.Array:
        return jnp.sum(jax.vmap(benches[0].programs.scalar)(moved))

    near_each(benches, jax.jit(jax.grad(total))(stacked(*benches)), near_grad)


def vmap_of_grad(*benches: Bench) -> None:
    gradient = jax.vmap(jax.grad(benches[0].programs.scalar))
    near_each(benches, jax.jit(gradient)(stacked(*benches)), near_grad)


OF_VALUES: list[Check] = [
    eager,
    jit,
    vmap,
    vmap_of_jit,
    scan_body,
    checkpoint,
    shard_map,
    sharded_arrays,
    export_round_trip,
    donated,
    disable_jit,
    debug_nans,
    strict_promotion,
]
OF_DERIVATIVES: dict[str, Check] = {
    "grad": grad,
    "jvp": jvp,
    "jacfwd": partial(jacobian, jax.jacfwd),
    "jacrev": partial(jacobian, jax.jacrev),
    "hessian": hessian,
    "grad_of_vmap": grad_of_vmap,
    "vmap_of_grad": vmap_of_grad,
}


def cells() -> Iterator[Cell]:
    """Subject by subject, so that no more than its own programs are held."""
    for subject in subjects():
        checks = {check.__name__: check for check in OF_VALUES}
        if subject.promised:
            checks |= OF_DERIVATIVES
        for dtype in DTYPES:
            benches = cache(partial(_benches, subject, dtype))
            for name, check in checks.items():
                label = f"{subject.name} {dtype}"
                run = lambda check=check, benches=benches: check(*benches())  # noqa: E731
                yield Cell("transforms", name, label, run)
        programs.cache_clear()
        jax.clear_caches()


def _benches(subject: Any, dtype: str) -> tuple[Bench, Bench]:
    return Bench(subject, dtype), Bench(subject, dtype, SCALE)
