"""Fits to points in a file, beside the same fits to points in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import diffkm_jax as dk
from benchmarks._measure import Contest, Prepared, Side, compiled, measure
from benchmarks._records import Record, compare, goal

FILE, MEMORY = "diffkm, a file", "diffkm, memory"
STEPS = 3
SIZES = {
    "small": (20_000, 8, 4, 4096),
    "medium": (2_000_000, 256, 16, 65536),
    "full": (20_000_000, 256, 16, 65536),
}


def file_of(n: int, k: int, d: int) -> Path:
    """A file of clusters, which is made in pieces where it is not there."""
    path = Path(tempfile.gettempdir(), f"diffkm-streams-{n}-{k}-{d}.npy")
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    centers = 3 * rng.standard_normal((k, d), np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    for start in range(0, n, 1_000_000):
        rows = out[start : start + 1_000_000]
        rows[:] = centers[rng.integers(k, size=len(rows))]
        rows += rng.standard_normal(rows.shape, np.float32)
    out.flush()
    return path


def fit(n: int, k: int, d: int, batch: int) -> Contest:
    """A few steps by all points, with the passes before and after them."""
    path = file_of(n, k, d)
    points = np.load(path, mmap_mode="r")
    start = np.array(points[: 50 * k : 50])
    options = {"passes": STEPS, "tol": 0.0, "batch_size": batch}

    def from_file() -> Prepared:
        stream = partial(dk.fit_stream, points, start, **options)
        dk.fit_stream(points[: 2 * batch], start, **options)
        return Prepared(lambda: jax.block_until_ready(stream().centroids))

    def in_memory() -> Prepared:
        steps = partial(dk.fit, max_steps=STEPS, tol=0.0)
        whole = compiled(steps, np.array(points), start)
        return whole._replace(call=lambda: whole.call().centroids)

    def agree(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found, expected = (np.asarray(results[name]) for name in (FILE, MEMORY))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
        return {FILE: {"file_bytes": path.stat().st_size}}

    return Contest({FILE: Side(from_file), MEMORY: Side(in_memory)}, agree)


def passes(size: str) -> Iterator[Record]:
    """Time of a fit by passes over a file, and the memory that it adds."""
    n, k, d, batch = SIZES[size]
    try:
        run = partial(measure, fit, rounds=3, burst=0, weighed={FILE})
        done = run(n=n, k=k, d=d, batch=batch)
        compare(done, FILE, MEMORY, at_most=1.3)
        peak = done["sides"][FILE]["peak_bytes"]
        goal(done, "bytes that a fit to a file adds", peak, at_most=500e6)
        yield done
    finally:
        file_of(n, k, d).unlink()


BENCHMARKS = {"passes": passes}
