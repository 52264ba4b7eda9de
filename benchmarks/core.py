"""The core against what one would use without it: time, memory and accuracy on a CPU.

    python benchmarks/core.py [--quick] [--full] [item ...]

Items: loss, soft, newton, memory, seed, offset; all of them without one. Both sides of
a ratio are measured in one run, in turns, in float32 and jitted, and a time is the
median over the rounds; behind a ratio stands its range over them. Run it on a machine
that nothing else uses: another load slows the rivals' OpenMP threads several times as
much as XLA's and flatters every ratio. The load is in the first line and the last (this
program itself makes about 2).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from timing import (
    in_child,
    interleaved,
    machine,
    median,
    need,
    peak_growth,
    ratio,
    seconds,
    table,
    verdict,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A checkout will do.

import diffkm_jax as dk

SHAPES = (131072, 16, 64), (131072, 256, 64), (65536, 1024, 128)
WIDE = 65536, 64, 784
BIG = 1_000_000, 1024, 32
RATE = 1e-5
STEPS = 4001


def normal(n: int, k: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal points, in float32, and the first k of them as centroids."""
    points = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return points, points[:k].copy()


def blocking(f: Callable, *args: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(f(*args))


# Value and gradient of the hard and the soft loss ------------------------------------


def expanded(points: Any, centroids: Any) -> Any:
    """‖x‖² − 2 x·c + ‖c‖², [n, k], in torch or JAX; the points are centred already."""
    cross = points @ centroids.T
    return (points**2).sum(1)[:, None] - 2 * cross + (centroids**2).sum(1)[None]


def naive(points: jax.Array, centroids: jax.Array, temperature: float | None):
    distance = expanded(points, centroids)
    if temperature is None:
        return jnp.min(distance, axis=1).sum()
    return -temperature * jax.nn.logsumexp(-distance / temperature, axis=1).sum()


def torch_value_and_grad(points: Any, centroids: Any, temperature: float | None):
    """The same in torch, the gradient by autograd, in the centroids alone."""
    centroids.grad = None
    distance = expanded(points, centroids)
    if temperature is None:
        loss = distance.min(dim=1).values.sum()
    else:
        loss = -temperature * (-distance / temperature).logsumexp(dim=1).sum()
    loss.backward()
    return loss.detach(), centroids.grad


def value_and_grad(soft: bool, quick: bool) -> None:
    """Items loss and soft: diffkm against torch's autograd and naive JAX."""
    torch = need("torch", "torch")
    goals = {"torch": 4, "naive JAX": 3 if soft else 4}
    rows = []
    for n, k, d in SHAPES[:2] if quick else SHAPES:
        # An eighth of the dimension: some clusters share a point, most do not.
        temperature = d / 8 if soft else None
        points, centroids = normal(n, k, d)
        if soft:
            ours = partial(dk.soft_kmeans_loss, temperature=temperature)
        else:
            ours = dk.kmeans_loss
        other = partial(naive, temperature=temperature)
        in_jax = jnp.asarray(points), jnp.asarray(centroids)
        in_torch = torch.from_numpy(points), torch.tensor(centroids, requires_grad=True)
        calls = {
            "diffkm": blocking(jax.jit(jax.value_and_grad(ours, argnums=1)), *in_jax),
            "torch": partial(torch_value_and_grad, *in_torch, temperature),
            "naive JAX": blocking(
                jax.jit(jax.value_and_grad(other, argnums=1)), *in_jax
            ),
        }
        agree([call() for call in calls.values()])
        samples = interleaved(calls, 3 if quick else 7)
        for rival, goal in goals.items():
            value, text = ratio(samples[rival], samples["diffkm"])
            ours_and_theirs = map(median, (samples["diffkm"], samples[rival]))
            met = verdict(value >= goal)
            rows.append(
                (f"({n}, {k}, {d})", rival, *ours_and_theirs, text, f"≥ {goal}", met)
            )
    name = "soft_kmeans_loss, temperature d/8" if soft else "kmeans_loss"
    head = "n, k, d", "rival", "diffkm", "rival's time", "times faster", "goal", ""
    table(f"Value and gradient in the centroids: {name}", head, rows)


def agree(results: list) -> None:
    """Stops unless the rivals compute the same: what is wrong is not fast."""
    (loss, gradient), *others = [(float(v), np.asarray(g)) for v, g in results]
    for other_loss, other in others:
        np.testing.assert_allclose(other_loss, loss, rtol=1e-4)
        error = np.linalg.norm(other - gradient) / np.linalg.norm(gradient)
        # A float32 expansion puts a few points that are nearly tied elsewhere.
        assert error < 1e-2, f"the gradients differ by {error:.1e}"


# A newton() step ---------------------------------------------------------------------


def newton(quick: bool) -> None:
    """Item newton: a step of a fit against one of scikit-learn's.

    A step is a tenth of what a fit of 11 takes longer than one of 1, so that neither
    side's overhead counts.
    """
    cluster = need("sklearn.cluster", "scikit-learn")
    from sklearn.exceptions import ConvergenceWarning

    rows = []
    for n, k, d in SHAPES[:2] if quick else (*SHAPES, WIDE):
        points, centroids = normal(n, k, d)
        in_jax = jnp.asarray(points), jnp.asarray(centroids)

        def ours(steps: int, args: tuple = in_jax):
            result = jax.block_until_ready(dk.fit(*args, max_steps=steps, tol=0))
            return int(result.num_steps), float(result.loss)

        def theirs(steps: int, args: tuple = (points, centroids)):
            x, start = args
            fit = cluster.KMeans(
                len(start),
                init=start,
                n_init=1,
                max_iter=steps,
                tol=0,
                algorithm="lloyd",
            ).fit(x)
            return fit.n_iter_, fit.inertia_

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            (steps, loss), (their_steps, inertia) = ours(11), theirs(11)
            assert steps == their_steps == 11, "converged before the eleventh step"
            np.testing.assert_allclose(loss, inertia, rtol=1e-4)
            calls = {
                (side, steps): partial(f, steps)
                for steps in (1, 11)
                for side, f in (("ours", ours), ("theirs", theirs))
            }
            samples = interleaved(calls, 3 if quick else 7, burst=0)
        by_step = {
            side: [
                (eleven - one) / 10
                for one, eleven in zip(samples[side, 1], samples[side, 11], strict=True)
            ]
            for side in ("ours", "theirs")
        }
        value, text = ratio(by_step["ours"], by_step["theirs"])
        times = map(median, (by_step["ours"], by_step["theirs"]))
        rows.append((f"({n}, {k}, {d})", *times, text, "≤ 1", verdict(value <= 1)))
    head = "n, k, d", "diffkm", "scikit-learn", "diffkm / scikit-learn", "goal", ""
    table("One newton() step against one Lloyd iteration of scikit-learn", head, rows)


# Memory ------------------------------------------------------------------------------


def memory_function(kind: str) -> Callable:
    """Value and gradient in the centroids, by name, jitted."""
    functions = {
        "kmeans_loss": dk.kmeans_loss,
        "soft_kmeans_loss": partial(dk.soft_kmeans_loss, temperature=4.0),
        "naive JAX": partial(naive, temperature=None),
    }
    return jax.jit(jax.value_and_grad(functions[kind], argnums=1))


def measure_memory(kind: str, n: int, k: int, d: int) -> None:
    """Runs in a process of its own and prints what one call adds to its peak.

    The baseline is taken with the points in place and the program compiled.
    """
    points, centroids = map(jnp.asarray, normal(n, k, d))
    compiled = memory_function(kind).lower(points, centroids).compile()
    growth = peak_growth(blocking(compiled, points, centroids))
    temp = compiled.memory_analysis().temp_size_in_bytes
    print(json.dumps({"temp": temp, "growth": growth}))


def memory(quick: bool) -> None:
    """Item memory: what value and gradient need beyond their arguments."""
    n, k, d = (BIG[0] // 10, *BIG[1:]) if quick else BIG
    rows = []
    for kind in ("kmeans_loss", "soft_kmeans_loss"):
        found = in_child(__file__, "--measure-memory", kind, n, k, d)
        met = verdict(max(found.values()) < 200e6)
        temp, growth = (f"{found[key] / 1e6:.1f} MB" for key in ("temp", "growth"))
        rows.append((kind, temp, growth, "< 200 MB", met))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (k, d))]
    compiled = memory_function("naive JAX").lower(*shapes).compile()
    temp = compiled.memory_analysis().temp_size_in_bytes
    rows.append(("naive JAX, hard", f"{temp / 1e6:.0f} MB", "not run", "", ""))
    head = "value and gradient", "compiled temporaries", "peak RSS growth", "goal", ""
    table(f"Memory beyond the arguments at n, k, d = ({n}, {k}, {d})", head, rows)


