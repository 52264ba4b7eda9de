"""Fits inside programs: the price of a derivative, of many problems, of compiling.

    python benchmarks/fits.py [--quick] [item ...]

Items: gradient, batch, compile; all of them without one. Both sides of a ratio are
measured in one run, in turns, in float32 and compiled, and a time is the median over
the rounds; behind a ratio stands its range over them. Peaks of memory are those of a
process of their own. Rivals that are not installed are left out, with a line that says
how to get them. Run it on a machine that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from core import blocking, expanded, normal  # Before diffkm: it finds the checkout.
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

import diffkm_jax as dk

SHAPE = 100_000, 64, 32
QUICK_SHAPE = 10_000, 64, 32
STEPS = 25, 100
QUICK_STEPS = 10, 40
# Above 2, twice the variance, all centroids merge; near it, most.
TEMPERATURE = 1.0
BATCH = 1000, 200, 10, 3
SMALL = 1000, 10, 8
PROBLEMS = 16


def note(text: str) -> None:
    print("\n" + textwrap.fill(text, 88), flush=True)


def missing(module: str, package: str) -> str | None:
    """Why a rival cannot run here, or None."""
    try:
        need(module, package)
    except SystemExit as end:
        return str(end)
    return None


# The price of a derivative -----------------------------------------------------------


class Fitted(NamedTuple):
    """What every contestant returns, as a `FitResult` does."""

    centroids: Any
    num_steps: Any


def ours(derivative: str, steps: int, temperature: float | None) -> Callable:
    return partial(
        dk.fit,
        derivative=derivative,
        tol=0,
        max_steps=steps,
        temperature=temperature,
    )


def plain(
    points: jax.Array, centroids: jax.Array, *, steps: int, temperature: float | None
) -> Fitted:
    """The steps as one writes them down, all [n, k] at once, nothing recomputed."""

    def lloyd(c: jax.Array, _: None):
        labels = lax.stop_gradient(jnp.argmin(expanded(points, c), axis=1))
        sums = jax.ops.segment_sum(points, labels, len(c))
        counts = jax.ops.segment_sum(jnp.ones(len(points)), labels, len(c))[:, None]
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), c), None

    def expectation_maximization(c: jax.Array, _: None):
        shares = jax.nn.softmax(-expanded(points, c) / temperature, axis=1)
        return shares.T @ points / shares.sum(0)[:, None], None

    step = lloyd if temperature is None else expectation_maximization
    return Fitted(lax.scan(step, centroids, length=steps)[0], steps)


def ott(points: jax.Array, centroids: jax.Array, *, steps: int) -> Fitted:
    """ott-jax's k-means, from a start and of a number of steps that are given."""
    from ott.tools import k_means

    found = k_means.k_means(
        points,
        len(centroids),
        init=lambda *_: centroids,
        n_init=1,
        min_iterations=steps,
        max_iterations=steps,
    )
    return Fitted(found.centroids, found.iteration)


def torch_plain(points: Any, centroids: Any, *, steps: int) -> Fitted:
    import torch

    ones = torch.ones(len(points))
    for _ in range(steps):
        labels = expanded(points.detach(), centroids.detach()).argmin(1)
        empty = torch.zeros_like(centroids)
        sums = empty.index_add(0, labels, points)
        counts = empty[:, 0].index_add(0, labels, ones)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return Fitted(centroids, steps)


def torch_ours(points: Any, centroids: Any, *, steps: int) -> Fitted:
    import diffkm_torch

    settings = {"derivative": "unrolled", "tol": 0, "max_steps": steps}
    found = diffkm_torch.fit(points, centroids, **settings)
    return Fitted(found.centroids, found.num_steps)


ALONE = "diffkm, the fit alone"
IMPLICIT = "diffkm, implicit"
UNROLLED = "diffkm, unrolled"
IN_JAX = "JAX, plain loop"
IN_TORCH = "torch, plain loop"
MIRROR = "diffkm_torch, unrolled"
OTT = "ott-jax"


