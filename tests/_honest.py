"""Random honest problems: twins that agree, where rounding and ties make it hard."""

import numpy as np

import diffkm_jax as dk
import diffkm_torch as dt

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
NUM_PROBLEMS = 200


def points_and_centroids(rng, kind, n, k, d):
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


def problem(i):
    """A pair of functions, positional and keyword arrays, and what they are of."""
    rng = np.random.default_rng(i)
    kind, which = KINDS[i // 5 % 8], i % 4
    if which == 3:
        logits = rng.normal(size=(6, 5)) * 10.0 ** rng.uniform(-1, 1)
        tau = np.float64([0.05, 1.0, 10.0][i % 3])
        pair = [_gumbel_rao(m) for m in (dk, dt)]
        return pair, (logits, rng.gumbel(size=(5, 6, 5)), tau), {}, "maps"
    x, c = points_and_centroids(rng, kind, *SHAPES[i % 5])
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
