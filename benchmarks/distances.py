"""Other distances: passes beside the squared one, faiss' sphere, torch's L1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from benchmarks import _rival_fits, _rivals
from benchmarks._measure import (
    Contest,
    Prepared,
    Side,
    compiled,
    measure,
    normal,
    relative_error,
)
from benchmarks._records import Record, compare

SHAPES = (100_000, 256, 32), (131_072, 256, 64), (65_536, 1024, 128)
FEW = 131_072, 16, 64
SMALL = 2000, 16, 8
STEPS = 10
SQUARED = "squared_euclidean"
NAMED = "cosine", "kl_divergence", "itakura_saito", "mahalanobis"


def positive(n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of k clusters, log-normal, and the first k of them as centroids."""
    rng = np.random.default_rng(0)
    centers = np.exp(0.5 * rng.standard_normal((k, d)))
    points = centers[rng.integers(k, size=n)]
    points = points * np.exp(0.3 * rng.standard_normal((n, d)))
    return points.astype(np.float32), points[:k].astype(np.float32)


def statistics(n: int, k: int, d: int, soft: bool) -> Contest:
    """Loss, counts and shifts by each distance that has means."""
    points, centroids = positive(n, k, d)
    metric = dk.mahalanobis(jnp.eye(d) + 0.1)

    def by(name: str) -> Side:
        distance = metric if name == "mahalanobis" else getattr(dk, name)
        temperature = d / 8 if soft else None
        call = partial(dk.statistics, distance=distance, temperature=temperature)
        return Side(lambda: compiled(call, points, centroids))

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        for name, found in results.items():
            np.testing.assert_allclose(found.counts.sum(), n, rtol=1e-5, err_msg=name)
        return {}

    return Contest({name: by(name) for name in (SQUARED, *NAMED)}, agree)


def passes(size: str) -> Iterator[Record]:
    for soft in (False, True):
        for shape in [SMALL] if size == "small" else (*SHAPES, FEW):
            of = dict(zip("nkd", shape, strict=True))
            rounds = 3 if size == "small" else 7
            done = measure(statistics, rounds=rounds, soft=soft, **of)
            for name in NAMED:
                # With few centroids the distance of each point is most of the work.
                bound = {} if shape == FEW else {"at_most": 1.3}
                compare(done, name, SQUARED, **bound)
            yield done


def sphere(n: int, k: int, d: int) -> Contest:
    """Spherical k-means: ten steps from the same start, on unit rows."""
    rng = np.random.default_rng(0)
    # One start in each cluster, because faiss splits what is empty; and so wide that
    # nothing is at rest before the last step.
    noise = d**0.5 / 3 * rng.standard_normal((n, d))
    points = (rng.standard_normal((k, d))[np.arange(n) % k] + noise).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    start = points[:k].copy()
    args = jnp.asarray(points), jnp.asarray(start)
    fit = partial(dk.fit, distance=dk.cosine, max_steps=STEPS, tol=0.0)

    def ours() -> tuple[Any, float]:
        found = jax.block_until_ready(fit(*args))
        assert int(found.num_steps) == STEPS
        return found.centroids, n - float(found.history[STEPS - 1])

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        value, objective = results["diffkm"]
        facts = {}
        for name, (centroids, other) in results.items():
            # It adds its objective in float32, one point after another.
            np.testing.assert_allclose(other, objective, rtol=1e-4, err_msg=name)
            # A point that is nearly tied may go elsewhere, and moves many centroids.
            moved = np.abs(np.asarray(value) - centroids).max(1) > 1e-4
            facts[name] = {"centroids_that_differ": int(moved.sum())}
        return facts

    sides = {"diffkm": Side(lambda: Prepared(ours))}
    theirs = partial(_rival_fits.faiss_fit, points, start, STEPS, spherical=True)
    sides["faiss"] = Side(lambda: Prepared(theirs), "faiss")
    return Contest(sides, agree)


def spheres(size: str) -> Iterator[Record]:
    for shape in [SMALL] if size == "small" else (*SHAPES, FEW):
        of = dict(zip("nkd", shape, strict=True))
        done = measure(sphere, rounds=3 if size == "small" else 5, burst=0, **of)
        compare(done, "diffkm", "faiss", at_most=0.7)
        yield done


ABSOLUTE = (100_000, 256, 32), (131_072, 16, 64), (65_536, 64, 16)
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
        for shape in [SMALL] if size == "small" else ABSOLUTE:
            n, k, d = shape
            done = measure(nearest, rounds=rounds, what=what, n=n, k=k, d=d)
            compare(done, "diffkm", "torch", at_most=1)
            yield done


BENCHMARKS = {"passes": passes, "spherical": spheres, "manhattan": manhattan}
