"""`diffkm predict`: the points in a file assigned to the centroids of a fit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from diffkm_jax._by_name import DISTANCES
from diffkm_jax._command_line.labels import write_labels
from diffkm_jax._command_line.output import CommandError, check_out
from diffkm_jax._command_line.reading import Data, blocks, check_file, read
from diffkm_jax._command_line.report import print_json, print_text, sizes_of

READ = "centroids", "temperature", "distance", "columns"


class Fit(NamedTuple):
    """What an assignment needs of a fit: arrays, and names of distance and columns."""

    centroids: jax.Array
    temperature: jax.Array | None
    distance: str
    columns: list[str]


def run(options: Any) -> int:
    """Assigns a file, reports, and writes the labels; the exit status."""
    check_out(options.out, options.file, options.fit, Path(options.weights or ""))
    fit = read_fit(options.fit)
    if options.proba and fit.temperature is None:
        hard = f"{options.fit} is a hard fit, without a temperature"
        raise CommandError(f"argument --proba: {hard}")
    data, (k, d) = read(options, fit.centroids.dtype), fit.centroids.shape
    if data.points.shape[1] != d:
        got = f"got {data.points.shape[1]} of {data.path}"
        raise CommandError(f"{options.fit}: its fit is of d = {d} columns, {got}")
    if fit.columns and data.names and fit.columns != [*data.names]:
        own, of_fit = ",".join(data.names), ",".join(fit.columns)
        what = f"has columns {own}, and the fit {of_fit}"
        raise CommandError(f"{data.path}: {what}: see --columns {of_fit}")
    begin = time.perf_counter()
    try:
        labels, memberships, stats = assigned(data, fit, options.proba)
    except ValueError as error:
        raise CommandError(f"{data.path}: {error}") from error
    are_whole = data.weights is None and fit.temperature is None
    found = {
        "n": len(data.points),
        "d": d,
        "k": k,
        "loss": float(stats.loss),
        "temperature": None if fit.temperature is None else float(fit.temperature),
        "sizes": sizes_of(stats.counts, are_whole),
        "seconds": time.perf_counter() - begin,
        "out": options.out,
    }
    if options.json:
        write_found(options.out, labels, memberships)
        print_json(found)
        return 0
    try:
        print_text(found)
    finally:  # Whoever reads the report may have gone.
        write_found(options.out, labels, memberships)
    if options.out is not None:
        print(f"written         {options.out}")
    return 0


def write_found(
    out: Path | None, labels: np.ndarray, memberships: np.ndarray | None
) -> None:
    """Writes what was asked for."""
    if out is not None:
        write_labels(out, labels, memberships)


def read_fit(path: Path) -> Fit:
    """The fit in a file that `diffkm fit` wrote."""
    check_file(path)
    what = f"{path}: is no result of diffkm fit, or is damaged"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in READ if name in file}
            is_saved = "diffkm" in file
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # A damaged file may raise anything in its reader.
        raise CommandError(what) from error
    if is_saved and "distance" not in arrays:
        why = "is of diffkm_jax.save, which does not keep the distance"
        raise CommandError(f"{path}: {why}: take load and assign, in Python")
    c, distance = arrays.get("centroids", np.zeros(())), f"{arrays.get('distance')}"
    temperature = arrays.get("temperature")
    usable = c.ndim == 2 and c.dtype.kind == "f" and c.size and np.isfinite(c).all()
    if distance not in DISTANCES or not usable:
        got = f"centroids of shape {c.shape} and distance {distance!r}"
        raise CommandError(f"{what}: got {got}")
    if temperature is not None:
        if temperature.ndim or not 0 < temperature < np.inf:
            raise CommandError(f"{what}: its temperature is {temperature}")
        temperature = jnp.asarray(temperature, c.dtype)
    columns = np.atleast_1d(arrays.get("columns", ())).tolist()
    return Fit(jnp.asarray(c), temperature, distance, columns)


def assigned(
    data: Data, fit: Fit, proba: bool
) -> tuple[np.ndarray, np.ndarray | None, dk.Statistics]:
    """Labels [n], memberships [n, k] if asked for, and what all points add up to."""
    c, t, distance = fit.centroids, fit.temperature, getattr(dk, fit.distance)
    n, k = len(data.points), len(c)
    total: Any = None
    labels = np.empty(n, np.int32)
    memberships = np.empty((n, k), c.dtype) if proba else None
    for first, rows in blocks(data.points, c.dtype):
        chosen = slice(first, first + len(rows))
        weights = None if data.weights is None else data.weights[chosen]
        law = {"distance": distance, "weights": weights, "temperature": t}
        stats = dk.statistics(rows, c, **law)
        total = stats if total is None else jax.tree.map(jnp.add, total, stats)
        labels[chosen] = dk.assign(rows, c, distance=distance)
        if memberships is not None and t is not None:
            logits = -dk.pairwise(rows, c, distance=distance) / t
            memberships[chosen] = jax.nn.softmax(logits)
    return labels, memberships, total
