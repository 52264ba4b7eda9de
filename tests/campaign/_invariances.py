"""Invariances, by hypothesis: what a change of the problem does to what is measured.

Each is tried on problems drawn by hypothesis (derandomized: the same every time): a
seed, a shape and a dtype. Labels must be equal, other fields to 2000 ε of their largest
entry; `_measured` says how a field moves, turns and scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import diffkm_jax as dk
from tests.campaign import _measured as m
from tests.campaign._cells import Cell
from tests.campaign._large import large_cells
from tests.campaign._measured import as_arrays, assert_same, in_jax, in_torch
from tests.campaign._of_distances import distance_cells
from tests.campaign._offsets import offset_cells

SHAPES = [(12, 3, 2), (7, 2, 3), (12, 1, 1)]
INERT = [np.nan, np.inf, -np.inf, 1e20, 9.97e36, -3e38]
EXAMPLES = 24
DTYPES = "float64", "float32"
PROBLEMS = st.tuples(
    st.integers(0, 2**31), st.sampled_from(SHAPES), st.sampled_from(DTYPES)
)


def tried(check: Callable[[np.random.Generator, tuple, str], None]) -> Callable:
    """A check of (generator, shape, dtype), on problems that hypothesis draws."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(PROBLEMS)
    def run(drawn: tuple) -> None:
        seed, shape, dtype = drawn
        try:
            check(np.random.default_rng(seed), shape, dtype)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {shape}, {dtype}: {error}") from None

    return run


def eps_of(dtype: str) -> float:
    return float(np.finfo(dtype).eps)


def changed(
    name: str, rng: Any, shape: tuple, dtype: str, change: Callable, scale: float = 1.0
) -> None:
    """Raises unless a change of the problem changes the fields as it should.

    `change(rng, x, c, w)` returns the other problem, and how fields become its.
    """
    x, c, w = m.problem(rng, *shape)
    other, expect = change(rng, x, c, w)
    found = in_jax(name, *as_arrays(dtype, *other))
    before = in_jax(name, *as_arrays(dtype, x, c, w))
    expected = {k: expect(k, np.asarray(a)) for k, a in before.items()}
    if scale == 1:
        # What is returned about an origin far away is rounded there.
        size = max(1.0, np.abs(other[0]).max() / 1000)
        assert_same(found, expected, eps_of(dtype), moved=size)
        return
    # Each relative to its own size.
    for k, a in found.items():
        size = scale ** m.POWER.get(k, 0)
        assert_same({k: a / size}, {k: expected[k] / size}, eps_of(dtype))


def permuted_points(rng: Any, x: Any, c: Any, w: Any) -> tuple:
    p = rng.permutation(len(x))
    return (x[p], c, w[p]), lambda k, a: a[p] if k in m.OF_POINTS else a


def permuted_clusters(rng: Any, x: Any, c: Any, w: Any) -> tuple:
    q = rng.permutation(len(c))

    def expect(k: str, a: Any) -> Any:
        if k == "labels":
            return np.argsort(q)[a]
        return a[q] if k in m.OF_CLUSTERS else a

    return (x, c[q], w), expect


def translated(offset: float, rng: Any, x: Any, c: Any, w: Any) -> tuple:
    v = offset * rng.choice([-1.0, 1.0], x.shape[1])
    return (x + v, c + v, w), lambda k, a: a + v if k in m.MOVED else a


def rotated(rng: Any, x: Any, c: Any, w: Any) -> tuple:
    turn = np.linalg.qr(rng.normal(size=(x.shape[1],) * 2))[0]
    return (x @ turn, c @ turn, w), lambda k, a: a @ turn if k in m.TURNED else a


def reweighted(factor: float, rng: Any, x: Any, c: Any, w: Any) -> tuple:
    """Extensive fields grow with the weights, the others stay."""
    extensive = {"loss", "codebook_loss", "commitment_loss", "counts", "shifts"}
    extensive |= {"d_points", "d_centroids", "gradient_norm"}
    return (x, c, w * factor), lambda k, a: a * factor if k in extensive else a


