"""Distances without means: Manhattan's labels, loss and gradient beside torch's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

import diffkm_jax as dk
from benchmarks import _rivals
from benchmarks._measure import Contest, Side, compiled, measure, normal, relative_error
from benchmarks._records import Record, compare

SHAPES = (100_000, 256, 32), (131072, 16, 64), (65536, 64, 16)
SMALL = 2000, 16, 8
LOSS = partial(dk.kmeans_loss, distance=dk.manhattan)
OURS = {
    "labels": partial(dk.assign, distance=dk.manhattan),
    "loss": LOSS,
    "gradient": jax.value_and_grad(LOSS, argnums=1),
}


def nearest(n: int, k: int, d: int, what: str) -> Contest:
    """Labels, loss, or loss and its gradient in the centroids, under `manhattan`."""
    points, centroids = normal(n, k, d)
    # No point is a centroid: there the gradient of a norm is the frameworks' choice.
    centroids += np.float32(0.01)

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        ours = results.pop("diffkm")
        for theirs in results.values():
            if what == "labels":
                # A few points are nearly tied.
                assert np.mean(np.asarray(ours) != np.asarray(theirs)) < 1e-4
            else:
                for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
                    assert relative_error(a, b) < (1e-2 if np.ndim(a) else 1e-5)
        return {}

    rival = partial(_rivals.torch_manhattan, points, centroids, what)
    sides = {
        "diffkm": Side(lambda: compiled(OURS[what], points, centroids)),
        "torch": Side(rival, "torch"),
    }
    return Contest(sides, agree)


def manhattan(size: str) -> Iterator[Record]:
    """Against `torch.cdist(p=1)` and what of its [n, k] is asked for."""
    rounds = 3 if size == "small" else 7
    for what in OURS:
        for shape in [SMALL] if size == "small" else SHAPES:
            n, k, d = shape
            done = measure(nearest, rounds=rounds, what=what, n=n, k=k, d=d)
            compare(done, "diffkm", "torch", at_most=1)
            yield done


BENCHMARKS = {"manhattan": manhattan}
