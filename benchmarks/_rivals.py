"""What one would use without diffkm. A rival is imported where it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


# Estimators --------------------------------------------------------------------------

TORCH_ESTIMATORS = (
    "gumbel_softmax",
    "gumbel_softmax, hard",
    "sampled_straight_through",
    "reinmax",
    "reinforce",
    "rloo, 4 draws",
)


# What a torch user would not write in some lines, of diffkm_torch; at tau = 1.
TWINS: dict[str, Callable[[Any], Any]] = {
    "decoupled, tau_backward=1": lambda es: es.decoupled_gumbel_softmax(tau=1.0),
    "gumbel_rao": lambda es: es.gumbel_rao(tau=1.0),
    "implicit_mle, scaled": lambda es: es.implicit_mle(strength=1.0, scaled=True),
    "rebar": lambda es: es.rebar(tau=1.0),
    "rodeo, 4 draws": lambda es: es.rodeo(),
    "reinmax_rao": lambda es: es.reinmax_rao(tau=1.0),
    "reinmax_cv": lambda es: es.reinmax_cv(tau=1.0),
    "unordered_set, 4": lambda es: es.unordered_set(num_samples=4),
}


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

    def of_twin(z: Any) -> Any:
        import diffkm_torch as dt

        record = TWINS[name](dt.estimators)
        shape = record.num_draws, *z.shape
        noise = -torch.empty(shape, dtype=z.dtype).exponential_().log()
        return record.expect(cost, z, noise)

    by_name = dict(zip(TORCH_ESTIMATORS, ways, strict=True))
    surrogate = by_name.get(name, of_twin)

    def call() -> tuple[Any, Any]:
        z = theta.expand(num_samples, -1).clone().requires_grad_()
        surrogate(z).sum().backward()
        assert z.grad is not None
        return z.grad.mean(0), z.grad.var(0)

    return call
