"""The fit to a stream that steps at every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from diffkm_jax._problem import Problem
from diffkm_jax.fitting._start import check_number, start_of
from diffkm_jax.fitting._step import Algorithm
from diffkm_jax.streaming._parts import added, named, step_on
from diffkm_jax.streaming._reading import Batch
from diffkm_jax.streaming._result import StreamResult
from diffkm_jax.streaming._watch import Watch

Problems = Callable[[], Iterator[tuple[Batch, Algorithm, Problem]]]


class ByBatches:
    """Where such a fit is.

    Args:
        start: Centroids, or the state of another fit.
        rows: The centroids, checked, [k, d].
        watch: What is told of the steps.
    """

    def __init__(self, start: Any, rows: jax.Array, watch: Watch) -> None:
        self.start, self.rows, self.watch = start, rows, watch
        # Where it is, and the dtype of what it returns; None before the first batch.
        self.state: Any = None
        self.dtype: Any = None
        self.bad: Batch | None = None
        self.total: Any = None
        self.residual: jax.Array | None = None
        self.history: list[float] = []
        self.interrupted = self.outside = False

    def run(self, problems: Problems) -> None:
        """Steps until the batches end, or the caller does."""
        for batch, algorithm, problem in problems():
            if self.state is None:
                if problem.active is None:
                    check_number(len(self.rows), batch.number, "of the first batch")
                self.state, self.dtype = start_of(
                    algorithm, problem, self.start, self.rows
                )
            found, outside = step_on(algorithm, problem, self.state)
            if not bool(found.finite):
                self.bad = batch
                return
            self.state, self.residual = found.state, found.residual
            self.total = added(self.total, (found.stats.loss, found.stats.counts))
            self.history.append(float(found.stats.loss))
            self.outside |= bool(outside)
            if self.watch.stops(self.state, found.stats):
                self.interrupted = True
                return

    def result(self) -> StreamResult:
        """What it has found so far."""
        state, failed = self.state, self.bad is not None
        acc = state.centroids.dtype
        nothing = jnp.zeros((), acc), jnp.zeros(len(self.rows), acc)
        loss, counts = nothing if self.total is None else self.total[0]
        nan = jnp.asarray(jnp.nan, acc)
        return StreamResult(
            centroids=state.centroids.astype(self.dtype),
            loss=loss,
            counts=counts,
            residual=nan if self.residual is None else self.residual,
            history=jnp.asarray(self.history, acc),
            num_steps=self.watch.num_steps,
            status=named(
                MAX_STEPS=not failed and not self.interrupted,
                NON_FINITE=failed,
                EMPTY_CLUSTER=bool((counts == 0).any()),
                DOMAIN=self.outside,
                INTERRUPTED=self.interrupted,
            ),
            state=state,
        )
