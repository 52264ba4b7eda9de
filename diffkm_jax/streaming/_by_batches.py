"""The fit to a stream that steps at every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax._problem import Problem
from diffkm_jax.fitting import State, Status
from diffkm_jax.fitting._empty import is_empty
from diffkm_jax.fitting._start import check_number, start_of
from diffkm_jax.fitting._status import status_of
from diffkm_jax.fitting._step import Algorithm
from diffkm_jax.streaming._parts import added, step_on
from diffkm_jax.streaming._reading import Batch
from diffkm_jax.streaming._result import StreamResult
from diffkm_jax.streaming._watch import Watch

Problems = Callable[[], Iterator[tuple[Batch, Algorithm, Problem]]]


class Mark(NamedTuple):
    """What is known after a step, which Ctrl-C finds whole, the old one or the new.

    Attributes:
        state: After it.
        residual: Before it, [], or None before the first.
        found: What was found of the points so far, or None before the first.
        num_steps: Steps so far.
    """

    state: State
    residual: Any = None
    found: Any = None
    num_steps: int = 0


class ByBatches:
    """Where such a fit is.

    Args:
        start: Centroids, or the state of another fit.
        rows: The centroids, checked, [k, d].
        watch: What is told of the steps.
    """

    def __init__(self, start: Any, rows: jax.Array, watch: Watch) -> None:
        self.start, self.rows, self.watch = start, rows, watch
        # None before the first batch; and the dtype of what is returned.
        self.mark: Mark | None = None
        self.dtype: Any = None
        self.active: jax.Array | None = None
        self.bad: Batch | None = None
        self.history: list[float] = []
        self.interrupted = self.outside = False

    def run(self, problems: Problems) -> None:
        """Steps until the batches end, or the caller does."""
        for batch, algorithm, problem in problems():
            if self.mark is None:
                if problem.active is None and not isinstance(self.start, State):
                    check_number(len(self.rows), batch.number, "of the first batch")
                given = algorithm, problem, self.start, self.rows
                state, self.dtype = start_of(*given)
                self.mark, self.active = Mark(state), problem.active
            mark = self.mark
            found, outside = step_on(algorithm, problem, mark.state)
            if not bool(found.finite):
                self.bad = batch
                return
            total = added(mark.found, (found.stats.loss, found.stats.counts))
            self.outside |= bool(outside)
            self.history[mark.num_steps :] = [float(found.stats.loss)]
            self.mark = Mark(found.state, found.residual, total, mark.num_steps + 1)
            if self.watch.stops(found.state, found.stats):
                self.interrupted = True
                return
        if self.mark is None and isinstance(self.start, State):
            # It had read all there is.
            self.mark, self.dtype = Mark(self.start), self.rows.dtype

    def result(self) -> StreamResult:
        """What it has found so far."""
        mark: Any = self.mark
        failed, acc = self.bad is not None, mark.state.centroids.dtype
        nothing = jnp.zeros((), acc), jnp.zeros(len(self.rows), acc)
        loss, counts = nothing if mark.found is None else mark.found[0]
        nan = jnp.asarray(jnp.nan, acc)
        status = status_of(
            MAX_STEPS=not failed and not self.interrupted,
            NON_FINITE=failed,
            EMPTY_CLUSTER=mark.num_steps and is_empty(counts, self.active).any(),
            DOMAIN=self.outside,
            INTERRUPTED=self.interrupted,
        )
        return StreamResult(
            centroids=mark.state.centroids.astype(self.dtype),
            loss=loss,
            counts=counts,
            residual=nan if mark.residual is None else mark.residual,
            history=jnp.asarray(self.history[: mark.num_steps], acc),
            num_steps=mark.num_steps,
            status=Status(int(status)),
            state=mark.state,
        )
