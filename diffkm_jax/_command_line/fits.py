"""One fit: by all points in pieces of some steps, or by batches of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from diffkm_jax._command_line.progress import Progress
from diffkm_jax._command_line.reading import Data, blocks, chosen

# Products of numbers in a piece, of about a second: k d of every point and step.
PIECE = 10_000_000_000


class Settings(NamedTuple):
    """What all fits of a command have.

    Attributes:
        dtype: Of points and centroids.
        law: Keyword arguments of `fit` and of `fit_stream`.
        rule: Further ones of `fit`: max_steps and tol.
        batch_size: Rows of a batch, or 0.
        num_batches: How many there are.
    """

    dtype: Any
    law: dict[str, Any]
    rule: dict[str, Any]
    batch_size: int
    num_batches: int


def fit_whole(
    points: jax.Array,
    weights: jax.Array | None,
    start: Any,
    settings: Settings,
    progress: Progress,
) -> dk.FitResult:
    """The steps of one `fit`, in pieces that can be watched, and ended between."""
    (n, d), k = points.shape, len(start)
    piece = max(10, PIECE // (n * d * k))
    left, taken, history = settings.rule["max_steps"], 0, []
    while True:
        rule = settings.rule | {"max_steps": min(piece, left)}
        result = dk.fit(points, start, weights=weights, **rule, **settings.law)
        steps = int(result.num_steps)
        history.append(result.history[:steps])
        taken, left, start = taken + steps, left - steps, result.state
        if not left or dk.Status.MAX_STEPS not in result.flags:
            break
        if progress.due():
            progress.show(taken, float(result.loss), float(result.residual))
    history = jnp.concatenate([*history, result.loss[None]])
    return result._replace(history=history, num_steps=jnp.asarray(taken, jnp.int32))


def fit_batches(
    data: Data, start: Any, seed: list[int], settings: Settings, progress: Progress
) -> dk.FitResult:
    """Steps by batches of rows drawn with replacement; points are read as needed."""
    law, size = settings.law, settings.batch_size
    n, share, batches = len(data.points), size / len(data.points), 0

    def watch(state: dk.State, stats: dk.Statistics) -> None:
        nonlocal batches
        batches += 1
        if progress.due():
            counts = np.maximum(np.asarray(stats.counts), np.finfo(np.float32).tiny)
            step = np.asarray(stats.shifts) / counts[:, None]
            loss = float(stats.loss) / share
            progress.show(batches, loss, float(np.sum(step**2)))

    def drawn() -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        for _ in range(settings.num_batches):
            rows = np.sort(rng.integers(0, n, size))  # In the order of the file.
            batch = chosen(data.points, rows, settings.dtype)
            yield with_weights(data, batch, rows)

    def whole() -> Iterator[Any]:
        for first, rows in blocks(data.points, settings.dtype):
            yield with_weights(data, rows, slice(first, first + len(rows)))

    weighted = {"weighted": data.weights is not None}
    state = dk.init(start, optimizer=law["optimizer"])
    with warnings.catch_warnings():
        # Of a batch that is not finite: its status says so.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = dk.fit_stream(drawn, state, callback=watch, **weighted, **law)
        if dk.Status.INTERRUPTED in found.status:
            raise KeyboardInterrupt
        c = found.centroids
        end = dk.fit_stream(whole, c, passes=0, **weighted, **law)
    if dk.Status.INTERRUPTED in end.status:
        raise KeyboardInterrupt
    status = (found.status | end.status) & ~dk.Status.EMPTY_CLUSTER
    status |= end.status & dk.Status.EMPTY_CLUSTER
    if dk.Status.NON_FINITE in status:
        status &= ~dk.Status.MAX_STEPS
    temperature = law["temperature"]
    return dk.FitResult(
        centroids=c,
        labels=jnp.asarray(labels_of(data.points, c, law["distance"])),
        loss=end.loss,
        counts=end.counts,
        residual=end.residual,
        history=jnp.append(found.history / share, end.loss),
        num_steps=jnp.asarray(found.num_steps, jnp.int32),
        status=jnp.asarray(int(status), jnp.int32),
        temperature=None if temperature is None else jnp.asarray(temperature, c.dtype),
        state=found.state,
    )


def with_weights(data: Data, points: np.ndarray, rows: Any) -> Any:
    """Points of some rows, with their weights, if there are any."""
    return points if data.weights is None else (points, data.weights[rows])


def labels_of(points: np.ndarray, centroids: jax.Array, distance: Any) -> np.ndarray:
    """The label of every point, [n], int32, some read at a time."""
    labels = np.empty(len(points), np.int32)
    for first, rows in blocks(points, centroids.dtype):
        found = dk.assign(rows, centroids, distance=distance)
        labels[first : first + len(rows)] = found
    return labels
