"""The pass beside its bound, the product of points and centroids, and scikit-learn's.

What was tried to make it faster, and what that gave, is in `tried.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import diffkm_jax as dk
from benchmarks import _rival_fits
from benchmarks._measure import Contest, Prepared, Side, compiled, measure, normal
from benchmarks._records import Record, compare
from diffkm_jax._blocks import block_for

PASS = "diffkm, pass"
ASSIGN = "diffkm, assign"
PRODUCT = "the product alone"
RIVAL = "scikit-learn, iteration"
SIZES = {
    "small": [(2000,), (8,), (16,)],
    "medium": [(100_000,), (16, 256, 1024), (2, 64, 784)],
    "full": [
        (10_000, 100_000, 1_000_000),
        (8, 16, 64, 256, 1024),
        (2, 16, 64, 256, 784),
    ],
}


def scores_product(points: jax.Array, centroids: jax.Array, block: int) -> jax.Array:
    """The product in blocks, of which two numbers are read; a remainder is left out."""

    def step(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        rows = lax.dynamic_slice_in_dim(points, i * block, block)
        scores = jnp.matmul(centroids, rows.T, precision=lax.Precision.HIGHEST)
        return total + scores[0, 0] + scores[-1, -1], None

    start = jnp.zeros((), points.dtype)
    return lax.scan(step, start, jnp.arange(len(points) // block))[0]


def exact_loss(points: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> float:
    """What labels cost, in float64."""
    cuts = range(0, len(points), 4096)
    rows = (slice(cut, cut + 4096) for cut in cuts)
    own = centroids.astype(float)
    return sum(np.sum((points[part] - own[labels[part]]) ** 2) for part in rows).item()


def shape(n: int, k: int, d: int) -> Contest:
    """One pass, its labels alone, its product alone, and an iteration of Lloyd's."""
    points, centroids = normal(n, k, d)
    block = min(n, block_for(k, d))

    def theirs() -> Prepared:
        return Prepared(_rival_fits.sklearn_iteration(points, centroids))

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        facts = {}
        for name in (ASSIGN, RIVAL):
            if name in results:
                # By what its labels cost in float64: equal but for near ties.
                labels = np.asarray(results[name])
                facts[name] = {"loss": exact_loss(points, centroids, labels)}
        losses = [float(results[PASS].loss), *(fact["loss"] for fact in facts.values())]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
        return facts

    args = points, centroids
    sides = {
        PASS: Side(partial(compiled, dk.statistics, *args)),
        ASSIGN: Side(partial(compiled, dk.assign, *args)),
        PRODUCT: Side(partial(compiled, partial(scores_product, block=block), *args)),
        RIVAL: Side(theirs, "sklearn.cluster"),
    }
    return Contest(sides, agree)


def shapes(size: str) -> Iterator[Record]:
    """By number of points, clusters and dimensions."""
    for n, k, d in product(*SIZES[size]):
        rounds = 3 if size == "small" or n * k * d > 1e11 else 5
        done = measure(shape, rounds=rounds, n=n, k=k, d=d)
        most = 1.0 if k >= 64 and d <= 256 else 1.2
        compare(done, PASS, RIVAL, at_most=most)
        compare(done, ASSIGN, PASS, at_most=0.9)
        bound = {"at_most": 1.25} if k >= 256 and d >= 64 else {}
        compare(done, PASS, PRODUCT, **bound)
        compare(done, PRODUCT, RIVAL)
        yield done


BENCHMARKS = {"shapes": shapes}
