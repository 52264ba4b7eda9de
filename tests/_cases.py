"""The problems that every mirrored function is compared on."""

import numpy as np


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
