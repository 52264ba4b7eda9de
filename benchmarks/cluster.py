"""The estimator beside scikit-learn's KMeans: from one start, and by seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from benchmarks._measure import (
    Contest,
    Prepared,
    Side,
    in_child,
    interleaved,
    measure,
    missing,
)
from benchmarks._records import Record, compare, record

OURS, THEIRS = "diffkm", "scikit-learn"
MODULE = "sklearn.cluster"
SIZES = {
    "small": [(2000, 8, 4)],
    "medium": [(100_000, 64, 32), (100_000, 32, 64)],
    "full": [(100_000, 64, 32), (100_000, 32, 64)],
}
DTYPES = "float32", "float64"


def classes() -> dict[str, Any]:
    """Both classes, imported where they are called: scikit-learn may not be there."""
    from sklearn.cluster import KMeans as Theirs

    from diffkm_jax.cluster import KMeans

    return {OURS: KMeans, THEIRS: Theirs}


def blobs(n: int, k: int, d: int, dtype: str) -> np.ndarray:
    """Clusters that overlap: centers and points about them have one deviation."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((k, d))
    points = centers[rng.integers(k, size=n)] + rng.standard_normal((n, d))
    return points.astype(dtype)


def one_start(n: int, k: int, d: int, dtype: str) -> Contest:
    """Fits from the same centroids, by the same rule."""
    points = blobs(n, k, d, dtype)
    start = points[:k].copy()

    def prepare(name: str) -> Prepared:
        model = classes()[name](k, init=start, n_init=1)
        return Prepared(partial(model.fit, points))

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        ours, theirs = results[OURS], results[THEIRS]
        # Near ties fall either way in float32, and a step more or less goes on a bit.
        np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=1e-4)
        return {
            name: {"steps": fit.n_iter_, "inertia": fit.inertia_}
            for name, fit in results.items()
        }

    sides = {name: Side(partial(prepare, name), MODULE) for name in (OURS, THEIRS)}
    return Contest(sides, agree)


def starts(size: str) -> Iterator[Record]:
    rounds = 2 if size == "small" else 5
    for (n, k, d), dtype in product(SIZES[size], DTYPES):
        done = measure(one_start, rounds=rounds, burst=0, n=n, k=k, d=d, dtype=dtype)
        compare(done, OURS, THEIRS, at_most=1.0)
        yield done


def first(side: str, n: str, k: str, d: str, dtype: str) -> float:
    """Runs in a process of its own: seconds of the first fit, which compiles."""
    points = blobs(int(n), int(k), int(d), dtype)
    model = classes()[side](int(k), random_state=0)
    begin = time.perf_counter()
    model.fit(points)
    return time.perf_counter() - begin


def seeds(size: str) -> Iterator[Record]:
    """Fits with the defaults by seed, each from a start of its own; and the first."""
    count, rounds = {"small": (2, 1), "medium": (10, 1), "full": (10, 5)}[size]
    for (n, k, d), dtype in product(SIZES[size], DTYPES):
        done = record({}, n=n, k=k, d=d, dtype=dtype, seeds=count)
        yield done if missing(MODULE) else by_seed(done, count, rounds)


def by_seed(done: Record, count: int, rounds: int) -> Record:
    """The record, with what both sides take and find."""
    n, k, d, dtype = (done["parameters"][name] for name in ("n", "k", "d", "dtype"))
    points, every = blobs(n, k, d, dtype), classes()
    found = {name: [] for name in every}

    def fit(name: str, seed: int) -> None:
        model = every[name](k, random_state=seed).fit(points)
        found[name].append((model.inertia_, model.n_iter_))

    calls: dict[str, Callable[[], Any]]
    samples = {name: [] for name in every}
    for name in every:
        fit(name, 0)  # Compiles.
        found[name].clear()
    for seed in range(count):
        calls = {name: partial(fit, name, seed) for name in every}
        for name, of in interleaved(calls, rounds, 0).items():
            samples[name] += of
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    for name in every:
        inertia, steps = np.array(found[name]).T
        done["sides"][name] = {
            "seconds": samples[name],
            "mean_inertia": float(inertia.mean()),
            "least_inertia": float(inertia.min()),
            "mean_steps": float(steps.mean()),
            "first_seconds": in_child(first, name, n, k, d, dtype, **cache),
        }
    compare(done, OURS, THEIRS, at_most=1.0)
    return done


BENCHMARKS = {"start": starts, "seeds": seeds}
