"""One process of several that cluster together, which test_hosts.py starts.

    PYTHONPATH=. python tests/hosts.py {results,endless} PORT PROCESS FOLDER

The test computes the same `results` by itself, on as many devices of one process.
"""

import itertools
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr, tree_leaves_with_path

import diffkm_jax as dk

PROCESSES, DEVICES = 2, 2
# In seconds, in which a process without a sign of life counts as dead; for `endless`.
HEARTBEAT = 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3))
W = RNG.uniform(0.5, 2, size=64)
C = X[:4] + 0.1
BATCHES = {"num_steps": 5, "batch_size": 16}


def loss(x, w):
    return dk.kmeans_loss(x, C, weights=w)


def of_fit(x, w):
    return dk.fit(x, C, weights=w, tol=0.0).centroids.sum()


# Outside of jax.jit, a gradient on an Explicit mesh needs jax.set_mesh.
ON_ANY_MESH = {
    "fit": lambda key, x, w: dk.fit(x, C, weights=w),
    "gradient": lambda key, x, w: jax.jit(jax.grad(loss, (0, 1)))(x, w),
    "gradient of fit": lambda key, x, w: jax.jit(jax.grad(of_fit, (0, 1)))(x, w),
}
FUNCTIONS = {
    "explicit": ON_ANY_MESH
    | {
        "batches": lambda key, x, w: dk.fit_minibatch(key, x, C, weights=w, **BATCHES),
        "restarts": lambda key, x, w: dk.fit_restarts(
            key, x, 3, weights=w, num_restarts=2
        ),
        "parallel": lambda key, x, w: dk.kmeans_parallel(key, x, 4, weights=w),
        "plus_plus": lambda key, x, w: dk.kmeans_plus_plus(key, x, 4, weights=w),
        "random": lambda key, x, w: dk.random_points(key, x, 4, weights=w),
        "certificate": lambda key, x, w: dk.certificate(x, C, weights=w),
    },
    "auto": ON_ANY_MESH,
}
KINDS = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}


def sharded(kind, *arrays):
    """Arrays over all devices, of which every process makes its own rows."""
    mesh = jax.make_mesh((PROCESSES * DEVICES,), ("data",), (KINDS[kind],))
    rows = NamedSharding(mesh, P("data"))
    return [
        jax.make_array_from_callback(a.shape, rows, lambda index, a=a: a[index])
        for a in arrays
    ]


def results():
    """What this process holds of all results: arrays by name and first row."""
    held = {}
    for kind, functions in FUNCTIONS.items():
        x, w = sharded(kind, X, W)
        for name, function in functions.items():
            found = function(jax.random.key(0), x, w)
            for path, array in tree_leaves_with_path(found):
                for shard in array.addressable_shards:
                    row = shard.index[0].start or 0 if shard.index else 0
                    held[f"{kind} {name}{keystr(path)}|{row}"] = np.asarray(shard.data)
    return held


def endless(ready):
    """Fits without an end, after the first of which there is a file."""
    (x,) = sharded("explicit", X)
    for _ in itertools.count():
        jax.block_until_ready(dk.fit(x, C))
        ready.touch()


if __name__ == "__main__":
    task, port, process, folder = sys.argv[1], sys.argv[2], *sys.argv[3:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    options = {"heartbeat_timeout_seconds": HEARTBEAT} if task == "endless" else {}
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, int(process), **options)
    if task == "endless":
        endless(Path(folder, f"ready{process}"))
    np.savez(Path(folder, process), **results())
