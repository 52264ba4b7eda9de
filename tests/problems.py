"""Data: what mirrored functions are compared on, what is fitted, and random twins."""

import jax.numpy as jnp
import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import diffkm_jax as dk
import diffkm_torch as dt


def problem(name, dtype=np.float64):
    """Points [n, d], centroids [k, d] and, where it is the point, weights or active."""
    rng = np.random.default_rng(sum(map(ord, name)))
    n, k, d = 37, 5, 3
    extra = {}
    if name == "one cluster":
        k = 1
    if name == "a cluster each":
        n = k = 7
    x, c = rng.normal(size=(n, d)), rng.normal(size=(k, d))
    if name == "a cluster each":
        c = x[rng.permutation(n)] + 0.1
    if name == "ties":
        x, c = rng.integers(0, 3, (n, d)), rng.integers(0, 3, (k, d))
    if name == "duplicates":
        x, c = x[rng.integers(0, 4, n)], c[[0, 1, 1, 2, 0]]
    if name == "empty cluster":
        c[2] += 50
    if name == "weights":
        extra["weights"] = rng.uniform(0.1, 2, n)
    if name == "zero weights":
        w = rng.uniform(0.1, 2, n)
        w[[0, 5, 36]] = 0
        extra["weights"] = w
    if name == "inactive":
        extra["active"] = np.array([True, False, True, True, False])
    if name == "offset":
        x, c = x + 1e4, c + 1e4
    arrays = {"points": x, "centroids": c, **extra}
    return {key: a if a.dtype == bool else a.astype(dtype) for key, a in arrays.items()}


NAMES = [
    "random",
    "one cluster",
    "a cluster each",
    "ties",
    "duplicates",
    "empty cluster",
    "weights",
    "zero weights",
    "inactive",
    "offset",
]
# Equal centroids or points on a grid: one unit in the last place changes the labels.
TIED = {"ties", "duplicates"}


def layer_data():
    """Of the torch layers, in float32: x [24, 3], c [4, 3], w [24], v [24, 3]."""
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(24, 3)), rng.normal(size=(4, 3))
    w, v = rng.uniform(0.2, 2, 24), rng.normal(size=(24, 3))
    return [torch.tensor(a, dtype=torch.float32) for a in (x, c, w, v)]


# Fits, and scikit-learn's of the same data.

DIGITS = load_digits().data
X = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)))
C = X[:6]


def start(seed, k=10, data=DIGITS):
    """Rows of the data, off the integer grid: scikit-learn breaks exact ties anew."""
    rng = np.random.default_rng(seed)
    rows = data[rng.choice(len(data), k, replace=False)]
    return rows + 1e-3 * rng.normal(size=rows.shape)


def lloyd(data, c, tol=1e-4, weights=None, **options):
    model = KMeans(len(c), init=c, n_init=1, tol=tol, algorithm="lloyd", **options)
    return model.fit(data, sample_weight=weights)


def status(result):
    return result.flags


# Random honest problems: twins that agree, where rounding and ties make it hard.

SHAPES = [(30, 4, 3), (12, 3, 1), (50, 7, 8), (9, 1, 2), (25, 5, 5)]
KINDS = [
    "plain",
    "offset",
    "near ties",
    "converged",
    "weights",
    "exact ties",
    "scales",
    "duplicates",
]


def _points_and_centroids(rng, kind, n, k, d):
    x, c = rng.normal(size=(n, d)), rng.normal(size=(k, d))
    if kind == "offset":
        offset = 10.0 ** rng.integers(1, 5)
        return x + offset, c + offset
    if kind == "near ties" and k > 1:
        for i in range(0, n, 3):
            a, b = c[rng.choice(k, 2, replace=False)]
            along, across = b - a, rng.normal(size=d)
            across -= along * (across @ along) / (along @ along)
            margin = rng.choice([-1, 1]) * 10.0 ** rng.uniform(-16, -4)
            x[i] = (a + b) / 2 + 0.1 * across + margin * along
    if kind == "converged":
        for _ in range(60):
            labels = ((x[:, None] - c) ** 2).sum(-1).argmin(1)
            means = [x[labels == j].mean(0) for j in np.unique(labels)]
            c[np.unique(labels)] = means
    if kind == "exact ties":
        return rng.integers(0, 3, (n, d)) * 1.0, rng.integers(0, 3, (k, d)) * 1.0
    if kind == "scales":
        scale = 10.0 ** rng.uniform(-6, 6)
        return x * scale, c * scale
    if kind == "duplicates":
        c[k // 2], x[1] = c[0], x[0]
    return x, c


def honest_twins(i):
    """A pair of functions, positional and keyword arrays, and what they are of."""
    rng = np.random.default_rng(i)
    kind, which = KINDS[i // 5 % 8], i % 4
    if which == 3:
        logits = rng.normal(size=(6, 5)) * 10.0 ** rng.uniform(-1, 1)
        tau = np.float64([0.05, 1.0, 10.0][i % 3])
        pair = [_gumbel_rao(m) for m in (dk, dt)]
        return pair, (logits, rng.gumbel(size=(5, 6, 5)), tau), {}, "maps"
    x, c = _points_and_centroids(rng, kind, *SHAPES[i % 5])
    keywords = {}
    if kind == "weights":
        keywords["weights"] = 10.0 ** rng.uniform(-9, 0, len(x))
    if which == 1:
        t = [0.05, 0.7, 5.0][i % 3] * (np.var(x) if kind == "scales" else 1)
        keywords["temperature"] = np.float64(t)
    name = "kmeans_loss" if which == 2 else "statistics"
    return [getattr(m, name) for m in (dk, dt)], (x, c), keywords, kind


def _gumbel_rao(module):
    return lambda logits, noise, tau: module.gumbel_rao(logits, noise, tau=tau)
