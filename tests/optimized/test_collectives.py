"""What a program on several devices exchanges: sums, and never the points."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import diffkm_jax as dk

N, K, D = 40_000, 32, 16
MESH = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
SHARDED = NamedSharding(MESH, P("data"))
X = jax.ShapeDtypeStruct((N, D), jnp.float32, sharding=SHARDED)
C = jax.ShapeDtypeStruct((K, D), jnp.float32)
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def computations(program):
    """The lines of every computation of a program, by name."""
    found, name = {}, None
    for line in program.as_text().splitlines():
        head = re.match(r"(?:ENTRY )?(%?[\w.\-]+) \(.*\{$", line)
        if head:
            name = head[1].lstrip("%")
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def collectives(parts, name):
    """The kind and bytes of what a computation exchanges, with those that it calls."""
    found = []
    for line in parts[name]:
        kind = re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line)
        if kind:
            found.append((kind[2], size(kind[1])))
        for called in re.findall(
            r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)", line
        ):
            found += collectives(parts, called)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            for called in branches.split(","):
                found += collectives(parts, called.strip().lstrip("%"))
    return found


def size(shapes):
    """Bytes of the arrays in a shape of HLO; all have elements of 4."""
    dims = re.findall(r"[fsu]32\[([\d,]*)\]", shapes)
    return sum(
        4 * int(jnp.prod(jnp.array([int(n or 1) for n in d.split(",")]))) for d in dims
    )


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile()


@pytest.mark.parametrize(
    "f",
    [dk.statistics, dk.assign, jax.grad(dk.kmeans_loss), jax.grad(dk.kmeans_loss, 1)],
    ids=["statistics", "assign", "gradient in points", "gradient in centroids"],
)
def test_a_pass_exchanges_its_sums_at_most(f):
    parts = computations(compiled(f, X, C))
    entry = next(reversed(parts))
    found = collectives(parts, entry)
    assert {kind for kind, _ in found} <= {"all-reduce"}
    assert len(found) <= 2
    assert sum(bytes for _, bytes in found) <= 4 * (K * D + K + 1)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_of_a_fit_exchanges_loss_counts_and_shifts(weighted):
    w = jax.ShapeDtypeStruct((N,), jnp.float32, sharding=SHARDED) if weighted else None
    program = compiled(lambda x, c, w: dk.fit(x, c, weights=w), X, C, w)
    parts = computations(program)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", program.as_text()))
    steps = [found for found in (collectives(parts, b) for b in bodies) if found]
    # The loop over steps; loops over blocks exchange nothing.
    assert len(steps) == 1
    assert [kind for kind, _ in steps[0]] in (["all-reduce"], ["all-reduce"] * 2)
    assert sum(bytes for _, bytes in steps[0]) == 4 * (K * D + K + 1)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_work_memory_and_exchange_on_a_device_are_what_the_plan_says(devices):
    """At n = 2^20, k = 256, d = 64: see "How far it goes" in docs/how/shards.md."""
    n, k, d, block = 2**20, 256, 64, 8192
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    where = NamedSharding(mesh, P("data"))
    x = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=where)
    program = compiled(dk.statistics, x, jax.ShapeDtypeStruct((k, d), jnp.float32))
    text, cost = program.as_text(), dict(program.cost_analysis() or {})
    # XLA counts the body of a loop once: the first block, and one of the others.
    of_point = cost["flops"] / (2 * block)
    assert 2 * k * d < of_point < 2 * k * d + 7 * (k + d)
    assert f'"known_trip_count":{{"n":"{n // devices // block - 1}"' in text
    exchanged = collectives(
        computations(program), next(reversed(computations(program)))
    )
    assert sum(size for _, size in exchanged) == 4 * (k * d + k + 1)
    assert program.memory_analysis().temp_size_in_bytes < 20e6


def test_no_device_holds_the_points_of_others():
    many = jax.ShapeDtypeStruct((100 * 16384, D), jnp.float32, sharding=SHARDED)
    of_device = many.size // 4 * 4
    assert compiled(dk.fit, many, C).memory_analysis().temp_size_in_bytes < of_device