def contestants(soft: bool) -> dict[str, str | None]:
    """The rows of a table: names, and why one cannot run."""
    names = dict.fromkeys((ALONE, IMPLICIT, UNROLLED, IN_JAX))
    if not soft:
        no_torch = missing("torch", "torch")
        names |= {IN_TORCH: no_torch, MIRROR: no_torch}
        names[OTT] = missing("ott.tools.k_means", "ott-jax")
    return names


def in_jax(name: str, steps: int, temperature: float | None) -> Callable:
    """A program of (points, centroids): a value, what was fitted, and the gradient."""
    fit = {
        ALONE: ours("none", steps, temperature),
        IMPLICIT: ours("implicit", steps, temperature),
        UNROLLED: ours("unrolled", steps, temperature),
        IN_JAX: partial(plain, steps=steps, temperature=temperature),
        OTT: partial(ott, steps=steps),
    }[name]

    def value(points: jax.Array, centroids: jax.Array) -> tuple[jax.Array, Any]:
        found = fit(points, centroids)
        return jnp.cos(found.centroids).sum(), found

    if name == ALONE:
        return jax.jit(lambda *args: (value(*args), None))
    return jax.jit(jax.value_and_grad(value, has_aux=True))


def in_torch(name: str, steps: int, points: Any, centroids: Any) -> tuple[Any, Any]:
    fit = torch_plain if name == IN_TORCH else torch_ours
    points.grad = None
    found = fit(points, centroids, steps=steps)
    value = found.centroids.cos().sum()
    value.backward()
    return (value.detach(), found), points.grad


class Prepared(NamedTuple):
    """A call that blocks, and the bytes that its compiler says it needs."""

    call: Callable[[], tuple[tuple[Any, Any], Any]]
    temporaries: int | None


def prepared(name: str, shape: tuple, steps: int, temperature: float | None):
    """A contestant, compiled if it can be, with its data in place."""
    points, centroids = normal(*shape)
    if name in (IN_TORCH, MIRROR):
        import torch

        args = torch.tensor(points, requires_grad=True), torch.tensor(centroids)
        # What is started at the first call is not what a gradient needs.
        in_torch(name, 1, args[0][:2000].detach().requires_grad_(), args[1])
        return Prepared(partial(in_torch, name, steps, *args), None)
    args = jnp.asarray(points), jnp.asarray(centroids)
    compiled = in_jax(name, steps, temperature).lower(*args).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return Prepared(blocking(compiled, *args), temporaries)


def measure_memory(name: str, soft: bool, few: int, many: int, *shape: int) -> None:
    """Runs in a process of its own; prints what a call adds to its peak, by steps.

    Not where the compiler says that it would take too much of the machine.
    """
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = []
    for steps in (few, many):
        run = prepared(name, shape, steps, TEMPERATURE if soft else None)
        fits = run.temporaries is None or run.temporaries < 0.4 * whole
        growth = peak_growth(run.call) if fits else None
        found.append({"growth": growth, "temp": run.temporaries})
    print(json.dumps(found))


def megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.0f} MB"


