"""How long a program takes to be there, and a process to its first results."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from benchmarks._measure import in_child, normal, seconds
from benchmarks._records import Record, record

TEMPERATURE = 1.0
N, K, D, PROBLEMS = 1000, 10, 8, 16
SHAPE = {"n": N, "k": K, "d": D}


def programs() -> dict[str, tuple[Callable, tuple]]:
    """Functions by name, new ones at every call, and their arguments."""
    one = tuple(map(jnp.asarray, normal(N, K, D)))
    many = tuple(jnp.stack([a] * PROBLEMS) for a in one)

    def slope(derivative: str, **settings: Any) -> Callable:
        def value(points: jax.Array, centroids: jax.Array) -> jax.Array:
            found = dk.fit(points, centroids, derivative=derivative, **settings)
            return jnp.cos(found.centroids).sum()

        return jax.grad(value)

    soft = {"temperature": TEMPERATURE}
    return {
        "fit": (partial(dk.fit), one),
        "gradient, implicit": (slope("implicit"), one),
        "gradient, unrolled": (slope("unrolled"), one),
        "soft fit": (partial(dk.fit, **soft), one),
        "soft gradient, implicit": (slope("implicit", **soft), one),
        "soft gradient, unrolled": (slope("unrolled", **soft), one),
        f"{PROBLEMS} fits": (jax.vmap(partial(dk.fit)), many),
        f"{PROBLEMS} gradients, implicit": (jax.vmap(slope("implicit")), many),
    }


def blocking(function: Callable, *args: Any) -> Any:
    return jax.block_until_ready(function(*args))


def ahead(size: str) -> Iterator[Record]:
    """Seconds until a program is there, by stage, in turns; and a call of it."""
    chosen = list(programs())[: 2 if size == "small" else None]
    sides = {
        name: {"lower_seconds": [], "xla_seconds": [], "compile_seconds": []}
        for name in chosen
    }
    for _ in range(1 if size == "small" else 3):
        for name in chosen:
            jax.clear_caches()
            function, args = programs()[name]
            begin = time.perf_counter()
            lowered = jax.jit(function).lower(*args)
            middle = time.perf_counter()
            program = lowered.compile()
            end = time.perf_counter()
            stages = middle - begin, end - middle, end - begin
            for key, took in zip(sides[name], stages, strict=True):
                sides[name][key].append(took)
            afterwards = [seconds(partial(blocking, program, *args)) for _ in range(6)]
            sides[name]["call_seconds"] = afterwards[1:]
    medians = {
        name: {key: float(np.median(samples)) for key, samples in of.items()}
        for name, of in sides.items()
    }
    yield record(medians, **SHAPE)


def start(begin: str) -> dict[str, float]:
    """Runs in a process of its own: seconds of imports, fit, gradient, and all."""
    times = [float(begin), time.time()]
    every = programs()
    for name in "fit", "gradient, implicit":
        function, args = every[name]
        jax.block_until_ready(jax.jit(function)(*args))
        times.append(time.time())
    names = "imports_seconds", "fit_seconds", "gradient_seconds", "all_seconds"
    took = [*np.diff(times).tolist(), times[-1] - times[0]]
    return dict(zip(names, took, strict=True))


def starts(size: str) -> Iterator[Record]:
    """A process from its start to a fit and its gradient, by its compilation cache."""
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for name, env in ("none", {}), ("empty", cache), ("filled", cache):
            env = {"JAX_ENABLE_COMPILATION_CACHE": str(bool(env)).lower(), **env}
            sides[name] = in_child(start, time.time(), **env)
        held = sum(path.stat().st_size for path in Path(folder).iterdir())
    sides["filled"]["cache_bytes"] = held
    yield record(sides, **SHAPE)


BENCHMARKS = {"ahead": ahead, "start": starts}
