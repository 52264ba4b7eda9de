"""What one would use without diffkm. A rival is imported where it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._measure import Prepared


def expanded(points: Any, centroids: Any) -> Any:
    """‖x‖² − 2 x·c + ‖c‖², [n, k], in torch or JAX; the points are centred already."""
    cross = points @ centroids.T
    return (points**2).sum(1)[:, None] - 2 * cross + (centroids**2).sum(1)[None]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """With which torch is faster on small arrays."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Losses ------------------------------------------------------------------------------


def jax_loss(points: jax.Array, centroids: jax.Array, temperature: float | None):
    distance = expanded(points, centroids)
    if temperature is None:
        return jnp.min(distance, axis=1).sum()
    return -temperature * jax.nn.logsumexp(-distance / temperature, axis=1).sum()


def torch_loss(
    points: np.ndarray, centroids: np.ndarray, temperature: float | None
) -> Prepared:
    """Value and gradient in the centroids, by autograd."""
    import torch

    x, c = torch.from_numpy(points), torch.tensor(centroids, requires_grad=True)

    def call() -> tuple[Any, Any]:
        c.grad = None
        distance = expanded(x, c)
        if temperature is None:
            loss = distance.min(dim=1).values.sum()
        else:
            loss = -temperature * (-distance / temperature).logsumexp(dim=1).sum()
        loss.backward()
        return loss.detach(), c.grad

    return Prepared(call)


def torch_manhattan(points: np.ndarray, centroids: np.ndarray, what: str) -> Prepared:
    """The labels, the loss, or the loss and its gradient, of all distances."""
    import torch

    x, c = torch.from_numpy(points), torch.tensor(centroids)
    c.requires_grad_(what == "gradient")

    def call() -> Any:
        c.grad = None
        distance = torch.cdist(x, c, p=1)
        if what == "labels":
            return distance.argmin(1)
        loss = distance.min(dim=1).values.sum()
        if what == "loss":
            return loss
        loss.backward()
        return loss.detach(), c.grad

    return Prepared(call)


def torch_descent(
    points: np.ndarray, batches: np.ndarray, start: np.ndarray, rate: float
) -> list[float]:
    """Gradient descent on the centroids in the form that diffkm was asked about.

    A loop over the clusters, a boolean mask for each, autograd, a step by hand.
    """
    import torch

    data = torch.from_numpy(points)
    centroids = torch.tensor(start)[:, None].requires_grad_()
    losses = []
    with one_torch_thread():
        for batch in torch.from_numpy(batches):
            squared = ((data[batch] - centroids) ** 2).sum(2)
            owner = squared.argmin(0)
            loss = torch.zeros((), dtype=data.dtype)
            for j in range(len(start)):
                mine = squared.T[owner == j]
                if len(mine):
                    loss = loss + mine[:, j].sum()
            loss.backward()
            losses.append(loss.item())
            gradient: Any = centroids.grad
            with torch.no_grad():
                centroids -= rate * gradient
                gradient.zero_()
    return losses


# Fits --------------------------------------------------------------------------------


class Fitted(NamedTuple):
    """What a fit returns, as a `FitResult` does."""

    centroids: Any
    num_steps: Any


def sklearn_fit(points: np.ndarray, start: np.ndarray, **settings: Any) -> Any:
    from sklearn.cluster import KMeans

    options: dict[str, Any] = {"init": start, "n_init": 1, "algorithm": "lloyd"}
    return KMeans(len(start), **options, **settings).fit(points)


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


def faiss_sphere(
    points: np.ndarray, start: np.ndarray, steps: int
) -> tuple[np.ndarray, float]:
    """Centroids of faiss' spherical k-means, its objective before the last step."""
    import faiss

    n, d = points.shape
    model = faiss.Kmeans(
        d, len(start), niter=steps, spherical=True, max_points_per_centroid=n
    )
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


# Estimators --------------------------------------------------------------------------

TORCH_ESTIMATORS = (
    "gumbel_softmax",
    "gumbel_softmax, hard",
    "sampled_straight_through",
    "reinmax",
    "reinforce",
    "rloo, 4 draws",
)


def torch_estimate(
    name: str, logits: np.ndarray, of_class: np.ndarray, num_samples: int
) -> Callable[[], tuple[Any, Any]]:
    """Mean and variance of an estimate of E −log D·q, as a torch user takes them."""
    import torch
    from torch.nn.functional import gumbel_softmax

    torch.manual_seed(0)
    theta, q = torch.from_numpy(logits), torch.from_numpy(of_class)

    def cost(rows: Any) -> Any:
        return -(rows * q).sum(-1).log()

    def draws(count: int) -> Any:
        p = torch.softmax(theta, -1)
        return torch.multinomial(p, num_samples * count, replacement=True)

    def one_hot(labels: Any) -> Any:
        return torch.nn.functional.one_hot(labels, len(theta)).to(theta.dtype)

    def straight_through(z: Any) -> Any:
        soft = torch.softmax(z, -1)
        return cost(one_hot(draws(1)) + soft - soft.detach())

    def reinmax(z: Any) -> Any:
        drawn, soft = one_hot(draws(1)), torch.softmax(z, -1)
        middle = (0.5 * (soft + drawn)).detach()
        moved = torch.softmax(z + (middle.log() - z).detach(), -1)
        rise = 2 * moved - 0.5 * soft
        return cost(drawn + rise - rise.detach())

    def reinforce(z: Any) -> Any:
        labels = draws(1)
        log_p = torch.log_softmax(z, -1).gather(-1, labels[:, None])[:, 0]
        return cost(one_hot(labels)) * log_p

    def rloo(z: Any) -> Any:
        labels = draws(4).reshape(num_samples, 4)
        costs = cost(one_hot(labels))
        log_p = torch.log_softmax(z, -1).gather(-1, labels)
        return ((costs - costs.mean(-1, keepdim=True)) * log_p).sum(-1) / 3

    ways = (
        lambda z: cost(gumbel_softmax(z)),
        lambda z: cost(gumbel_softmax(z, hard=True)),
        straight_through,
        reinmax,
        reinforce,
        rloo,
    )
    surrogate = ways[TORCH_ESTIMATORS.index(name)]

    def call() -> tuple[Any, Any]:
        z = theta.expand(num_samples, -1).clone().requires_grad_()
        surrogate(z).sum().backward()
        assert z.grad is not None
        return z.grad.mean(0), z.grad.var(0)

    return call
