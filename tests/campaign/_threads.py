"""Eight threads at once: each gets what one after another would get, to the bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import diffkm_jax as dk
from diffkm_torch.bridge import jax_to_torch
from tests.campaign._cells import Cell
from tests.campaign._subjects import subjects, twins

THREADS = 8
IN_THREADS = {
    "assign",
    "certificate",
    "estimators.rloo",
    "evaluate",
    "fit",
    "fit(temperature=0.3)",
    "fit_minibatch",
    "fit_restarts",
    "kmeans_loss",
    "kmeans_plus_plus",
    "macqueen",
    "quantize",
    "rotation_trick",
    "sinkhorn",
    "soft_kmeans_loss(temperature=0.3)",
    "statistics",
    "update(empty=farthest)",
}


def in_threads(call: Callable[[int], Any]) -> list[Any]:
    """What a function returns of 0 to 7, in eight threads that begin at once."""
    barrier, found = threading.Barrier(THREADS), [None] * THREADS
    errors: list[BaseException] = []

    def work(i: int) -> None:
        barrier.wait()
        try:
            found[i] = call(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def same(found: Any, expected: Any) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        a, b = (t.detach() if isinstance(t, torch.Tensor) else t for t in (a, b))
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def scaled(arrays: dict, i: int) -> dict:
    """Another problem for every thread."""
    return {
        k: a if a.dtype == bool else (a * (1 + i / 64)).astype(np.float32)
        for k, a in arrays.items()
    }


def threads(make: Callable, function: Callable, arrays: dict, *, fresh: bool) -> None:
    """Raises unless eight threads get what one after another gives."""

    def call(i: int) -> Any:
        return function(**{k: make(a) for k, a in scaled(arrays, i).items()})

    if fresh:
        jax.clear_caches()
    found = in_threads(call)
    for i, result in enumerate(found):
        same(result, call(i))


def bridged(arrays: dict) -> None:
    """Raises unless gradients through the bridge are the same in eight threads."""
    loss = jax_to_torch(dk.kmeans_loss)

    def call(i: int) -> Any:
        given = scaled(arrays, i)
        x, c = (
            torch.tensor(given[k]).requires_grad_() for k in ("points", "centroids")
        )
        return torch.autograd.grad(loss(x, c), (x, c))

    jax.clear_caches()
    for i, result in enumerate(in_threads(call)):
        same(result, call(i))


def thread_cells() -> Iterator[Cell]:
    """Eager, tracing and compiling at once; jitted; torch; and the bridge."""
    for subject in subjects():
        if subject.name in IN_THREADS:
            run = partial(threads, jnp.asarray, subject.function, subject.arrays)
            yield Cell(
                "faults", "threads, eager", subject.name, partial(run, fresh=True)
            )
            jitted = jax.jit(subject.function)
            run = partial(threads, jnp.asarray, jitted, subject.arrays, fresh=True)
            yield Cell("faults", "threads, jit", subject.name, run)
    for name, _, theirs, given in twins():
        if name in IN_THREADS:
            run = partial(threads, torch.tensor, theirs, given, fresh=False)
            yield Cell("faults", "threads, torch", name, run)
    arrays = next(s.arrays for s in subjects() if s.name == "kmeans_loss")
    yield Cell("faults", "threads, bridge", "kmeans_loss", partial(bridged, arrays))
