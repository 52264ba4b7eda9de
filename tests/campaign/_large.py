"""A million rows in float32: no further from float64 than a sum in float32 is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import torch

from tests.campaign import _measured as m
from tests.campaign._cells import Cell

N = 10**6
# Of each field's largest entry. Pairwise sums have ε log₂ n, plain ones ε √n.
LIMIT = 2e-5


@cache
def data() -> tuple:
    """Points in three groups, one centroid far from its group's mean, weights."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (N, 2)) + 4.0 * rng.integers(0, 3, (N, 1))
    c = np.array([[0.3, 0.2], [4.1, 3.6], [7.5, 8.2]])
    return tuple(a.astype(np.float32) for a in (x, c, rng.uniform(0.5, 1.5, N)))


@cache
def truth(name: str) -> m.Fields:
    """In float64, by JAX."""
    return m.in_jax(name, *(a.astype(np.float64) for a in data()))


def check(name: str, module: str) -> None:
    run = {"jax": m.in_jax, "torch": m.in_torch}[module]
    found = run(name, *data())
    for field, a in truth(name).items():
        if field == "labels":
            share = np.mean(found[field] != a)
            assert share < 1e-5, f"{share} of the labels"
            continue
        near(field, found[field], a)


def near(field: str, found: Any, exact: np.ndarray) -> None:
    off = np.abs(np.asarray(found, np.float64) - exact).max()
    size = np.abs(exact).max()
    assert off <= LIMIT * size, f"{field} is off by {off / size:.1e} of {size:.6g}"


def of_mean(name: str, module: str, *, equal: bool) -> None:
    """The gradients of a mean: cotangents that no float32 holds exactly."""
    x, c, w = data()
    if equal:
        x, c, w = np.ones_like(x), np.zeros_like(c[:1]), np.ones_like(w)
    exact = m.in_jax(name, *(a.astype(np.float64) for a in (x, c, w)))
    if module == "jax":
        found = jax.grad(lambda *a: m.IN_JAX[name](*a)["loss"] / N, (0, 1, 2))(x, c, w)
    else:
        given = [torch.tensor(a, requires_grad=True) for a in (x, c, w)]
        found = torch.autograd.grad(m.IN_TORCH[name](*given)["loss"] / N, given)
    for field, a in zip(("d_points", "d_centroids", "d_weights"), found, strict=True):
        near(f"{field} of the mean", a, exact[field] / N)


def large_cells() -> Iterator[Cell]:
    """Losses, statistics and the quantizer in both packages; fits in JAX."""
    kind = "a million rows"
    for module in ("jax", "torch"):
        for name in (*m.LOSSES, "statistics", "soft statistics", "quantize"):
            run = partial(check, name, module)
            yield Cell("invariances", kind, f"{name} {module}", run)
        for name in m.LOSSES:
            for equal in (False, True):
                label = f"mean {name} {module}{' equal points' * equal}"
                run = partial(of_mean, name, module, equal=equal)
                yield Cell("invariances", kind, label, run)
    yield Cell("invariances", kind, "fit jax", partial(check, "fit", "jax"))
    truth.cache_clear()
    jax.clear_caches()
