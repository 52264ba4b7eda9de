"""The invariances that each distance has, and `pairwise` of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import torch

import diffkm_jax as dk
import diffkm_torch as dt
from tests.campaign._cells import Cell

# By what a common scale multiplies each: its power.
POWERS = {
    "squared_euclidean": 2,
    "euclidean": 1,
    "manhattan": 1,
    "cosine": 0,
    "kl_divergence": 1,
    "itakura_saito": 0,
}
TRANSLATED = "squared_euclidean", "euclidean", "manhattan"
ROTATED = "squared_euclidean", "euclidean", "cosine"
SYMMETRIC = "squared_euclidean", "euclidean", "manhattan", "cosine"


@cache
def _pairwise(name: str) -> Callable:
    return jax.jit(partial(dk.pairwise, distance=getattr(dk, name)))


def pairwise(name: str, x: Any, y: Any) -> np.ndarray:
    return np.asarray(_pairwise(name)(x, y), np.float64)


def pair(rng: Any, shape: tuple, dtype: str) -> tuple:
    """Positive points in general position: n of them, and k."""
    n, k, d = shape
    return tuple(rng.uniform(0.5, 4, (rows, d)).astype(dtype) for rows in (n, k))


def near(a: Any, b: Any, dtype: str) -> None:
    limit = 100 * float(np.finfo(dtype).eps) * max(np.abs(b).max(), 1.0)
    off = np.abs(a - b)
    assert (off <= limit).all(), f"off by {off.max()}"


def rows(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    """`pairwise` is the distance, row by row, and not negative."""
    x, y = pair(rng, shape, dtype)
    found = pairwise(name, x, y)
    near(found, np.asarray(getattr(dk, name)(x[:, None], y[None]), np.float64), dtype)
    assert (found >= 0).all(), f"negative: {found.min()}"
    itself = pairwise(name, x, x).diagonal()
    assert (itself >= 0).all(), f"negative: {itself.min()}"
    near(pairwise(name, x, x).diagonal(), np.zeros(len(x)), dtype)


def translation(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, y = pair(rng, shape, dtype)
    x, y = np.round(x * 16) / 16, np.round(y * 16) / 16
    v = np.asarray(2.0 ** rng.integers(3, 15), dtype)
    near(pairwise(name, x + v, y + v), pairwise(name, x, y), dtype)


def rotation(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, y = pair(rng, shape, dtype)
    turn = np.linalg.qr(rng.normal(size=(shape[2],) * 2))[0].astype(dtype)
    near(pairwise(name, x @ turn, y @ turn), pairwise(name, x, y), dtype)


def scaling(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, y = pair(rng, shape, dtype)
    for scale in (1e-9, 3.0, 1e9):
        factor = scale ** POWERS[name]
        s = np.asarray(scale, dtype)
        near(pairwise(name, s * x, s * y) / factor, pairwise(name, x, y), dtype)


def symmetry(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, y = pair(rng, shape, dtype)
    near(pairwise(name, x, y), pairwise(name, y, x).T, dtype)


def permutation(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, y = pair(rng, shape, dtype)
    p = rng.permutation(shape[2])
    near(pairwise(name, x[:, p], y[:, p]), pairwise(name, x, y), dtype)


def cancelling(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    """Rows 10⁻³ apart: to 1000 ε of float64's distance at the same numbers."""
    x, _ = pair(rng, shape, dtype)
    y = (x * (1 + 1e-3 * rng.normal(size=x.shape))).astype(dtype)
    for scale in (1.0, 1e6):
        a, b = x * np.asarray(scale, dtype), y * np.asarray(scale, dtype)
        exact = np.asarray(getattr(dk, name)(*map(np.float64, (a, b))), np.float64)
        found = np.asarray(getattr(dk, name)(a, b), np.float64)
        limit = 1000 * float(np.finfo(dtype).eps) * np.abs(exact)
        # Rounding leaves ε of the coordinates of a direction, and the distance of
        # directions is √(2 cosine).
        eps = float(np.finfo(dtype).eps)
        limit += 100 * eps**2 + 10 * eps * np.sqrt(np.abs(exact))
        assert (np.abs(found - exact) <= limit).all(), f"{found}, not {exact}"


def affine(rng: Any, shape: tuple, dtype: str) -> None:
    """Mahalanobis: with A of the points, A⁻ᵀ P A⁻¹ of the precision."""
    del dtype
    x, y = pair(rng, shape, "float64")
    d = shape[2]
    root, a = rng.normal(size=(d, d)), rng.normal(size=(d, d)) + 3 * np.eye(d)
    precision, inverse = root @ root.T + np.eye(d), np.linalg.inv(a)
    moved = inverse.T @ precision @ inverse
    before = dk.mahalanobis(precision)(x[:, None], y[None])
    after = dk.mahalanobis(moved)((x @ a.T)[:, None], (y @ a.T)[None])
    np.testing.assert_allclose(after, before, rtol=1e-8)


def is_torch(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, y = pair(rng, shape, dtype)
    theirs = dt.pairwise(*map(torch.tensor, (x, y)), distance=getattr(dt, name))
    near(pairwise(name, x, y), theirs.numpy(), dtype)


def distance_cells(tried: Callable) -> Iterator[Cell]:
    """Each distance with what it has."""
    table = {
        "pairwise": (rows, POWERS),
        "translation": (translation, TRANSLATED),
        "rotation": (rotation, ROTATED),
        "scaling": (scaling, POWERS),
        "symmetry": (symmetry, SYMMETRIC),
        "permutation of features": (permutation, POWERS),
        "near rows": (cancelling, POWERS),
        "JAX is torch": (is_torch, POWERS),
    }
    for kind, (check, names) in table.items():
        for name in names:
            yield Cell("invariances", kind, name, tried(partial(check, name)))
    yield Cell("invariances", "affine maps", "mahalanobis", tried(affine))
