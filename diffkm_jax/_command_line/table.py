"""One loss minimized in many ways: the embedded digits by every optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffkm_jax as dk
from diffkm_jax._by_name import default_rate, optimizer_of

# Name, loss, steps, residual, status, milliseconds.
Row = tuple[str, float, int, str, str, float]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and how many milliseconds it took."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, 1000 * (time.perf_counter() - begin)


@jax.jit
def online(points: jax.Array, state: dk.State, batches: jax.Array) -> dk.State:
    """One step of `macqueen` for every batch: indices of points, [num_steps, size]."""

    def step(state: dk.State, batch: jax.Array) -> tuple[dk.State, None]:
        return dk.update(points[batch], state, optimizer=dk.macqueen())[0], None

    return jax.lax.scan(step, state, batches)[0]


def our_rows(key: jax.Array, points: jax.Array, start: jax.Array) -> Iterator[Row]:
    """One row for every optimizer, Newton's first."""
    n, fit = len(points), partial(dk.fit, points, start)
    variance = float(jnp.mean(jnp.var(points, axis=0)))

    def named(name: str) -> optax.GradientTransformation:
        return optimizer_of(name, default_rate(name, n, variance))

    schedule = optax.exponential_decay(300.0, 5, 0.5, end_value=1.0)
    # Ten epochs of shuffled batches of 64 points, without the remainder.
    order = [jax.random.permutation(key, n) for key in jax.random.split(key, 10)]
    batches = jnp.concatenate([epoch[: n // 64 * 64] for epoch in order])
    begin = dk.init(start, optimizer=dk.macqueen())

    def fit_online() -> dk.FitResult:
        end = online(points, begin, batches.reshape(-1, 64))
        return dk.fit(points, end, optimizer=dk.macqueen(), max_steps=0)

    fits = {
        "newton (Lloyd)": fit,
        "gradient descent": partial(fit, optimizer=named("sgd")),
        "momentum": partial(fit, optimizer=optax.sgd(0.3 / n, momentum=0.9)),
        "adam": partial(fit, optimizer=named("adam")),
        "lbfgs": partial(fit, optimizer=optax.lbfgs()),
        "soft, annealed": partial(fit, temperature=schedule),
        "online (macqueen)": fit_online,
    }
    for name, function in fits.items():
        timed(function)  # Compiles.
        result, milliseconds = timed(function)
        loss = float(dk.kmeans_loss(points, result.centroids))
        steps, residual = int(result.state.step), f"{result.residual:.1e}"
        status = str(result.flags)
        yield name, loss, steps, residual, status, milliseconds


def sklearn_row(points: jax.Array, start: jax.Array) -> Row | None:
    """The row of scikit-learn, or None if it is not installed."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        return None
    x, c = np.asarray(points), np.asarray(start)
    make: Any = KMeans  # Its types are inferred from its defaults.
    model = make(len(c), init=c, n_init=1, algorithm="lloyd").fit(x)
    _, milliseconds = timed(lambda: model.fit(x))
    return "scikit-learn", model.inertia_, model.n_iter_, "-", "-", milliseconds


def run(options: Any) -> int:
    """Fits the embedded digits with every optimizer, and prints what came out."""
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        points = jnp.asarray(np.load(file)["points"], jnp.float64)
    print(
        "1797 digits of 64 pixels in 10 clusters, from one start (k-means++, seed "
        f"{options.seed}). Every row\nminimizes the same sum of squared distances to "
        "the nearest centroid.\n"
    )
    keys = jax.random.split(jax.random.key(options.seed), 3)
    start = dk.kmeans_plus_plus(keys[0], points, 10)
    # Integer points have exact ties, which every implementation breaks in its own way.
    start += 1e-3 * jax.random.normal(keys[1], start.shape, start.dtype)
    rows, theirs = [*our_rows(keys[2], points, start)], sklearn_row(points, start)
    base, whose = (theirs, "scikit-learn") if theirs else (rows[0], "newton")
    line = "{:<18} {:>12} {:>8} {:>6} {:>9}  {:<10} {:>6}"
    names = "optimizer", "loss", "ratio", "steps", "residual", "status", "ms"
    print(line.format(*names))
    for name, loss, *cells, milliseconds in [*rows, theirs] if theirs else rows:
        ratio = f"{loss / base[1]:.5f}"
        print(line.format(name, f"{loss:.3f}", ratio, *cells, f"{milliseconds:.1f}"))
    if theirs is None:
        print('pip install "diffkm[sklearn]" adds the comparison with scikit-learn.')
    print(
        f"\nratio: loss / {whose}'s; residual: squared length of one more Lloyd step;\n"
        "ms: second call, not compiling; soft: its hard loss; online: no stop rule.\n"
        "Newton's method on this loss is Lloyd's algorithm, step for step; the others\n"
        "follow the same gradient to the same result. From other starts they may find\n"
        "local minima several percent apart: python -m diffkm_jax table --seed 3"
    )
    return 0
