"""Distances whose minimizer is a mean: torch against JAX, value by value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
CENTERS = np.array([[1.0, 4.0, 2.0], [4.0, 1.0, 1.0], [2.0, 2.0, 6.0]])
X = np.repeat(CENTERS, 8, 0) * np.exp(0.3 * RNG.normal(size=(24, 3)))
C, W, T = X[[0, 8, 16, 1]] * 1.1, RNG.uniform(0.5, 1.5, 24), np.asarray(0.3)
ROOT = RNG.normal(size=(3, 3))
P = ROOT @ ROOT.T + 0.1 * np.eye(3)
OPTIMIZERS = dk.newton(), dk.macqueen(), dk.ema(0.75), optax.sgd(0.01)
THEIR_OPTIMIZERS = dt.newton(), dt.macqueen(), dt.ema(0.75), dt.sgd(0.01)


def phi(v):
    return (v**4 / 12 + v**2).sum()


def distance(module, name, precision=P):
    """A distance of a package by its name."""
    if name == "mahalanobis":
        array = torch.as_tensor if module is dt else jnp.asarray
        return module.mahalanobis(array(precision))
    return module.bregman(phi) if name == "bregman" else getattr(module, name)


NAMES = [
    "squared_euclidean",
    "cosine",
    "kl_divergence",
    "itakura_saito",
    "mahalanobis",
    "bregman",
]
EVERY = pytest.mark.parametrize("name", NAMES)
EVERY_LAW = pytest.mark.parametrize(
    ("name", "soft"), [(name, soft) for name in NAMES for soft in (False, True)]
)


def close(found, expected, size=1e-9):
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=size * max(1, np.abs(b).max()))


def wave(shape):
    return np.cos(np.arange(np.prod(shape, dtype=int), dtype=float)).reshape(shape)


def jax_sum(leaves):
    """Some combination of all the numbers in arrays."""
    return sum(jnp.sum(a * wave(a.shape)) for a in leaves)


def torch_sum(leaves):
    """The same of tensors."""
    return sum((a * torch.tensor(wave(a.shape))).sum() for a in leaves)


def arguments(soft):
    """Points, centroids, weights, precision, and the temperature."""
    return [X, C, W, P, *([T] if soft else [])]


@EVERY_LAW
def test_statistics_and_their_first_and_second_derivatives(name, soft):
    def of_jax(x, c, w, p, t=None):
        options = {"weights": w, "distance": distance(dk, name, p), "temperature": t}
        return dk.statistics(x, c, **options)

    def of_torch(x, c, w, p, t=None):
        options = {"weights": w, "distance": distance(dt, name, p), "temperature": t}
        return dt.statistics(x, c, **options)

    wrt = tuple(range(4 + soft))

    @jax.jit
    def jax_side(*arrays):
        def total(*arrays):
            stats = of_jax(*arrays)
            return jax_sum(stats), stats

        gradient = jax.grad(total, wrt, has_aux=True)
        tangents = tuple(jnp.asarray(wave(a.shape)) for a in arrays)
        first, second, stats = jax.jvp(gradient, arrays, tangents, has_aux=True)
        return *stats, *first, *second

    tensors = [torch.tensor(a, requires_grad=True) for a in arguments(soft)]
    options = {"allow_unused": True, "materialize_grads": True}
    stats = of_torch(*tensors)
    total = torch_sum(stats)
    gradient = torch.autograd.grad(total, tensors, create_graph=True, **options)
    slope = torch_sum(gradient)
    second = torch.autograd.grad(slope, tensors, **options)
    found = [a.detach() for a in (*stats, *gradient, *second)]
    close(found, jax_side(*map(jnp.asarray, arguments(soft))))


@EVERY
def test_two_updates_by_every_optimizer(name):
    @jax.jit
    def jax_side(x, c, w):
        states = []
        for optimizer in OPTIMIZERS:
            state = dk.init(c, optimizer=optimizer)
            options = {"optimizer": optimizer, "distance": distance(dk, name)}
            for weights in (w, 2 * w):
                state, stats = dk.update(x, state, weights=weights, **options)
            states += [state.centroids, stats.loss]
        return states

    found = []
    x, c, w = map(torch.tensor, (X, C, W))
    for optimizer in THEIR_OPTIMIZERS:
        state = dt.init(c, optimizer=optimizer)
        options = {"optimizer": optimizer, "distance": distance(dt, name)}
        for weights in (w, 2 * w):
            state, stats = dt.update(x, state, weights=weights, **options)
        found += [state.centroids, stats.loss]
    close(found, jax_side(X, C, W))


@EVERY_LAW
def test_a_fit_and_the_derivative_of_all_that_it_returns(name, soft):
    law = {"tol": 0.0, "max_steps": 300}

    @jax.jit
    def jax_side(x, c, w, p, t=None):
        def total(x, w, p, t):
            options = {"weights": w, "distance": distance(dk, name, p), **law}
            result = dk.fit(x, c, temperature=t, **options)
            outputs = result.centroids, result.loss, result.counts
            return jax_sum(outputs), (outputs, result)

        wrt = (0, 1, 2, 3) if soft else (0, 1, 2)
        gradient, (outputs, result) = jax.grad(total, wrt, has_aux=True)(x, w, p, t)
        return *outputs, *gradient, result.status

    tensors = [torch.tensor(a, requires_grad=True) for a in arguments(soft)]
    x, c, w, p, t = [*tensors, None][:5]
    options = {"weights": w, "distance": distance(dt, name, p), **law}
    result = dt.fit(x, c.detach(), temperature=t, **options)
    outputs = result.centroids, result.loss, result.counts
    del tensors[1]
    options = {"allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad(torch_sum(outputs), tensors, **options)
    found = [*(a.detach() for a in outputs), *gradient]
    *expected, status = jax_side(*map(jnp.asarray, arguments(soft)))
    close(found, expected, 1e-8)
    assert result.status == int(status) == dk.Status.CONVERGED
