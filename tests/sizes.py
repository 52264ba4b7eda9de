"""Problems with bounds on sizes of clusters, and their optima by linear programs."""

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment, linprog

KINDS = "normal", "grid", "duplicates", "apart"
# Few, because each is a program.
SHAPES = (24, 4, 2), (40, 5, 3), (9, 3, 1), (12, 1, 2)


def problem(seed):
    """Points [n, d], centroids [k, d], least and largest sizes [k]; some are equal."""
    rng = np.random.default_rng(seed)
    n, k, d = SHAPES[seed // 4 % 4]
    x, c = rng.normal(size=(n, d)), rng.normal(size=(k, d))
    kind = KINDS[seed % 4]
    if kind == "grid":
        x, c = rng.integers(0, 3, (n, d)) * 1.0, rng.integers(0, 3, (k, d)) * 1.0
    if kind == "duplicates":
        x, c = x[rng.integers(0, 5, n)], c[rng.integers(0, k, k)]
    if kind == "apart":
        c[0] += 30
    sizes = rng.multinomial(n, rng.dirichlet(np.ones(k))) * 1.0
    spread = seed // 4 % 3
    low = np.maximum(sizes - spread * rng.integers(0, 3, k), 0)
    return x, c, low, sizes + spread * rng.integers(0, 3, k)


def squares(x, c):
    return ((x[:, None] - c) ** 2).sum(-1)


def optimum(costs, low, high):
    """The least total of costs [n, k] under bounds."""
    n, k = costs.shape
    rows = sp.kron(sp.eye(n), np.ones((1, k)))
    columns = sp.kron(np.ones((1, n)), sp.eye(k))
    found = linprog(
        costs.ravel(),
        A_ub=sp.vstack([columns, -columns]),
        b_ub=np.concatenate([np.minimum(high, n), -low]),
        A_eq=rows,
        b_eq=np.ones(n),
        method="highs",
    )
    return found.fun


def optimum_of_given(costs, sizes):
    """The same where sizes are given, by repeated columns."""
    wide = np.repeat(costs, sizes.astype(int), axis=1)
    return wide[linear_sum_assignment(wide)].sum()
