"""`diffkm fit`: k centroids fitted to the points in a file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from diffkm_jax import storage
from diffkm_jax._by_name import default_rate, optimizer_of
from diffkm_jax._checks import as_tree
from diffkm_jax._command_line.fits import Settings, fit_batches, fit_whole
from diffkm_jax._command_line.labels import write_labels
from diffkm_jax._command_line.optimizers import check_optimizer, settling
from diffkm_jax._command_line.output import CommandError, check_out, write
from diffkm_jax._command_line.parser import INITIALIZERS
from diffkm_jax._command_line.progress import Progress
from diffkm_jax._command_line.reading import Data, blocks, chosen, read, read_points
from diffkm_jax._command_line.report import print_json, print_text, sizes_of, warn
from diffkm_jax._given import check_domain
from diffkm_jax.distances._forms import embedded, form_of

# Batches of which a start is drawn.
SAMPLE = 3


def run(options: Any) -> int:
    """Fits a file, reports, and writes the result; the exit status."""
    check_optimizer(options)
    inputs = options.file, Path(options.init), Path(options.weights or "")
    for out in (options.out, options.plot):
        check_out(out, *inputs)
    if options.plot is not None and find_spec("matplotlib") is None:
        needs = 'matplotlib: pip install "diffkm[plot]"'
        raise CommandError(f"argument --plot: needs {needs}")
    distance = getattr(dk, options.distance)
    data = read(options, options.dtype)
    (n, d), k = data.points.shape, options.k
    if k > n:
        raise CommandError(f"{data.path}: has n = {n} points, too few for -k {k}")
    begin = time.perf_counter()
    try:
        check_points_of(data, options.dtype, distance)
        settings = settings_of(options, data, distance)
        result = best(options, data, settings)
    except ValueError as error:
        raise CommandError(f"{data.path}: {error}") from error
    seconds, status = time.perf_counter() - begin, result.flags
    failed = dk.Status.NON_FINITE in status
    are_whole = data.weights is None and options.temperature is None
    sizes = sizes_of(result.counts, are_whole)
    out, plot = (None, None) if failed else (options.out, options.plot)
    found = {
        "n": n,
        "d": d,
        "k": k,
        "loss": float(result.loss),
        "temperature": options.temperature,
        "steps": int(result.num_steps),
        "residual": float(result.residual),
        "status": [str(flag) for flag in dk.Status if flag in status],
        "sizes": sizes,
        "seconds": seconds,
        "out": out,
        "plot": plot,
    }
    written = partial(write_all, out, plot, data, result, options)
    if options.json:
        written()
        print_json(found)
        warn(status, found["steps"], sizes, settings.batch_size > 0)
        return 3 if failed else 0
    try:
        print_text(found)
    finally:  # Whoever reads the report may have gone.
        warn(status, found["steps"], sizes, settings.batch_size > 0)
        written()
    for name in (out, plot):
        if name is not None:
            print(f"written         {name}")
    return 3 if failed else 0


def check_points_of(data: Data, dtype: Any, distance: Any) -> None:
    """Raises ValueError where points are outside the domain of the distance."""
    tree = as_tree(distance)
    form = form_of(tree)
    if form is None or not form.domain:
        return  # A file is not read for nothing.
    for first, rows in blocks(data.points, dtype):
        weights = None
        if data.weights is not None:
            weights = data.weights[first : first + len(rows)]
        try:
            check_domain(tree, rows, weights, None, None)
        except ValueError as error:
            after = f" after row {first}" if first else ""
            raise ValueError(f"{error}{after}") from error


def settings_of(options: Any, data: Data, distance: Any) -> Settings:
    """What all fits of the command have."""
    name, size, n = options.optimizer, options.batch_size or 0, len(data.points)
    number = 0
    if size:
        number = options.batches or max(100, math.ceil(4 * n / size))
        if options.epochs is not None:
            number = math.ceil(options.epochs * n / size)
    if name is None:
        optimizer = settling(number)
    else:
        mean = 1.0 if data.weights is None else float(np.mean(data.weights))
        rate, variance = options.learning_rate, 0.0
        if rate is None and name == "adam":
            variance = variance_of(data, options.dtype, distance)
        rate = rate or default_rate(name, mean * (size or n), variance)
        optimizer = optimizer_of(name, rate)
    law = {
        "optimizer": optimizer,
        "distance": distance,
        "temperature": options.temperature,
        "empty": options.empty,
    }
    rule = {"max_steps": options.max_steps, "tol": options.tol}
    return Settings(options.dtype, law, rule, size, number)


def variance_of(data: Data, dtype: Any, distance: Any) -> float:
    """The mean variance of the columns, of points as the distance takes them."""
    number, total, squares = 0.0, 0.0, 0.0
    tree = as_tree(distance)
    origin = np.zeros(data.points.shape[1])
    for first, rows in blocks(data.points, dtype):
        w = np.ones(len(rows))
        if data.weights is not None:
            w = data.weights[first : first + len(rows)].astype(np.float64)
        rows = np.asarray(embedded(tree, jnp.asarray(rows)), np.float64)[w > 0]
        w = w[w > 0]
        if first == 0 and len(rows):
            origin = rows.mean(0)
        number += w.sum()
        total += w @ (rows - origin)
        squares += w @ (rows - origin) ** 2
    return float(np.mean(squares / number - (total / number) ** 2))


def best(options: Any, data: Data, settings: Settings) -> dk.FitResult:
    """The fit of smallest finite loss, else the first."""
    size, steps = settings.batch_size, settings.rule["max_steps"]
    points = weights = None
    if not size:
        points = jnp.asarray(data.points, settings.dtype)
        weights = None if data.weights is None else jnp.asarray(data.weights)
    found: Any = None
    total = settings.num_batches if size else steps
    shown = Progress(options.progress, options.restarts, total)
    with closing(shown) as progress:
        for i, start in enumerate(starts(options, data, points, weights, settings)):
            progress.begin()
            if points is None:
                seed = [options.seed, i]
                result = fit_batches(data, start, seed, settings, progress)
            else:
                result = fit_whole(points, weights, start, settings, progress)
            loss = float(result.loss)
            if (
                found is None
                or loss < found[0]
                or math.isnan(found[0]) > math.isnan(loss)
            ):
                found = loss, result
    return found[1]


def starts(
    options: Any, data: Data, points: Any, weights: Any, settings: Settings
) -> Iterator[Any]:
    """The start of every fit, [k, d]: of a file, or drawn as `fit_restarts` does."""
    tree, k = as_tree(settings.law["distance"]), options.k
    if options.init not in INITIALIZERS:
        # Of a result of this command, its centroids.
        table = read_points(Path(options.init), settings.dtype, default="centroids")
        start = table.points
        if start.shape != (k, data.points.shape[1]):
            expected = f"{k} starts of {data.points.shape[1]} numbers"
            raise CommandError(
                f"{options.init}: must have {expected}, got {start.shape}"
            )
        yield np.asarray(start, settings.dtype)
        return
    initializer = getattr(dk, INITIALIZERS[options.init])
    keys = jax.random.split(jax.random.key(options.seed), options.restarts)
    n, size = len(data.points), settings.batch_size
    if points is not None:
        points = embedded(tree, points)
    for i, key in enumerate(keys):
        if size:
            rng = np.random.default_rng([options.seed, i, 1])
            number = min(n, max(SAMPLE * size, 10 * k))
            rows = np.sort(rng.choice(n, number, replace=False, shuffle=False))
            drawn = jnp.asarray(chosen(data.points, rows, settings.dtype))
            points = embedded(tree, drawn)
            weights = None if data.weights is None else jnp.asarray(data.weights[rows])
        yield initializer(key, points, k, weights=weights)


def write_all(
    out: Path | None, plot: Path | None, data: Data, result: dk.FitResult, options: Any
) -> None:
    """Writes what was asked for."""
    if out is not None and out.suffix.lower() != ".npz":
        write_labels(out, np.asarray(result.labels))
    elif out is not None:
        arrays = storage.arrays_of(result, "") | {"distance": options.distance}
        if data.names:
            arrays |= {"columns": np.array(data.names)}
        write(out, lambda file: np.savez(file, **arrays))
    if plot is not None:
        from diffkm_jax._command_line.picture import draw

        draw(plot, data.points, result)