# The seed's loop ---------------------------------------------------------------------


def torch_descent(torch: Any, points: Any, batches: Any, start: Any) -> list[float]:
    """Gradient descent on the centroids in the form it was asked about.

    A loop over the clusters, a boolean mask for each, autograd, a step by hand.
    """
    centroids = start.clone()[:, None].requires_grad_()
    losses = []
    for batch in batches:
        squared = ((points[batch] - centroids) ** 2).sum(2)
        owner = squared.argmin(0)
        loss = 0
        for j in range(len(start)):
            mine = squared.T[owner == j]
            if len(mine):
                loss = loss + mine[:, j].sum()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            centroids -= RATE * centroids.grad
            centroids.grad.zero_()
    return losses


def scanned_descent(optimizer: Any) -> Callable:
    """The same as one program: a new function each time, so that it compiles anew."""

    def descend(points: jax.Array, batches: jax.Array, start: jax.Array) -> jax.Array:
        def step(state: dk.State, batch: jax.Array):
            state, stats = dk.update(points[batch], state, optimizer=optimizer)
            return state, stats.loss

        return lax.scan(step, dk.init(start, optimizer=optimizer), batches)[1]

    return jax.jit(descend)


def seed(quick: bool, full: bool) -> None:
    """Item seed: 4001 steps of mini-batch gradient descent, against torch.

    Torch gets one thread, with which it is faster on arrays as small as these.
    """
    torch = need("torch", "torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    points = rng.random((1000, 200))
    batches = rng.integers(1000, size=(STEPS, 100))
    start = points[rng.choice(1000, size=20, replace=False)]
    few = STEPS if full else 101 if quick else 401
    optimizer = optax.sgd(RATE)

    def in_torch(dtype: Any):
        args = torch.tensor(points, dtype=dtype), torch.from_numpy(batches[:few])
        return partial(torch_descent, torch, *args, torch.tensor(start, dtype=dtype))

    def in_jax(dtype: Any):
        return jnp.asarray(points, dtype), batches, jnp.asarray(start, dtype)

    with jax.enable_x64(True):
        ours = np.asarray(scanned_descent(optimizer)(*in_jax(jnp.float64)))
    theirs = np.array(in_torch(torch.float64)())
    worst = np.max(np.abs(ours[:few] / theirs - 1))

    args = in_jax(jnp.float32)
    # Compiled ahead of time, because the calls that compile anew clear all caches.
    compiled = scanned_descent(optimizer).lower(*args).compile()
    calls = {
        "torch": in_torch(torch.float32),
        "fresh": lambda: compile_and_run(optimizer, args),
        "compiled": blocking(compiled, *args),
    }
    calls["compiled"]()
    rounds = 1 if full else 3 if quick else 5
    samples = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(seconds(call))
    torch.set_num_threads(threads)
    slow = [sample * STEPS / few for sample in samples["torch"]]
    rows = []
    for label, name in ("included", "fresh"), ("excluded", "compiled"):
        value, text = ratio(slow, samples[name])
        times = map(median, (samples[name], slow))
        goal, met = ("≥ 50", verdict(value >= 50)) if name == "fresh" else ("", "")
        rows.append((label, *times, text, goal, met))
    scaled = "" if full else f" (measured on {few}, scaled)"
    head = "compile", "diffkm", "torch loop" + scaled, "times faster", "goal", ""
    table(f"The seed's loop, {STEPS} steps on batches of 100", head, rows)
    print(
        f"\nIn float64 the losses of the first {few} steps agree to a relative "
        f"{worst:.1e} (goal ≤ 1e-12: {verdict(worst <= 1e-12)})."
    )


def compile_and_run(optimizer: Any, args: tuple) -> None:
    jax.clear_caches()
    jax.block_until_ready(scanned_descent(optimizer)(*args))


# Accuracy far from the origin --------------------------------------------------------


def exact_labels(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Nearest centroids in float64, from differences, not from an expansion."""
    blocks = np.array_split(points.astype(np.float64), max(1, len(points) // 4096))
    centroids = centroids.astype(np.float64)
    labels = [
        np.argmin(((block[:, None] - centroids) ** 2).sum(2), axis=1)
        for block in blocks
    ]
    return np.concatenate(labels)


def offset(quick: bool) -> None:
    """Item offset: float32 labels of data 10⁴ standard deviations from the origin."""
    rows = []
    for number in range(2 if quick else 5):
        rng = np.random.default_rng(number)
        points = (rng.standard_normal((200_000, 16)) + 1e4).astype(np.float32)
        centroids = points[rng.choice(len(points), size=64, replace=False)]
        expected = exact_labels(points, centroids)
        ours = np.mean(np.asarray(dk.assign(points, centroids)) == expected)
        plain = np.asarray(jnp.argmin(expanded(jnp.asarray(points), centroids), axis=1))
        plain = np.mean(plain == expected)
        met = verdict(ours >= 0.9999)
        rows.append((number, f"{ours:.4%}", f"{plain:.2%}", "≥ 99.99 %", met))
    head = "seed", "diffkm", "expanded, not centred", "goal", ""
    title = "Labels of float32 data at an offset of 10⁴ that float64 confirms"
    table(f"{title}, n, k, d = (200000, 64, 16)", head, rows)


# -------------------------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["--measure-memory"]:
        kind, *sizes = sys.argv[2:]
        measure_memory(kind, *map(int, sizes))
        return
    items = "loss", "soft", "newton", "memory", "seed", "offset"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="*", metavar="item", help=", ".join(items))
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--full", action="store_true", help="all of torch's 4001 steps")
    args = parser.parse_args()
    for item in args.items:
        if item not in items:
            parser.error(f"item must be one of {', '.join(items)}, got {item!r}")
    print(machine("jax", "torch", "scikit-learn", "numpy", "optax"), flush=True)
    start = time.perf_counter()
    for item in args.items or items:
        if item in ("loss", "soft"):
            value_and_grad(item == "soft", args.quick)
        elif item == "newton":
            newton(args.quick)
        elif item == "memory":
            memory(args.quick)
        elif item == "seed":
            seed(args.quick, args.full)
        else:
            offset(args.quick)
    took, load = time.perf_counter() - start, os.getloadavg()[0]
    print(f"\nThe whole took {took:.0f} s; load {load:.1f} after.")


if __name__ == "__main__":
    main()