def gradient(quick: bool) -> None:
    """Item gradient: what the derivative of a fit costs in time and memory."""
    shape, lengths = (QUICK_SHAPE, QUICK_STEPS) if quick else (SHAPE, STEPS)
    for soft in (False, True):
        every = contestants(soft)
        names = [name for name, why in every.items() if not why]
        if not quick:
            agree(names, shape, TEMPERATURE if soft else None)
        memory = {}
        for name in [IMPLICIT] if quick else names:
            arguments = name, int(soft), *lengths, *shape
            # Else glibc keeps what a loop in torch frees, in pieces too small for it.
            env = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
            memory[name] = in_child(__file__, "--measure-memory", *arguments, **env)
        time_steps(names, shape, lengths[0], soft, {n: m[0] for n, m in memory.items()})
        if not quick:
            # What others take for more steps is known by then.
            names = [name for name in names if name.startswith("diffkm,")]
            more = {name: sizes[1] for name, sizes in memory.items()}
            time_steps(names, shape, lengths[1], soft, more)
        few, many = memory[IMPLICIT]
        # A buffer of the size of the points comes and goes between runs.
        slack = 4 * shape[0] * shape[2]
        flat = all(many[key] < 1.1 * few[key] + slack for key in few)
        note(
            f"Memory of the implicit gradient, {lengths[1]} steps to {lengths[0]}: "
            f"{megabytes(many['growth'])} against {megabytes(few['growth'])} of RSS, "
            f"{megabytes(many['temp'])} against {megabytes(few['temp'])} compiled "
            f"(goal: flat, {verdict(flat)})."
        )
        for why in filter(None, dict.fromkeys(every.values())):
            note(f"Not run: {why}.")
    at_rest(shape, (1.0,) if quick else (1.0, 0.5))


def time_steps(
    names: list[str], shape: tuple, steps: int, soft: bool, memory: dict[str, dict]
) -> None:
    """Prints the table of a number of steps; of rivals not named, the memory alone."""
    temperature = TEMPERATURE if soft else None
    calls = {name: prepared(name, shape, steps, temperature).call for name in names}
    one_pass = jax.jit(partial(dk.statistics, temperature=temperature))
    one_pass = one_pass.lower(*map(jnp.asarray, normal(*shape))).compile()
    calls["pass"] = blocking(one_pass, *map(jnp.asarray, normal(*shape)))
    samples, results = rounds_of(calls)
    rows = []
    for name in dict.fromkeys([*names, *memory]):
        sizes = map(
            megabytes, memory.get(name, {"growth": None, "temp": None}).values()
        )
        cells = ["not timed", *[""] * 4]
        if name in calls:
            (_, found), _ = results[name]
            assert int(found.num_steps) == steps, f"{name} stopped early"
            cells = prices(samples, name, soft)
        rows.append((name, *cells[:3], *sizes, *cells[3:]))
    head = "", "time", "÷ the fit alone", "passes more than it"
    head = *head, "peak RSS growth", "compiled temporaries", "goal", ""
    kind = f"soft, temperature {TEMPERATURE:g}" if soft else "hard"
    title = f"Value and gradient of {steps} steps of a fit, {kind}"
    table(f"{title}, n, k, d = {shape}", head, rows)
    (_, found), _ = results[IMPLICIT]
    text = f"A pass takes {median(samples['pass'])}. The fit is not at rest: "
    text += f"its status is {dk.Status(int(found.status))}."
    if soft:
        apart = np.array(dk.pairwise(found.centroids, found.centroids))
        np.fill_diagonal(apart, np.inf)
        text += f" Its closest centroids are {apart.min() ** 0.5:.1f} apart."
    note(text)


