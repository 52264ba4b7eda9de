"""A fit far from the origin is the fit of the shifted data, in float32 too.

Of 2000 overlapping points about an offset, on a grid that float32 holds there: as many
steps, the same history, and no CONVERGED unless the residual, of the returned centroids
in float64, is what the rule and the rounding of these centroids allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import diffkm_jax as dk
import diffkm_torch as dt
from tests.campaign._cells import Cell

OFFSETS = 1e3, 1e4, 1e5, 1e6
PACKAGES = {"jax": (dk, jnp.asarray), "torch": (dt, torch.tensor)}


def fitted(module: str, offset: float, dtype: str, temperature: float | None) -> Any:
    package, make = PACKAGES[module]
    rng = np.random.default_rng(0)
    x = np.round(8 * rng.normal(size=(2000, 3))) / 8 + np.round(offset / 8) * 8
    x = make(x.astype(dtype))
    return x, package.fit(x, x[:20], temperature=temperature, max_steps=200)


def check(module: str, offset: float, temperature: float | None) -> None:
    _, near = fitted(module, 0.0, "float64", temperature)
    x, far = fitted(module, offset, "float32", temperature)
    steps = int(near.num_steps), int(far.num_steps)
    assert abs(steps[0] - steps[1]) <= 1, f"{steps[1]} steps, at the origin {steps[0]}"
    taken = min(steps)
    history = [np.asarray(f.history, np.float64)[:taken] for f in (near, far)]
    off = np.abs(history[0] - history[1]).max() / history[0].max()
    assert off < 1e-6, f"history is off by {off:.1e}"
    exact = dk.statistics(
        np.asarray(x, np.float64),
        np.asarray(far.centroids, np.float64),
        temperature=temperature,
    )
    residual = float(jnp.sum((exact.shifts / exact.counts[:, None]) ** 2))
    variance = float(np.asarray(x, np.float64).var(0).mean())
    rounding = far.centroids.shape[0] * 3 * (1.2e-7 * offset) ** 2
    converged = bool(far.converged)
    allowed = 2e-4 * variance + rounding
    assert not converged or residual <= allowed, f"CONVERGED with residual {residual}"


def stray(module: str, far: float) -> None:
    """A centroid far away, which is empty, changes no step of the others."""
    package, make = PACKAGES[module]
    x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    starts = x[:20], np.concatenate([x[:20], np.full((1, 3), far, np.float32)])
    alone, beside = (package.fit(make(x), make(start)) for start in starts)
    steps = int(alone.num_steps), int(beside.num_steps)
    assert steps[0] == steps[1], f"{steps[1]} steps, without it {steps[0]}"
    found = np.asarray(beside.centroids)[:-1]
    np.testing.assert_allclose(found, np.asarray(alone.centroids), atol=1e-5)


def offset_cells() -> Iterator[Cell]:
    """Hard and soft fits of both packages, and one stray centroid."""
    for module in PACKAGES:
        for far in (1e4, 1e6, 1e9):
            label = f"{module} at {far:g}"
            yield Cell(
                "invariances", "a stray centroid", label, partial(stray, module, far)
            )
        for temperature in (None, 0.3):
            for offset in OFFSETS:
                kind = "soft fit" if temperature else "fit"
                run = partial(check, module, offset, temperature)
                label = f"{kind} {module} at {offset:g}"
                yield Cell("invariances", "a fit far away", label, run)
    jax.clear_caches()
