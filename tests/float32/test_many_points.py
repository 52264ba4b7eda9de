"""Sums over a million points keep their digits, in values and in derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import diffkm_jax as dk
import diffkm_torch as dt

N, EPS = 10**6, np.finfo(np.float32).eps
C = np.float32([[0.0, 0.0], [0.2, 0.3], [0.5, 0.9]])
T = np.float32(0.5)
# A sum of equal numbers, one by one, is off by a percent: all are rounded one way.
DATA = {
    "equal": lambda rng: (np.full((N, 2), 0.1), np.full(N, 0.1)),
    "uniform": lambda rng: (rng.random((N, 2)), rng.random(N)),
}


def exact(x, w, t):
    """In float64: loss, gradients in centroids and temperature, and the counts."""
    x, w, c = np.float64(x), np.float64(w), np.float64(C)
    e = x[:, None] - c
    d = (e**2).sum(-1)
    if t is None:
        r = np.eye(len(c))[d.argmin(1)]
        loss, slope = w @ d.min(1), 0.0
    else:
        z = logsumexp(-d / t, axis=1)
        r = np.exp(-d / t - z[:, None])
        loss = -t * (w @ z)
        slope = (loss - w @ (r * d).sum(1)) / t
    wr = w[:, None] * r
    return loss, -2 * np.einsum("nk,nkd->kd", wr, e), slope, wr.sum(0)


def of_jax(x, w, t):
    @jax.jit
    def both(c, t):
        def loss(c, t):
            stats = dk.statistics(x, c, weights=w, temperature=t)
            return stats.loss, stats.counts

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(c, t)

    if t is None:
        found = dk.statistics(x, C, weights=w)
        gradient = jax.grad(dk.kmeans_loss, argnums=1)(x, C, weights=w)
        return found.loss, gradient, 0.0, found.counts
    (loss, counts), (gradient, slope) = both(C, t)
    return loss, gradient, slope, counts


def of_torch(x, w, t, statistics=dt.statistics):
    x, w, c = (torch.as_tensor(a) for a in (x, w, C))
    c.requires_grad_()
    temperature = None if t is None else torch.tensor(t, requires_grad=True)
    loss, counts, _ = statistics(x, c, weights=w, temperature=temperature)
    loss.backward()
    slope = 0.0 if t is None else temperature.grad
    gradient, c.grad = c.grad.numpy().copy(), None
    return loss.detach(), gradient, slope, counts.detach()


def plain(x, c, weights, temperature):
    """By torch's own sums and gradient."""
    d = ((x[:, None] - c) ** 2).sum(-1)
    if temperature is None:
        cost, r = d.min(1).values, torch.eye(len(c))[d.argmin(1)]
    else:
        cost = -temperature * torch.logsumexp(-d / temperature, 1)
        r = torch.softmax(-d / temperature, 1)
    return (weights * cost).sum(), (weights[:, None] * r).sum(0), None


def errors(found, right):
    return np.array(
        [
            np.abs(np.float64(a) - b).max() / max(np.abs(b).max(), 1e-300)
            for a, b in zip(found, right, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("data", "temperature"),
    [
        ("equal", None),
        pytest.param("equal", T, marks=pytest.mark.slow),
        pytest.param("uniform", None, marks=pytest.mark.slow),
        pytest.param("uniform", T, marks=pytest.mark.slow),
    ],
)
def test_no_more_than_ten_times_the_error_of_plain_torch(data, temperature):
    x, w = map(np.float32, DATA[data](np.random.default_rng(0)))
    right = exact(x, w, temperature)
    least = errors(of_torch(x, w, temperature, plain), right)
    for route in (of_jax, of_torch):
        found = errors(route(x, w, temperature), right)
        assert (found <= 10 * np.maximum(least, EPS)).all()


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
def test_other_losses_too(data):
    x, w = map(np.float32, DATA[data](np.random.default_rng(0)))
    # The derivative in the weights is the cost, so that Σ w ∂loss/∂w is the loss.
    sign = np.sign(np.float64(x)[:, None] - C)
    labels = np.abs(np.float64(x)[:, None] - C).sum(-1).argmin(1)
    one_hot = np.float64(w)[:, None] * np.eye(3)[labels]
    right = -np.einsum("nk,nkd->kd", one_hot, sign)
    codebook = exact(x, w, None)[1]
    for package, make in ((dk, jnp.asarray), (dt, torch.as_tensor)):
        gradient = jax.grad if package is dk else torch.func.grad
        a, b, c = make(x), make(w), make(C)

        def manhattan(c, p=package, a=a, b=b):
            return p.kmeans_loss(a, c, weights=b, distance=p.manhattan)

        def quantized(c, p=package, a=a, b=b):
            return p.quantize(a, c, weights=b).codebook_loss

        for loss, want in ((manhattan, right), (quantized, codebook)):
            assert errors([gradient(loss)(c)], [want]) <= 10 * EPS


def test_the_gradient_of_a_mean_in_half_precision_is_rounded_once():
    x = torch.ones(N, 2, dtype=torch.float16)
    c = torch.zeros(1, 2, dtype=torch.float16)
    layer = dt.KMeansLoss(c, reduction="mean")
    layer(x).backward()
    assert layer.centroids.grad.tolist() == [[-2.0, -2.0]]
    mean = jax.grad(lambda c: dk.kmeans_loss(x.numpy(), c) / N)(c.numpy())
    assert mean.tolist() == [[-2.0, -2.0]]
