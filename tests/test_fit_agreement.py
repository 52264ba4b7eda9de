"""Derivatives of a fit: those of JAX against torch's, unrolled and mode by mode."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from problems import DIGITS, start

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(50, 3)), RNG.uniform(0.5, 1.5, 50)
C, COEFFICIENTS = X[:4], np.arange(1.0, 13).reshape(4, 3)
PROBLEMS = {
    "hard": (X, C, None),
    "soft": (X, C, 0.4),
    "cold": (X, C, 0.1),
    "digits": (DIGITS[:300] / 16, start(0, 5, DIGITS[:300] / 16), None),
    "soft digits": (DIGITS[:300] / 16, start(0, 5, DIGITS[:300] / 16), 0.3),
}


def ours(x, w, t, c, **options):
    result = dk.fit(x, c, weights=w, temperature=t, **options)
    return jnp.mean(jnp.cos(3 * result.centroids) + result.centroids)


def theirs(x, w, t, c, **options):
    result = dt.fit(x, torch.tensor(c), weights=w, temperature=t, **options)
    return (torch.cos(3 * result.centroids) + result.centroids).mean()


def gradients(x, w, t, c, mode, torch_mode, **options):
    """In points, weights and, if there is one, temperature: of JAX and of torch."""
    wrt = (0, 1) if t is None else (0, 1, 2)
    jax_value = partial(ours, c=jnp.asarray(c), derivative=mode, **options)
    t_jax = None if t is None else jnp.asarray(t)
    found = jax.jit(jax.grad(jax_value, wrt))(jnp.asarray(x), jnp.asarray(w), t_jax)
    leaves = [
        None if a is None else torch.tensor(a, dtype=torch.float64) for a in (x, w, t)
    ]
    moving = [a.requires_grad_() for a in leaves if a is not None]
    value = theirs(*leaves, c=c, derivative=torch_mode, **options)
    return found, [g.numpy() for g in torch.autograd.grad(value, moving)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_implicit_derivative_is_torchs_unrolled_one(name):
    x, c, t = PROBLEMS[name]
    w = np.resize(W, len(x))
    options = {"tol": 0.0, "max_steps": 1500}
    pairs = gradients(x, w, t, c, "implicit", "unrolled", **options)
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * np.abs(b).max())


@pytest.mark.parametrize("mode", ["implicit", "one_step", "unrolled"])
@pytest.mark.parametrize("name", ["hard", "soft"])
def test_every_mode_is_torchs_even_before_convergence(mode, name):
    x, c, t = PROBLEMS[name]
    # An implicit derivative away from rest depends on how it is computed.
    steps = 1500 if (mode, name) == ("implicit", "soft") else 4
    pairs = gradients(x, W, t, c, mode, mode, tol=0.0, max_steps=steps)
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())


def test_second_derivatives_agree():
    v = np.cos(X)

    def gradient_penalty(x):
        g = jax.grad(partial(ours, w=W, t=0.4, c=jnp.asarray(C), tol=0.0))(x)
        return jnp.sum(g * v)

    found = jax.jit(jax.grad(gradient_penalty))(jnp.asarray(X))
    x = torch.tensor(X, requires_grad=True)
    value = theirs(x, torch.tensor(W), 0.4, C, tol=0.0)
    (g,) = torch.autograd.grad(value, x, create_graph=True)
    (expected,) = torch.autograd.grad((g * torch.tensor(v)).sum(), x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("distance", ["euclidean", "manhattan", "cosine"])
def test_flags_of_the_linear_solve_agree(distance):
    x, descent = X + 2, optax.sgd(1e-2)

    def jax_status(x):
        options = {"distance": getattr(dk, distance), "max_steps": 300}
        result = dk.fit(x, x[:3], optimizer=descent, **options)
        return jnp.sum(jnp.cos(result.centroids)), result.status

    (_, flags), _ = jax.jit(jax.value_and_grad(jax_status, has_aux=True))(
        jnp.asarray(x)
    )
    points = torch.tensor(x, requires_grad=True)
    result = dt.fit(
        points,
        torch.tensor(x[:3]),
        distance=getattr(dt, distance),
        optimizer=dt.sgd(1e-2),
        max_steps=300,
    )
    assert int(flags) == int(result.status)
