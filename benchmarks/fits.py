"""Fits inside programs: the price of a derivative, and of many problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from benchmarks import _rival_fits
from benchmarks._measure import (
    Contest,
    Prepared,
    Side,
    compiled,
    measure,
    normal,
    relative_error,
)
from benchmarks._records import Record, compare, goal, median

ALONE = "diffkm, the fit alone"
IMPLICIT = "diffkm, implicit"
UNROLLED = "diffkm, unrolled"
PASS = "one pass"
OURS = PASS, ALONE, IMPLICIT, UNROLLED
IN_JAX = "JAX, plain loop"
IN_TORCH = "torch, plain loop"
MIRROR = "diffkm_torch, unrolled"
OTT = "ott-jax"
RIVALS = IN_JAX, IN_TORCH, MIRROR, OTT
WEIGHED = *OURS[1:], *RIVALS
# Above 2, twice the variance, all centroids merge; near it, most.
TEMPERATURE = 1.0


# The price of a derivative -----------------------------------------------------------


def value(fit: Callable) -> Callable:
    """The cosines of the fitted centroids, summed, and what was fitted."""

    def of(points: jax.Array, centroids: jax.Array) -> tuple[jax.Array, Any]:
        found = fit(points, centroids)
        return jnp.cos(found.centroids).sum(), found

    return of


def in_jax(fit: Callable, *args: np.ndarray, module: str | None = None) -> Side:
    """Value and gradient in the points."""
    both = jax.value_and_grad(value(fit), has_aux=True)
    return Side(partial(compiled, both, *args), module)


def in_diffkm(*args: np.ndarray, **settings: Any) -> dict[str, Side]:
    """A pass over the points, the fit, and its gradients."""
    alone = value(partial(dk.fit, derivative="none", **settings))
    one_pass = partial(dk.statistics, temperature=settings["temperature"])
    return {
        PASS: Side(partial(compiled, one_pass, *args)),
        ALONE: Side(partial(compiled, lambda *args: (alone(*args), None), *args)),
        IMPLICIT: in_jax(partial(dk.fit, derivative="implicit", **settings), *args),
        UNROLLED: in_jax(partial(dk.fit, derivative="unrolled", **settings), *args),
    }


def gradient(n: int, k: int, d: int, steps: int, soft: bool) -> Contest:
    """Value and gradient in the points of a number of steps of a fit."""
    points, centroids = normal(n, k, d)
    temperature = TEMPERATURE if soft else None
    plain = partial(_rival_fits.jax_fit, steps=steps, temperature=temperature)

    def in_torch(fit: Callable) -> Side:
        def prepare() -> Prepared:
            import torch

            x, c = torch.tensor(points, requires_grad=True), torch.tensor(centroids)

            def call() -> tuple[tuple[Any, Any], Any]:
                x.grad = None
                found = fit(x, c, steps=steps)
                value = found.centroids.cos().sum()
                value.backward()
                return (value.detach(), found), x.grad

            return Prepared(call)

        return Side(prepare, "torch")

    def agree(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
        del results[PASS]
        for name, ((_, found), _) in results.items():
            assert int(found.num_steps) == steps, f"{name} stopped early"
        # Hard, points that were nearly tied go elsewhere at the second step.
        if steps > (few := 10 if soft else 1):
            shorter = gradient(n, k, d, few, soft).sides
            results = {name: shorter[name].prepare().call() for name in results}
        (expected, _), _ = results[ALONE]
        facts = {}
        for name, ((value, _), found) in results.items():
            np.testing.assert_allclose(float(value), float(expected), rtol=1e-3)
            if name in RIVALS:
                error = relative_error(found, results[UNROLLED][1])
                assert error < 1e-2, f"{name}: the gradients differ by {error:.1e}"
                facts[name] = {"gradient_error": error}
        return facts

    settings = {"temperature": temperature, "tol": 0, "max_steps": steps}
    sides = in_diffkm(points, centroids, **settings)
    sides[IN_JAX] = in_jax(plain, points, centroids)
    if not soft:
        ott = partial(_rival_fits.ott_fit, steps=steps)
        sides[IN_TORCH] = in_torch(_rival_fits.torch_fit)
        sides[MIRROR] = in_torch(_rival_fits.diffkm_torch_fit)
        sides[OTT] = in_jax(ott, points, centroids, module="ott.tools.k_means")
    return Contest(sides, agree)


def price(of: Record, most: float) -> None:
    """Notes what each side takes beside the fit alone, also in passes of the data."""
    for name, facts in of["sides"].items():
        if "seconds" in facts and name not in (ALONE, PASS):
            compare(of, name, ALONE)
            more = (median(of, name) - median(of, ALONE)) / median(of, PASS)
            facts["passes_more"] = more
    more = of["sides"][IMPLICIT]["passes_more"]
    goal(of, f"{IMPLICIT}: passes more than the fit alone", more, at_most=most)


def gradients(size: str) -> Iterator[Record]:
    """Two numbers of steps, hard and soft; rivals are timed at the smaller one."""
    small = size == "small"
    n, k, d = (2000, 8, 4) if small else (100_000, 64, 32)
    rounds = {"small": 2, "medium": 3, "full": 7}[size]
    for soft in (False, True):
        done = []
        for steps in ((1,) if soft else (1, 2)) if small else (25, 100):
            timed = OURS[:3] if small and done else OURS if done else None
            weighed = () if small and soft else (IMPLICIT,) if small else WEIGHED
            run = partial(measure, gradient, timed=timed, weighed=weighed)
            done.append(run(rounds=rounds, n=n, k=k, d=d, steps=steps, soft=soft))
            price(done[-1], 60 if soft else 2)
        few, many = (done[i]["sides"][IMPLICIT] for i in (0, -1))
        # A buffer of the size of the points comes and goes between runs.
        for key in ("temporary_bytes", "peak_bytes"):
            if key in few:
                most = (1.1 * few[key] + 4 * n * d) / 1e6
                what = f"MB in {key}, flat in steps"
                goal(done[-1], what, many[key] / 1e6, at_most=most)
        yield from done


def rest(n: int, k: int, d: int, spread: float) -> Contest:
    """A soft fit that converges, and its implicit gradient."""
    rng = np.random.default_rng(0)
    centers = spread * rng.standard_normal((k, d))
    points = centers[np.arange(n) % k] + rng.standard_normal((n, d))
    points = points.astype(np.float32)

    def agree(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
        (value, found), _ = results[IMPLICIT]
        (expected, _), _ = results[ALONE]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        status = str(found.flags).replace("|", ", ")
        return {IMPLICIT: {"steps": int(found.num_steps), "status": status}}

    start = points[:k]  # One of each cluster.
    sides = in_diffkm(points, start, temperature=TEMPERATURE, tol=1e-6)
    del sides[UNROLLED]
    return Contest(sides, agree)


def rests(size: str) -> Iterator[Record]:
    """What the implicit gradient costs where it is one, of clusters apart and not."""
    n, k, d = (2000, 8, 4) if size == "small" else (100_000, 64, 32)
    for spread in (1.0,) if size == "small" else (1.0, 0.5):
        done = measure(rest, rounds=3, n=n, k=k, d=d, spread=spread)
        price(done, 60)
        yield done


# Many problems -----------------------------------------------------------------------


def batch(kind: str, count: int, n: int, k: int, d: int) -> Contest:
    """Fits of many small problems from the same starts, as one program and as a loop.

    The loops run in one thread, with which they are faster on arrays as small as these.
    All stop by a rule of their own; torch_kmeans and fast_pytorch_kmeans move a cluster
    that lost its points to the origin.
    """
    rng = np.random.default_rng(0)
    points = rng.standard_normal((count, n, d))
    if kind == "blobs":
        centers = 5 * rng.standard_normal((count, k, d))
        own = rng.integers(k, size=(count, n, 1))
        points += np.take_along_axis(centers, own, axis=1)
    points = points.astype(np.float32)
    keys = jax.random.split(jax.random.key(0), count)
    choose = jax.vmap(lambda key, x: dk.kmeans_plus_plus(key, x, k))
    starts = np.asarray(jax.jit(choose)(keys, points))

    def loop(function: Callable) -> Callable[[], Prepared]:
        return lambda: Prepared(partial(function, points, starts))

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        found = results["diffkm"]
        settled = found.converged
        assert settled.all(), "not all of the fits converged"
        facts = {}
        for name, result in (results | {"diffkm": found.centroids}).items():
            # By one measure for all.
            losses = jax.vmap(dk.kmeans_loss)(points, np.asarray(result))
            facts[name] = {"mean_inertia": float(losses.mean())}
        steps = {"mean_steps": found.num_steps.mean(), "steps": found.num_steps.max()}
        ours = facts["diffkm"]["mean_inertia"]
        if "scikit-learn" in facts:
            theirs = facts["scikit-learn"]["mean_inertia"]
            np.testing.assert_allclose(ours, theirs, rtol=1e-3)
        facts["diffkm"] |= {name: float(value) for name, value in steps.items()}
        return facts

    sides = {"diffkm": Side(lambda: compiled(jax.vmap(dk.fit), points, starts))}
    for name, module, function in (
        ("scikit-learn", "sklearn.cluster", _rival_fits.sklearn_loop),
        ("torch_kmeans", "torch_kmeans", _rival_fits.torch_kmeans_batch),
        ("fast_pytorch_kmeans",) * 2 + (_rival_fits.fast_pytorch_kmeans_loop,),
    ):
        sides[name] = Side(loop(function), module)
    return Contest(sides, agree)


def batches(size: str) -> Iterator[Record]:
    for kind in ("blobs",) if size == "small" else ("blobs", "noise"):
        count = 20 if size == "small" else 1000
        run = partial(measure, batch, rounds=3, burst=0)
        done = run(kind=kind, count=count, n=200, k=10, d=3)
        compare(done, "scikit-learn", "diffkm", at_least=6)
        compare(done, "torch_kmeans", "diffkm")
        compare(done, "fast_pytorch_kmeans", "diffkm")
        yield done


BENCHMARKS = {"gradient": gradients, "rest": rests, "batch": batches}