def rounds_of(
    calls: dict[str, Callable], rounds: int = 3, *, burst: float = 0.05
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """As `interleaved`, but of calls that may take long: only one comes before them.

    Also returns what that one returned.
    """
    samples, results, number = {}, {}, {}
    for name, call in calls.items():
        begin = time.perf_counter()
        results[name] = call()
        took = time.perf_counter() - begin
        samples[name], number[name] = [], min(10, max(1, round(burst / took)))
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(seconds(call, number[name]))
    return samples, results


def prices(samples: dict[str, list[float]], name: str, soft: bool) -> list[str]:
    """Time, ratio to the fit alone, passes more than it, goal, verdict."""
    took = median(samples[name])
    if name == ALONE:
        return [took, "1", "0", "", ""]
    names = name, ALONE, "pass"
    with_gradient, alone, one_pass = (statistics.median(samples[n]) for n in names)
    passes = (with_gradient - alone) / one_pass
    cells = [took, ratio(samples[name], samples[ALONE])[1], f"{passes:.1f}"]
    if name != IMPLICIT:
        return [*cells, "", ""]
    most = 60 if soft else 2
    return [*cells, f"≤ {most} passes", verdict(passes <= most)]


def agree(names: list[str], shape: tuple, temperature: float | None) -> None:
    """Stops unless all compute the same, by whatever means they go through the steps.

    One step if it is hard: at the next, points that were nearly tied go elsewhere.
    """
    steps = 1 if temperature is None else 10
    results = {n: prepared(n, shape, steps, temperature).call() for n in names}
    (expected, _), _ = results[ALONE]
    reference = np.asarray(results[UNROLLED][1])
    for name, ((value, _), found) in results.items():
        np.testing.assert_allclose(float(value), float(expected), rtol=1e-3)
        if name not in (ALONE, IMPLICIT):
            error = np.linalg.norm(np.asarray(found) - reference)
            error /= np.linalg.norm(reference)
            assert error < 1e-2, f"{name}: the gradients differ by {error:.1e}"


def at_rest(shape: tuple, spreads: tuple[float, ...]) -> None:
    """What the implicit gradient costs where it is one: soft fits that converge."""
    n, k, d = shape
    settings = {"temperature": TEMPERATURE, "tol": 1e-6}

    def value(derivative: str, *args: jax.Array) -> tuple[jax.Array, dk.FitResult]:
        found = dk.fit(*args, derivative=derivative, **settings)
        return jnp.cos(found.centroids).sum(), found

    programs = {
        ALONE: partial(value, "none"),
        IMPLICIT: jax.value_and_grad(partial(value, "implicit"), has_aux=True),
        "pass": partial(dk.statistics, temperature=TEMPERATURE),
    }
    rows = []
    for spread in spreads:
        rng = np.random.default_rng(0)
        centers = spread * rng.standard_normal((k, d))
        points = centers[np.arange(n) % k] + rng.standard_normal((n, d))
        points = jnp.asarray(points, jnp.float32)
        # The first points are one of each cluster.
        args = points, points[:k]
        calls = {
            name: blocking(jax.jit(f).lower(*args).compile(), *args)
            for name, f in programs.items()
        }
        samples, results = rounds_of(calls)
        (_, found), _ = results[IMPLICIT]
        _, _, *cells = prices(samples, IMPLICIT, soft=True)
        status = str(dk.Status(int(found.status))).replace("|", ", ")
        ends = int(found.num_steps), status
        times = median(samples[ALONE]), median(samples[IMPLICIT])
        rows.append((f"{spread:g}", *ends, *times, *cells))
    head = "spread of the clusters", "steps", "status", "the fit alone", "implicit"
    head = *head, "passes more than it", "goal", ""
    title = f"Implicit gradient of a soft fit at rest, temperature {TEMPERATURE:g}"
    table(f"{title}, n, k, d = {shape}, clusters of unit variance", head, rows)


# Many problems -----------------------------------------------------------------------


def problems(kind: str, count: int) -> tuple[jax.Array, jax.Array]:
    """Points [count, n, d], and starts [count, k, d] by k-means++."""
    _, n, k, d = BATCH
    rng = np.random.default_rng(0)
    points = rng.standard_normal((count, n, d))
    if kind == "blobs":
        centers = 5 * rng.standard_normal((count, k, d))
        own = rng.integers(k, size=(count, n, 1))
        points += np.take_along_axis(centers, own, axis=1)
    points = jnp.asarray(points, jnp.float32)
    keys = jax.random.split(jax.random.key(0), count)
    starts = jax.vmap(lambda key, x: dk.kmeans_plus_plus(key, x, k))(keys, points)
    return points, starts


def batch(quick: bool) -> None:
    """Item batch: very many small problems, as one program and as a loop."""
    if why := missing("sklearn.cluster", "scikit-learn"):
        note(f"Not run: {why}.")
        return
    rivals = {
        "scikit-learn": (sklearn_loop, None),
        "torch_kmeans": (torch_kmeans_batch, missing("torch_kmeans", "torch_kmeans")),
        "fast_pytorch_kmeans": (
            fast_pytorch_kmeans_loop,
            missing("fast_pytorch_kmeans", "fast_pytorch_kmeans"),
        ),
    }
    rows = []
    count = 100 if quick else BATCH[0]
    for kind in ("blobs", "noise"):
        points, starts = problems(kind, count)
        fit = jax.jit(jax.vmap(dk.fit)).lower(points, starts).compile()
        found = fit(points, starts)
        settled = found.status & dk.Status.CONVERGED != 0
        assert settled.all(), "not all of the fits converged"
        args = np.array(points), np.array(starts)
        calls = {"diffkm": blocking(fit, points, starts)}
        calls |= {n: partial(f, *args) for n, (f, why) in rivals.items() if not why}
        samples = interleaved(calls, 3, burst=0)
        calls["diffkm"] = lambda centroids=found.centroids: centroids
        inertia = {name: mean_loss(points, call()) for name, call in calls.items()}
        np.testing.assert_allclose(
            inertia["diffkm"], inertia["scikit-learn"], rtol=1e-3
        )
        for name in calls:
            value, text = ratio(samples[name], samples["diffkm"])
            text = "" if name == "diffkm" else text
            goal, met = "", ""
            if name == "scikit-learn":
                goal, met = "≥ 6, aim 10", verdict(value >= 6)
            row = kind, name, median(samples[name]), text, f"{inertia[name]:.2f}"
            rows.append((*row, goal, met))
        steps = np.asarray(found.num_steps)
        note(
            f"Of {kind}: a problem takes {steps.mean():.1f} steps, the slowest "
            f"{steps.max()}, and as many take all in one program."
        )
    _, *shape = BATCH
    head = "data", "", "time", "diffkm is faster", "mean inertia", "goal", ""
    table(f"{count} problems of {tuple(shape)} from the same starts", head, rows)
    note(
        "The loops run in one thread, with which they are faster on arrays as small as "
        "these. All stop by a rule of their own; torch_kmeans and fast_pytorch_kmeans "
        "move a cluster that lost its points to the origin."
    )
    for _, why in rivals.values():
        if why:
            note(f"Not run: {why}.")


def mean_loss(points: jax.Array, centroids: Any) -> float:
    """The mean inertia, by one measure for all."""
    centroids = jnp.asarray(np.asarray(centroids))
    return float(jax.vmap(dk.kmeans_loss)(points, centroids).mean())


def sklearn_loop(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    settings = {"n_init": 1, "algorithm": "lloyd", "tol": 1e-4}
    with threadpool_limits(1):
        return np.stack(
            [
                KMeans(len(start), init=start, **settings).fit(x).cluster_centers_
                for x, start in zip(points, starts, strict=True)
            ]
        )


def torch_kmeans_batch(points: np.ndarray, starts: np.ndarray) -> Any:
    import torch
    from torch_kmeans import KMeans

    k = starts.shape[1]
    model = KMeans(n_clusters=k, num_init=1, max_iter=300, tol=1e-4, verbose=False)
    # It writes into the centers that it is given.
    return model(torch.from_numpy(points), centers=torch.tensor(starts)).centers


def fast_pytorch_kmeans_loop(points: np.ndarray, starts: np.ndarray) -> Any:
    import torch
    from fast_pytorch_kmeans import KMeans

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    centroids = []
    for x, start in zip(torch.tensor(points), torch.tensor(starts), strict=True):
        model = KMeans(n_clusters=len(start), max_iter=300, tol=1e-4)
        model.fit(x, centroids=start)
        centroids.append(model.centroids)
    torch.set_num_threads(threads)
    return torch.stack(centroids)


# Compiling ---------------------------------------------------------------------------


def programs() -> dict[str, tuple[Callable, tuple]]:
    """Functions by name, new ones at every call, and their arguments."""
    one = tuple(map(jnp.asarray, normal(*SMALL)))
    many = tuple(jnp.stack([a] * PROBLEMS) for a in one)

    def slope(derivative: str, **settings: Any) -> Callable:
        def value(points: jax.Array, centroids: jax.Array) -> jax.Array:
            found = dk.fit(points, centroids, derivative=derivative, **settings)
            return jnp.cos(found.centroids).sum()

        return jax.grad(value)

    soft = {"temperature": TEMPERATURE}
    return {
        "fit": (partial(dk.fit), one),
        "gradient, implicit": (slope("implicit"), one),
        "gradient, unrolled": (slope("unrolled"), one),
        "soft fit": (partial(dk.fit, **soft), one),
        "soft gradient, implicit": (slope("implicit", **soft), one),
        "soft gradient, unrolled": (slope("unrolled", **soft), one),
        f"{PROBLEMS} fits": (jax.vmap(partial(dk.fit)), many),
        f"{PROBLEMS} gradients, implicit": (jax.vmap(slope("implicit")), many),
    }


def compiling(quick: bool) -> None:
    """Item compile: seconds until a program is there, and until its first result."""
    rows = []
    for name in list(programs())[: 3 if quick else None]:
        stages = []
        for _ in range(1 if quick else 3):
            jax.clear_caches()
            f, args = programs()[name]
            begin = time.perf_counter()
            lowered = jax.jit(f).lower(*args)
            middle = time.perf_counter()
            compiled = lowered.compile()
            end = time.perf_counter()
            stages.append((middle - begin, end - middle, end - begin))
        afterwards = [seconds(blocking(compiled, *args)) for _ in range(6)][1:]
        rows.append((name, *map(median, zip(*stages, strict=True)), median(afterwards)))
    head = "", "trace and lower", "compile", "both: ahead of time", "a call of it"
    table(f"Compiling at n, k, d = {SMALL}", head, rows)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for name, env in ("none", {}), ("empty", cache), ("filled", cache):
            env = {"JAX_ENABLE_COMPILATION_CACHE": str(bool(env)).lower(), **env}
            begin = time.time()
            found = in_child(__file__, "--measure-start", begin, **env)
            rows.append((name, *(f"{value:.2f} s" for value in found)))
        size = sum(path.stat().st_size for path in os.scandir(folder))
    head = "compilation cache", "start and imports", "fit", "gradient", "in all"
    table(
        "A process from its start to its results, fit and implicit gradient", head, rows
    )
    note(f"The cache holds {size / 1e6:.1f} MB after it.")


def measure_start(begin: float) -> None:
    """Runs in a process of its own; prints seconds of imports, fit, gradient, all."""
    times = [begin, time.time()]
    every = programs()
    for name in "fit", "gradient, implicit":
        f, args = every[name]
        jax.block_until_ready(jax.jit(f)(*args))
        times.append(time.time())
    print(json.dumps([*np.diff(times), times[-1] - begin]))


# -------------------------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["--measure-memory"]:
        name, *numbers = sys.argv[2:]
        measure_memory(name, *map(int, numbers))
        return
    if sys.argv[1:2] == ["--measure-start"]:
        measure_start(float(sys.argv[2]))
        return
    items = {"gradient": gradient, "batch": batch, "compile": compiling}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="*", metavar="item", help=", ".join(items))
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds")
    args = parser.parse_args()
    for item in args.items:
        if item not in items:
            parser.error(f"item must be one of {', '.join(items)}, got {item!r}")
    packages = "jax", "torch", "scikit-learn", "numpy", "ott-jax"
    print(machine(*packages, "torch_kmeans", "fast_pytorch_kmeans"), flush=True)
    start = time.perf_counter()
    for item in args.items or items:
        items[item](args.quick)
    took, load = time.perf_counter() - start, os.getloadavg()[0]
    print(f"\nThe whole took {took:.0f} s; load {load:.1f} after.")


if __name__ == "__main__":
    main()
