"""Honest pairs: the same mathematics, written in JAX and in torch, at all scales.

`honest(i)` is the i-th of as many as are asked for: a formula, and arrays drawn at a
scale of 10⁻² to 10², an offset of 0 to 100 and a temperature of 0.1 to 100.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

import diffkm_jax as dk
import diffkm_torch as dt

SHAPES = (8, 3, 2), (30, 4, 5), (13, 6, 1), (5, 2, 4), (20, 3, 7)


def _squared(x, c):
    return ((x[:, None] - c) ** 2).sum(-1)


def _expanded(x, c):
    return (x**2).sum(-1)[:, None] - 2 * x @ c.T + (c**2).sum(-1)


def _free_energy(lib, d, t):
    lse = jax.nn.logsumexp if lib is jnp else torch.logsumexp
    return -(t * lse(-d / t, -1)).sum()


def _by_hand(d, t):
    low = d.min(-1, keepdims=True)
    return (low[:, 0] - t * jnp.log(jnp.exp((low - d) / t).sum(-1))).sum()


# By name: a JAX function and a torch one of (x, c, t), x [n, d], c [k, d], t [].
FORMULAS = {
    "kmeans_loss": (
        lambda x, c, t: dk.kmeans_loss(x, c),
        lambda x, c, t: dt.kmeans_loss(x, c),
    ),
    "kmeans_loss by cdist": (
        lambda x, c, t: dk.kmeans_loss(x, c),
        lambda x, c, t: _squared(x, c).amin(1).sum(),
    ),
    "soft_kmeans_loss": (
        lambda x, c, t: dk.soft_kmeans_loss(x, c, temperature=t),
        lambda x, c, t: dt.soft_kmeans_loss(x, c, temperature=t),
    ),
    "free energy of differences": (
        lambda x, c, t: dk.soft_kmeans_loss(x, c, temperature=t),
        lambda x, c, t: _free_energy(torch, _squared(x, c), t),
    ),
    "free energy, expanded": (
        lambda x, c, t: dk.soft_kmeans_loss(x, c, temperature=t),
        lambda x, c, t: _free_energy(torch, _expanded(x, c), t),
    ),
    "free energy by hand": (
        lambda x, c, t: _by_hand(_squared(x, c), t),
        lambda x, c, t: _free_energy(torch, _squared(x, c), t),
    ),
    "statistics": (
        lambda x, c, t: dk.statistics(x, c, temperature=t),
        lambda x, c, t: dt.statistics(x, c, temperature=t),
    ),
    "memberships": (
        lambda x, c, t: jax.nn.softmax(-_squared(x, c) / t),
        lambda x, c, t: F.softmax(-_squared(x, c) / t, -1),
    ),
    "assigned_loss": (
        lambda x, c, t: dk.assigned_loss(x, c, dk.straight_through, temperature=t),
        lambda x, c, t: dt.assigned_loss(x, c, dt.straight_through, temperature=t),
    ),
    "euclidean": (
        lambda x, c, t: dk.kmeans_loss(x, c, distance=dk.euclidean) / t,
        lambda x, c, t: dt.kmeans_loss(x, c, distance=dt.euclidean) / t,
    ),
    "cosine": (
        lambda x, c, t: dk.soft_kmeans_loss(x, c, temperature=t, distance=dk.cosine),
        lambda x, c, t: dt.soft_kmeans_loss(x, c, temperature=t, distance=dt.cosine),
    ),
    "manhattan": (
        lambda x, c, t: dk.pairwise(x, c, distance=dk.manhattan) * t,
        lambda x, c, t: torch.cdist(x, c, p=1) * t,
    ),
    "sparsemax": (
        lambda x, c, t: dk.sparsemax(x @ c.T, tau=t),
        lambda x, c, t: dt.sparsemax(x @ c.T, tau=t),
    ),
    "cross entropy": (
        lambda x, c, t: -jax.nn.log_softmax(x @ c.T / t)[:, 0].mean(),
        lambda x, c, t: F.cross_entropy(x @ c.T / t, torch.zeros(len(x)).long()),
    ),
    "layer norm": (
        lambda x, c, t: (
            (
                (x - x.mean(-1, keepdims=True))
                / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
                * t
            ).sum(0)
            + c[0]
        ),
        lambda x, c, t: (F.layer_norm(x, x.shape[-1:]) * t).sum(0) + c[0],
    ),
    "gelu and a product": (
        lambda x, c, t: jax.nn.gelu(x @ c.T * t).sum(),
        lambda x, c, t: F.gelu(x @ c.T * t, approximate="tanh").sum(),
    ),
    "softplus": (
        lambda x, c, t: (t * jnp.logaddexp(x / t, 0 * x)).sum() + (c**3).sum(),
        lambda x, c, t: (t * torch.logaddexp(x / t, 0 * x)).sum() + c.pow(3).sum(),
    ),
    "variance": (
        lambda x, c, t: x.var(0) * t + c.sum(),
        lambda x, c, t: x.var(0, correction=0) * t + c.sum(),
    ),
    "attention": (
        lambda x, c, t: jax.nn.softmax(x @ c.T / t) @ c,
        lambda x, c, t: (
            F.scaled_dot_product_attention(
                x[None], c[None], c[None], scale=1 / t.item()
            )[0]
            + 0 * t
        ),
    ),
    "cumulative": (
        lambda x, c, t: jnp.cumsum(jnp.tanh(x / t), 0) @ c.T,
        lambda x, c, t: torch.cumsum(torch.tanh(x / t), 0) @ c.T,
    ),
}
# Its twin does not differentiate the temperature.
HELD = {"attention"}


def honest(i):
    """The name, both functions, the arrays and the options of the i-th pair."""
    rng = np.random.default_rng([i, 20])
    name = list(FORMULAS)[i % len(FORMULAS)]
    n, k, d = SHAPES[i // len(FORMULAS) % len(SHAPES)]
    scale, offset = 10 ** rng.uniform(-2, 2), rng.choice([0, 0, 1, 10, 100])
    x = (rng.normal(size=(n, d)) + offset) * scale
    c = (rng.normal(size=(k, d)) + offset) * scale
    t = np.float64(10 ** rng.uniform(-1, 2))
    options = {"wrt": [0, 1]} if name in HELD else {}
    return name, FORMULAS[name], (x, c, t), options
