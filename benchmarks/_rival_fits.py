"""Fits as one would run them without diffkm. A rival is imported where it is called."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._rivals import expanded, one_torch_thread


class Fitted(NamedTuple):
    """What a fit returns, as a `FitResult` does."""

    centroids: Any
    num_steps: Any


def sklearn_fit(points: np.ndarray, start: np.ndarray, **settings: Any) -> Any:
    from sklearn.cluster import KMeans

    options: dict[str, Any] = {"init": start, "n_init": 1, "algorithm": "lloyd"}
    return KMeans(len(start), **options, **settings).fit(points)


def sklearn_centers(
    points: np.ndarray, start: np.ndarray, steps: int | None = None
) -> np.ndarray:
    """The centers of its Lloyd after a number of steps, or at rest."""
    settings = {} if steps is None else {"max_iter": steps, "tol": 0}
    return sklearn_fit(points, start, **settings).cluster_centers_


def sklearn_minibatch(
    points: np.ndarray, start: np.ndarray, epochs: float
) -> np.ndarray:
    """The centers of its mini-batches of 2048 after a number of passes, or parts."""
    from sklearn.cluster import MiniBatchKMeans

    settings: dict[str, Any] = {"init": start, "n_init": 1, "batch_size": 2048}
    settings |= {"max_iter": max(1, round(epochs)), "max_no_improvement": None}
    settings["random_state"] = 0
    model, n = MiniBatchKMeans(len(start), **settings), len(points)
    if epochs >= 1:
        return model.fit(points).cluster_centers_
    rng = np.random.default_rng(0)
    for _ in range(max(1, round(epochs * n / 2048))):
        model.partial_fit(points[rng.integers(n, size=2048)])
    return model.cluster_centers_


def sklearn_iteration(points: np.ndarray, centroids: np.ndarray) -> Callable:
    """One iteration of its Lloyd, as `KMeans` runs it: labels, and the new centers.

    By a private function: fits have costs around their iterations.
    """
    from sklearn.cluster._k_means_lloyd import lloyd_iter_chunked_dense
    from threadpoolctl import threadpool_limits

    n, k = len(points), len(centroids)
    weights, labels = np.ones(n, points.dtype), np.zeros(n, np.int32)
    new, counts, moved = np.zeros_like(centroids), *np.zeros((2, k), points.dtype)
    threads = len(os.sched_getaffinity(0))

    def call() -> np.ndarray:
        # Each of its threads multiplies on its own.
        with threadpool_limits(1, user_api="blas"):
            lloyd_iter_chunked_dense(
                points, weights, centroids, new, counts, labels, moved, threads
            )
        return labels

    return call


def jax_fit(
    points: jax.Array, centroids: jax.Array, *, steps: int, temperature: float | None
) -> Fitted:
    """The steps as one writes them down, all [n, k] at once, nothing recomputed."""

    def lloyd(c: jax.Array, _: None):
        labels = lax.stop_gradient(jnp.argmin(expanded(points, c), axis=1))
        sums = jax.ops.segment_sum(points, labels, len(c))
        counts = jax.ops.segment_sum(jnp.ones(len(points)), labels, len(c))[:, None]
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), c), None

    def expectation_maximization(c: jax.Array, _: None):
        shares = jax.nn.softmax(-expanded(points, c) / temperature, axis=1)
        return shares.T @ points / shares.sum(0)[:, None], None

    step = lloyd if temperature is None else expectation_maximization
    return Fitted(lax.scan(step, centroids, length=steps)[0], steps)


def ott_fit(points: jax.Array, centroids: jax.Array, *, steps: int) -> Fitted:
    """ott-jax's k-means, from a start and of a number of steps that are given."""
    from ott.tools import k_means

    found = k_means.k_means(
        points,
        len(centroids),
        init=lambda *_: centroids,
        n_init=1,
        min_iterations=steps,
        max_iterations=steps,
    )
    return Fitted(found.centroids, found.iteration)


def torch_fit(points: Any, centroids: Any, *, steps: int) -> Fitted:
    import torch

    ones = torch.ones(len(points))
    for _ in range(steps):
        labels = expanded(points.detach(), centroids.detach()).argmin(1)
        empty = torch.zeros_like(centroids)
        sums = empty.index_add(0, labels, points)
        counts = empty[:, 0].index_add(0, labels, ones)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return Fitted(centroids, steps)


def diffkm_torch_fit(points: Any, centroids: Any, *, steps: int) -> Fitted:
    import diffkm_torch

    settings = {"derivative": "unrolled", "tol": 0, "max_steps": steps}
    found = diffkm_torch.fit(points, centroids, **settings)
    return Fitted(found.centroids, found.num_steps)


def faiss_fit(
    points: np.ndarray, start: np.ndarray, steps: int, *, spherical: bool = False
) -> tuple[np.ndarray, float]:
    """Centroids of faiss' k-means, its objective before the last step."""
    import faiss

    n, d = points.shape
    settings = {"niter": steps, "spherical": spherical, "max_points_per_centroid": n}
    model = faiss.Kmeans(d, len(start), **settings)
    model.train(points, init_centroids=start)
    return model.centroids, float(model.obj[-1])


def torch_lloyd(points: Any, centroids: Any, *, steps: int) -> Fitted:
    """As one writes it down where no gradient is wanted."""
    import torch

    for _ in range(steps):
        labels = torch.cdist(points, centroids).argmin(1)
        counts = torch.bincount(labels, minlength=len(centroids))[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        centroids = torch.where(counts > 0, sums / counts, centroids)
    return Fitted(centroids, steps)


def diffkm_torch_steps(points: Any, centroids: Any, *, steps: int) -> Fitted:
    import diffkm_torch

    found = diffkm_torch.fit(points, centroids, tol=0, max_steps=steps)
    return Fitted(found.centroids, found.num_steps)


# Many fits: [count, n, d] and starts [count, k, d] to centroids [count, k, d] ---------


def sklearn_loop(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        fits = map(partial(sklearn_fit, tol=1e-4), points, starts)
        return np.stack([one.cluster_centers_ for one in fits])


def torch_kmeans_batch(points: np.ndarray, starts: np.ndarray) -> Any:
    import torch
    from torch_kmeans import KMeans

    k = starts.shape[1]
    model = KMeans(n_clusters=k, num_init=1, max_iter=300, tol=1e-4, verbose=False)
    # It writes into the centers that it is given.
    return model(torch.from_numpy(points), centers=torch.tensor(starts)).centers


def fast_pytorch_kmeans_loop(points: np.ndarray, starts: np.ndarray) -> Any:
    import torch
    from fast_pytorch_kmeans import KMeans

    centroids = []
    with one_torch_thread():
        for x, start in zip(torch.tensor(points), torch.tensor(starts), strict=True):
            model = KMeans(n_clusters=len(start), max_iter=300, tol=1e-4)
            model.fit(x, centroids=start)
            centroids.append(model.centroids)
    return torch.stack(centroids)
