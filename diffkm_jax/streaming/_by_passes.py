"""The fit to a stream that steps by all batches together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._problem import Plan, Problem
from diffkm_jax._statistics import Statistics
from diffkm_jax.fitting._empty import Costliest, is_empty
from diffkm_jax.fitting._start import as_tol, check_number, start_of
from diffkm_jax.fitting._state import State
from diffkm_jax.fitting._status import Status
from diffkm_jax.fitting._step import Algorithm
from diffkm_jax.streaming._by_batches import Mark, Problems
from diffkm_jax.streaming._parts import (
    added,
    costliest_in,
    costliest_on,
    ending_of,
    ending_on,
    moments_on,
    rule_of,
    statistics_on,
    step_after,
)
from diffkm_jax.streaming._reading import Batch
from diffkm_jax.streaming._result import StreamResult
from diffkm_jax.streaming._watch import Watch


class ByPasses:
    """Where such a fit is.

    Args:
        start: Centroids, or the state of another fit.
        rows: The centroids, checked, [k, d].
        watch: What is told of the steps.
        passes: Limit of steps.
        tol: As in `fit`.
    """

    def __init__(
        self, start: Any, rows: jax.Array, watch: Watch, passes: int, tol: Any
    ) -> None:
        self.start, self.rows, self.watch = start, rows, watch
        self.passes, self.tol = passes, tol
        # Of the start; where the fit is; the dtype of what it returns.
        self.first: Any = None
        self.mark: Mark | None = None
        self.dtype: Any = None
        # What a step needs but for points; the rule that ends it; rows of all batches.
        self.alone: Any = None
        self.rule: Any = None
        self.number: int | None = None
        self.status: Any = None
        self.history: list[float] = []
        self.bad: Batch | None = None
        self.interrupted = False

    @property
    def state(self) -> State:
        """Where the fit is, once it has begun."""
        mark: Any = self.mark
        return mark.state

    def run(self, problems: Problems) -> None:
        """Steps until the centroids rest, or the caller ends it; then a last pass."""
        taken, rests = 0, False
        while taken < self.passes and not rests and not self.interrupted:
            stats = self._pass(problems, lambda *part: statistics_on(*part, self.state))
            if stats is None:
                return
            costly = self._costliest(problems, stats)
            found, last = step_after(*self.alone, self.state, stats, costly, self.rule)
            if not bool(found.finite):
                self.status = Status.NON_FINITE
                return
            rests = bool(last)
            self.history[taken:] = [float(stats.loss)]
            taken += 1
            self.mark = Mark(found.state, found.residual, stats, taken)
            self.interrupted = self.watch.stops(self.state, stats)
        self._end(problems, taken, rests)

    def _pass(self, problems: Problems, of_part: Callable) -> Any:
        """The sum over all batches of what is found of each; None, if not finite.

        The first also makes the rule, of their moments.
        """
        total, moments, number, before = None, [], 0, None
        for batch, algorithm, problem in problems():
            if self.mark is None:
                given = algorithm, problem, self.start, self.rows
                self.first, self.dtype = start_of(*given)
                self.mark = Mark(self.first)
                bare = jnp.ones((1, self.rows.shape[1]), problem.points.dtype)
                plan = Plan(algorithm.plan.block_size)
                self.alone = (
                    algorithm._replace(plan=plan),
                    problem._replace(points=bare, weights=None),
                )
            part = of_part(algorithm, problem)
            # Looked at when the next is under way, so that nothing waits for it.
            if self._fails(before):
                return None
            before = batch, part
            total, number = added(total, part), number + batch.number
            if self.rule is None:
                moments.append(moments_on(algorithm, problem, self.first))
        if self._fails(before):
            return None
        self._check(number)
        if self.rule is None:
            algorithm, problem = self.alone
            tol, last = as_tol(self.tol, problem), self.first.step + self.passes
            every = jax.tree.map(lambda *a: np.stack(a), *moments)
            self.rule = rule_of(algorithm, problem, self.first, every, tol, last)
        summed: Any = total
        return summed[0]

    def _fails(self, found: tuple[Batch, Any] | None) -> bool:
        """Whether what a batch gave is not finite."""
        if found is None or bool(jnp.isfinite(jax.tree.leaves(found[1])[0])):
            return False
        self.status, self.bad = Status.NON_FINITE, found[0]
        return True

    def _check(self, number: int) -> None:
        """Raises ValueError unless a pass has read rows, as many as the one before."""
        if self.number is None:
            self.number = number
            if number and self.alone[1].active is None:
                check_number(len(self.rows), number)
        if number == 0 or number != self.number:
            raise ValueError(
                "batches must have rows, the same on every pass, got "
                f"{self.number} in the first and {number} in this one"
            )

    def _costliest(self, problems: Problems, stats: Statistics) -> Costliest:
        """The points of largest cost; batches are read for them if one is needed."""
        algorithm, problem = self.alone
        k, acc = len(self.rows), stats.counts.dtype
        is_needed = callable(algorithm.empty)
        if algorithm.empty == "farthest":
            is_needed = bool(is_empty(stats.counts, problem.active).any())
        if not is_needed:
            zeros = jnp.zeros(k, acc)
            return Costliest(
                jnp.zeros(self.rows.shape, problem.points.dtype), zeros, zeros
            )
        found: Any = None
        for _, of_batch, problem in problems():
            part = costliest_on(of_batch, problem, self.state)
            found = part if found is None else costliest_in([found, part], k)
        return found

    def _end(self, problems: Problems, taken: int, rests: bool) -> None:
        """A last pass, at the centroids as they are returned."""

        def of_part(algorithm: Algorithm, problem: Problem) -> Any:
            return ending_on(algorithm, self.dtype, problem, self.first, self.state)

        found = self._pass(problems, of_part)
        if found is None:
            return
        stats, outside = found
        at_rest = rests, self.interrupted, outside > 0
        given = self.dtype, self.first, self.state, stats, self.rule, *at_rest
        residual, status = ending_of(*self.alone, *given)
        self.status = Status(int(status))
        self.mark = Mark(self.state, residual, stats, taken)

    def result(self) -> StreamResult:
        """What it has found so far."""
        mark: Any = self.mark
        stats, n, acc = mark.found, mark.num_steps, mark.state.centroids.dtype
        nan, zeros = jnp.asarray(jnp.nan, acc), jnp.zeros(len(self.rows), acc)
        loss = nan if stats is None else stats.loss
        return StreamResult(
            centroids=mark.state.centroids.astype(self.dtype),
            loss=loss,
            counts=zeros if stats is None else stats.counts,
            residual=nan if stats is None else mark.residual,
            history=jnp.asarray([*self.history[:n], float(loss)], acc),
            num_steps=n,
            status=self.status or Status.INTERRUPTED,
            state=mark.state,
        )
