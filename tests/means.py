"""Distances that have means, and what they are by hand: no line of the library."""

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk

N, K, D = 40, 4, 3
_rng = np.random.default_rng(0)
X = np.exp(0.5 * _rng.normal(size=(N, D)))
C = np.exp(0.5 * _rng.normal(size=(K, D)))
W = _rng.uniform(0.1, 2, N)
_root = _rng.normal(size=(D, D))
P = _root @ _root.T + 0.1 * np.eye(D)


def quartic(v):
    return jnp.sum(v**4) / 12 + jnp.sum(v**2) / 2


DISTANCES = {
    "squared_euclidean": dk.squared_euclidean,
    "cosine": dk.cosine,
    "kl_divergence": dk.kl_divergence,
    "itakura_saito": dk.itakura_saito,
    "mahalanobis": dk.mahalanobis(jnp.asarray(P)),
    "bregman": dk.bregman(quartic),
}
NAMES = list(DISTANCES)
# Where two or three clusters of X are distinct, and others are not.
TEMPERATURES = {
    "squared_euclidean": 0.3,
    "cosine": 0.02,
    "kl_divergence": 0.15,
    "itakura_saito": 0.1,
    "mahalanobis": 0.4,
    "bregman": 0.3,
}


def by_hand(name, x, c):
    """The distances [n, k] in NumPy."""
    x, c = x[:, None], c[None]
    e = x - c
    if name == "squared_euclidean":
        return (e**2).sum(-1)
    if name == "cosine":
        lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(c, axis=-1)
        return 1 - (x * c).sum(-1) / lengths
    if name == "kl_divergence":
        return (x * np.log(x / c) - e).sum(-1)
    if name == "itakura_saito":
        return (x / c - np.log(x / c) - 1).sum(-1)
    if name == "mahalanobis":
        return np.einsum("nkd,de,nke->nk", e, P, e)
    value = [(v**4 / 12 + v**2 / 2).sum(-1) for v in (x, c)]
    return value[0] - value[1] - ((c**3 / 3 + c) * e).sum(-1)


def lloyd(name, x, c, steps):
    """The centroids after every step of Lloyd's algorithm, and the loss before it."""
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if name == "cosine" else x
    every, losses = [], []
    for _ in range(steps):
        costs = by_hand(name, x, c)
        labels = costs.argmin(1)
        losses.append(costs.min(1).sum())
        means = [
            rows[labels == j].mean(0) if (labels == j).any() else c[j]
            for j in range(len(c))
        ]
        c = np.stack(means)
        if name == "cosine":
            c = c / np.linalg.norm(c, axis=1, keepdims=True)
        every.append(c)
    return every, losses


def hard_loss(distance, x, c, w):
    """The loss by a gather from all distances."""
    costs = dk.pairwise(x, c, distance=distance)
    labels = jax.lax.stop_gradient(costs).argmin(1)
    return jnp.sum(w * distance(x, c[labels]))


def soft_loss(distance, x, c, w, t):
    """The free energy from all distances."""
    costs = dk.pairwise(x, c, distance=distance)
    return -t * jnp.sum(w * jax.nn.logsumexp(-costs / t, axis=1))