def doubled(rng: Any, x: Any, c: Any, w: Any) -> tuple:
    """A point twice is a point of weight 2, where gradients are not of the rows."""
    i = int(rng.integers(len(x)))
    w = w.copy()
    twice = (np.append(x, x[i : i + 1], 0), c, np.append(w, w[i]))
    heavier = w.copy()
    heavier[i] *= 2
    return twice, (x, c, heavier)


def duplication(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    twice, heavier = doubled(rng, *m.problem(rng, *shape))
    a, b = (in_jax(name, *as_arrays(dtype, *problem)) for problem in (twice, heavier))
    pooled = [k for k in a if k not in m.OF_POINTS]
    assert_same({k: a[k] for k in pooled}, {k: b[k] for k in pooled}, eps_of(dtype))
    for k in ("labels", "values", "margin", "d_weights"):
        if k in a:
            assert_same({k: a[k][:-1]}, {k: b[k]}, eps_of(dtype))


def absence(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    """A row of weight 0 is absent whatever it holds, and so is its gradient."""
    x, c, w = m.problem(rng, *shape)
    row = np.full((1, x.shape[1]), INERT[int(rng.integers(len(INERT)))])
    at = int(rng.integers(len(x) + 1))
    arrays = np.insert(x, at, row, 0), c, np.insert(w, at, 0.0)
    with np.errstate(over="ignore"):
        found = in_jax(name, *as_arrays(dtype, *arrays))
    expected = in_jax(name, *as_arrays(dtype, x, c, w))
    if "d_points" in found:
        assert (found["d_points"][at] == 0).all(), found["d_points"][at]
    kept = {k: np.delete(a, at, 0) if k in m.OF_POINTS else a for k, a in found.items()}
    assert_same(kept, expected, eps_of(dtype))


def absence_of_draws(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    """What a row of weight 0 holds changes no draw, and it is never drawn."""
    x, _, w = m.problem(rng, 12, 3, shape[2])
    w[rng.permutation(12)[:3]] = 0
    filled = x.copy()
    filled[w == 0] = INERT[int(rng.integers(len(INERT)))]
    with np.errstate(over="ignore"):
        found = m.drawn(name, *as_arrays(dtype, filled, w))
    assert_same(found, m.drawn(name, *as_arrays(dtype, x, w)), 0.0)


def draws_move(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    """Draws from the same key are the same rows: moved, turned by axes, scaled."""
    x, _, w = m.problem(rng, 12, 3, shape[2])
    x, w = as_arrays(dtype, x, w)
    before = m.drawn(name, x, w)["centroids"]
    for f in (
        lambda a: a + np.asarray(8, dtype),
        lambda a: a[:, ::-1],
        lambda a: 4 * a,
    ):
        assert_same(
            {"rows": m.drawn(name, f(x), w)["centroids"]}, {"rows": f(before)}, 0.0
        )


def splitting(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, c, w = as_arrays(dtype, *m.problem(rng, *shape))
    at = len(x) // 2
    parts = [in_jax(name, x[s], c, w[s]) for s in (slice(at), slice(at, None))]
    added = {k: sum(part[k] for part in parts) for k in ("loss", "counts", "shifts")}
    assert_same(added, in_jax(name, x, c, w), eps_of(dtype))


def block_size(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    arrays = as_arrays(dtype, *m.problem(rng, *shape))
    size = [1, 5, 100][int(rng.integers(3))]
    found = in_jax(name, *arrays, block_size=size)
    assert_same(found, in_jax(name, *arrays), eps_of(dtype))


def unweighted(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    x, c, _ = as_arrays(dtype, *m.problem(rng, *shape))
    found = in_jax(name, x, c, np.ones(len(x), dtype))
    found.pop("d_weights", None)
    assert_same(found, in_jax(name, x, c, None), eps_of(dtype))


def vmap_is_loop(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    problems = [as_arrays(dtype, *m.problem(rng, *shape)) for _ in range(3)]
    stacks = [jnp.stack(arrays) for arrays in zip(*problems, strict=True)]
    found = _mapped(name)(*stacks)
    for i, arrays in enumerate(problems):
        expected = in_jax(name, *arrays)
        mapped = {k: np.asarray(found[k][i]) for k in expected if k in found}
        kept = {k: expected[k] for k in mapped}
        assert_same(mapped, kept, eps_of(dtype))


def _mapped(name: str) -> Callable:
    return _MAPPED.setdefault(name, jax.jit(jax.vmap(m.IN_JAX[name])))


_MAPPED: dict[str, Callable] = {}


def jax_is_torch(name: str, rng: Any, shape: tuple, dtype: str) -> None:
    arrays = as_arrays(dtype, *m.problem(rng, *shape))
    assert_same(in_jax(name, *arrays), in_torch(name, *arrays), eps_of(dtype))


def restarts(rng: Any, shape: tuple, dtype: str) -> None:
    """The best of restarts is no worse than the first, and weight 0 is absence."""
    x, _, w = as_arrays(dtype, *m.problem(rng, 12, 3, shape[2]))
    key = jax.random.key(int(rng.integers(2**31)))
    losses = [float(dk.fit_restarts(key, x, 3, num_restarts=r, weights=w).loss)
              for r in (1, 4)]  # fmt: skip
    assert losses[1] <= losses[0] * (1 + 100 * eps_of(dtype)), losses


def cells() -> Iterator[Cell]:
    """Every invariance, of every function that has it."""
    changes: dict[str, tuple[Callable, float]] = {
        "permutation of points": (permuted_points, 1.0),
        "permutation of clusters": (permuted_clusters, 1.0),
        "translation by 32": (partial(translated, 32.0), 1.0),
        "translation by 2¹⁹": (partial(translated, 2.0**19), 1.0),
        "rotation": (rotated, 1.0),
        "weights times 4": (partial(reweighted, 4.0), 1.0),
    }
    found: list[tuple[str, str, Callable]] = []
    for kind, (change, scale) in changes.items():
        for name in m.IN_JAX:
            check = partial(changed, name, change=change, scale=scale)
            found.append((kind, name, check))
    # Powers of two, by which no tie is broken.
    for scale in (2.0**-20, 0.5, 2.0**20):
        names = [n for n in m.IN_JAX if "soft" not in n and n != "assigned_loss"]
        change = partial(_scaled, scale)
        found += [
            (
                f"scaling by {scale:g}",
                n,
                partial(changed, n, change=change, scale=scale),
            )
            for n in names
        ]
    found += [("duplication", n, partial(duplication, n)) for n in m.IN_JAX]
    found += [("weight 0 is absence", n, partial(absence, n)) for n in m.IN_JAX]
    found += [("weight 0 is absence", n, partial(absence_of_draws, n))
              for n in m.INITIALIZERS]  # fmt: skip
    found += [("draws move", n, partial(draws_move, n)) for n in m.INITIALIZERS]
    found += [("splitting adds", n, partial(splitting, n))
              for n in ("statistics", "soft statistics")]  # fmt: skip
    found += [("block size", n, partial(block_size, n)) for n in m.WITH_BLOCKS]
    found += [("no weights are ones", n, partial(unweighted, n)) for n in m.IN_JAX]
    found += [("vmap is the loop", n, partial(vmap_is_loop, n)) for n in m.IN_JAX]
    found += [("JAX is torch", n, partial(jax_is_torch, n)) for n in m.IN_TORCH]
    found.append(("restarts", "fit_restarts", restarts))
    for kind, name, check in found:
        yield Cell("invariances", kind, name, tried(check))
    yield from distance_cells(tried)
    yield from offset_cells()
    yield from large_cells()


def _scaled(scale: float, rng: Any, x: Any, c: Any, w: Any) -> tuple:
    del rng
    power = m.POWER
    return (scale * x, scale * c, w), lambda k, a: a * scale ** power.get(k, 0)
