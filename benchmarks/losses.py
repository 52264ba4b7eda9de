"""The core: value and gradient of the losses, a step, their memory, far-away data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import diffkm_jax as dk
from benchmarks import _rival_fits, _rivals
from benchmarks._measure import (
    Contest,
    Prepared,
    Side,
    compiled,
    measure,
    normal,
    relative_error,
)
from benchmarks._records import Record, compare, goal, record

SHAPES = (131072, 16, 64), (131072, 256, 64), (65536, 1024, 128)
WIDE = 65536, 64, 784
BIG = 1_000_000, 1024, 32
SMALL = 2000, 16, 8
NAMES = "n", "k", "d"
RATE = 1e-5
STEPS = 4001


# Value and gradient ------------------------------------------------------------------


def loss(n: int, k: int, d: int, soft: bool) -> Contest:
    """Value and gradient in the centroids."""
    points, centroids = normal(n, k, d)
    # An eighth of the dimension: some clusters share a point, most do not.
    temperature = d / 8 if soft else None
    ours = partial(dk.soft_kmeans_loss, temperature=d / 8) if soft else dk.kmeans_loss
    plain = partial(_rivals.jax_loss, temperature=temperature)

    def in_jax(function: Callable) -> Side:
        both = jax.value_and_grad(function, argnums=1)
        return Side(lambda: compiled(both, points, centroids))

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        value, gradient = results.pop("diffkm")
        facts = {}
        for name, (other, of_other) in results.items():
            np.testing.assert_allclose(float(other), float(value), rtol=1e-4)
            facts[name] = {"gradient_error": relative_error(of_other, gradient)}
            # A float32 expansion puts a few points that are nearly tied elsewhere.
            assert facts[name]["gradient_error"] < 1e-2, f"{name}: {facts[name]}"
        return facts

    torch = Side(lambda: _rivals.torch_loss(points, centroids, temperature), "torch")
    sides = {"diffkm": in_jax(ours), "torch": torch, "naive JAX": in_jax(plain)}
    return Contest(sides, agree)


def losses(size: str) -> Iterator[Record]:
    for soft in (False, True):
        for shape in [SMALL] if size == "small" else SHAPES:
            of = dict(zip(NAMES, shape, strict=True))
            done = measure(loss, rounds=3 if size == "small" else 7, soft=soft, **of)
            compare(done, "torch", "diffkm", at_least=5)
            compare(done, "naive JAX", "diffkm", at_least=2 if soft else 4)
            yield done


def memory(size: str) -> Iterator[Record]:
    """What both need beyond their arguments; naive JAX is compiled and not run."""
    shape = SMALL if size == "small" else BIG
    for soft in (False,) if size == "small" else (False, True):
        of = dict(zip(NAMES, shape, strict=True))
        lineup = {"timed": ["naive JAX"], "weighed": ["diffkm"]}
        done = measure(loss, rounds=0, soft=soft, **lineup, **of)
        most = max(done["sides"]["diffkm"].values())
        goal(done, "MB beyond the arguments", most / 1e6, at_most=200)
        yield done


# A newton() step ---------------------------------------------------------------------


def step(n: int, k: int, d: int) -> Contest:
    """Fits of 1 and of 11 steps."""
    points, centroids = normal(n, k, d)
    args = jnp.asarray(points), jnp.asarray(centroids)

    def ours(steps: int) -> tuple[int, float]:
        result = jax.block_until_ready(dk.fit(*args, max_steps=steps, tol=0))
        return int(result.num_steps), float(result.loss)

    def theirs(steps: int) -> tuple[int, float]:
        with warnings.catch_warnings():
            # That it does not converge in so few steps.
            warnings.simplefilter("ignore")
            fit = _rival_fits.sklearn_fit(points, centroids, max_iter=steps, tol=0)
        return fit.n_iter_, fit.inertia_

    def agree(results: dict[str, tuple[int, float]]) -> dict[str, dict[str, float]]:
        for name, (steps, _) in results.items():
            assert name.endswith(f" {steps}"), f"{name}: {steps} steps"
        for steps in (1, 11):
            _, value = results[f"diffkm {steps}"]
            _, inertia = results.get(f"scikit-learn {steps}", (steps, value))
            np.testing.assert_allclose(value, inertia, rtol=1e-4)
        return {}

    sides = {}
    for steps in (1, 11):
        sides[f"diffkm {steps}"] = Side(lambda s=steps: Prepared(partial(ours, s)))
        their = Side(lambda s=steps: Prepared(partial(theirs, s)), "sklearn.cluster")
        sides[f"scikit-learn {steps}"] = their
    return Contest(sides, agree)


def newton(size: str) -> Iterator[Record]:
    """A step of a fit against one of scikit-learn's.

    A step is a tenth of what a fit of 11 takes longer than one of 1, so that neither
    side's overhead counts.
    """
    for shape in [SMALL] if size == "small" else (*SHAPES, WIDE):
        of = dict(zip(NAMES, shape, strict=True))
        rounds = 3 if size == "small" else 7
        done = measure(step, rounds=rounds, burst=0, **of)
        fits = done["sides"]
        done["sides"] = {
            side: {
                "seconds": [
                    (eleven - one) / 10
                    for one, eleven in zip(
                        fits[f"{side} 1"]["seconds"],
                        fits[f"{side} 11"]["seconds"],
                        strict=True,
                    )
                ]
            }
            for side in ("diffkm", "scikit-learn")
            if f"{side} 1" in fits
        }
        most = 1.0 if of["k"] >= 64 and of["d"] <= 256 else 1.2
        compare(done, "diffkm", "scikit-learn", at_most=most)
        yield done


# The seed's loop ---------------------------------------------------------------------


def descend(points: jax.Array, batches: jax.Array, start: jax.Array) -> jax.Array:
    """Gradient descent on batches, [steps, size]; the loss of each, [steps]."""
    optimizer = optax.sgd(RATE)

    def one(state: dk.State, batch: jax.Array) -> tuple[dk.State, jax.Array]:
        state, statistics = dk.update(points[batch], state, optimizer=optimizer)
        return state, statistics.loss

    return lax.scan(one, dk.init(start, optimizer=optimizer), batches)[1]


def descent(steps: int, compared: int) -> Contest:
    """Mini-batch descent as a scan and as a loop over the first of its steps."""
    rng = np.random.default_rng(0)
    points = rng.random((1000, 200))
    batches = rng.integers(1000, size=(steps, 100))
    start = points[rng.choice(1000, size=20, replace=False)]
    single = points.astype(np.float32), batches, start.astype(np.float32)

    def anew() -> Any:
        jax.clear_caches()
        # A new function each time, so that it compiles.
        return compiled(lambda *args: descend(*args), *single).call()

    def in_torch() -> list[float]:
        x, _, c = single
        return _rivals.torch_descent(x, batches[:compared], c, RATE)

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        ours = np.asarray(results["diffkm"])
        np.testing.assert_allclose(results["diffkm, with compiling"], ours, rtol=1e-6)
        if "torch loop" not in results:
            return {}
        with jax.enable_x64(True):
            ours = np.asarray(jax.jit(descend)(points, batches, start))[:compared]
        theirs = _rivals.torch_descent(points, batches[:compared], start, RATE)
        return {"torch loop": {"float64_error": np.abs(ours / theirs - 1).max().item()}}

    sides = {
        "torch loop": Side(lambda: Prepared(in_torch), "torch"),
        "diffkm, with compiling": Side(lambda: Prepared(anew)),
        "diffkm": Side(lambda: compiled(descend, *single)),
    }
    return Contest(sides, agree)


def seed(size: str) -> Iterator[Record]:
    """4001 steps of descent; torch takes some of them, and its time is scaled."""
    few = {"small": 11, "medium": 401, "full": STEPS}[size]
    rounds = {"small": 1, "medium": 5, "full": 1}[size]
    steps = 101 if size == "small" else STEPS
    done = measure(descent, rounds=rounds, burst=0, steps=steps, compared=few)
    if torch := done["sides"].get("torch loop"):
        torch["seconds"] = [sample * steps / few for sample in torch["seconds"]]
        error = torch["float64_error"]
        goal(done, "error in float64", error, at_most=1e-12)
        done["notes"].append(f"torch: measured on {few} steps of {steps}, and scaled.")
    compare(done, "torch loop", "diffkm, with compiling", at_least=50)
    compare(done, "torch loop", "diffkm")
    yield done


# Accuracy far from the origin --------------------------------------------------------


def exact_labels(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Nearest centroids in float64, from differences, not from an expansion."""
    blocks = np.array_split(points.astype(np.float64), max(1, len(points) // 4096))
    wide = centroids.astype(np.float64)
    squares = (((block[:, None] - wide) ** 2).sum(2) for block in blocks)
    return np.concatenate([square.argmin(1) for square in squares])


def offset(size: str) -> Iterator[Record]:
    """Float32 labels of data 10⁴ standard deviations from the origin."""
    n, k, d = (5000, 16, 16) if size == "small" else (200_000, 64, 16)
    for number in range(1 if size == "small" else 5):
        points, _ = normal(n, k, d, number)
        points = points + np.float32(1e4)
        rng = np.random.default_rng(number)
        centroids = points[rng.choice(n, size=k, replace=False)]
        expected = exact_labels(points, centroids)
        plain = _rivals.expanded(jnp.asarray(points), centroids).argmin(1)
        labels = {"diffkm": dk.assign(points, centroids), "expanded": plain}
        right = {
            name: {"confirmed": np.mean(np.asarray(found) == expected).item()}
            for name, found in labels.items()
        }
        done = record(right, n=n, k=k, d=d, seed=number)
        share = right["diffkm"]["confirmed"]
        goal(done, "labels that float64 confirms", share, at_least=0.9999)
        yield done


BENCHMARKS = {
    "loss": losses,
    "memory": memory,
    "newton": newton,
    "seed": seed,
    "offset": offset,
}
