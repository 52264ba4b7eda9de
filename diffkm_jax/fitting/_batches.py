"""Which rows are the batch of a step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._hints import shown
from diffkm_jax._mesh import index_on, size_of, vary_as
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._sharding import devices_of, number_of

SAMPLINGS = "replacement", "shuffled", "sequential"


def check_batches(
    sampling: str, batch_size: int, plan: Plan, points: jax.Array
) -> None:
    """Raises ValueError unless batches of that size can be taken so of the rows."""
    devices, n = devices_of(plan), number_of(plan, points)
    if sampling not in SAMPLINGS:
        names = "'replacement', 'shuffled' or 'sequential'"
        raise ValueError(f"sampling must be {names}, got {shown(sampling)}")
    if sampling != "replacement" and batch_size > n:
        raise ValueError(
            f"batch_size must be at most n = {n} (the points) where sampling is "
            f"{sampling!r}, got {batch_size}"
        )
    if batch_size % devices:
        raise ValueError(
            f"batch_size must be a multiple of {devices}, the devices that the points "
            f"are on, got {batch_size}"
        )


class Batches:
    """The batches of a problem; on a mesh each device takes its part of its own rows.

    Args:
        sampling: One of `SAMPLINGS`.
        plan: Of the passes.
        key: A random key, the same on every device.
        problem: All the points.
        batch_size: Rows of a batch, on all devices together.
    """

    def __init__(
        self, sampling: str, plan: Plan, key: jax.Array, problem: Problem, size: int
    ) -> None:
        self.sampling, self.problem, self.rows = sampling, problem, len(problem.points)
        self.size = size // size_of(plan.axis_name)
        self.key = key
        if plan.axis_name is not None:
            self.key = jax.random.fold_in(key, index_on(plan.axis_name))
        # Rows left over are in other epochs, or in a last batch that overlaps.
        whole = sampling == "shuffled"
        number = self.rows // self.size if whole else -(-self.rows // self.size)
        self.per_epoch = max(1, number)

    def order(self, step: jax.Array) -> Any:
        """The order of the rows in the epoch of a step, [n], if it is random."""
        if self.sampling != "shuffled":
            return ()
        key = jax.random.fold_in(self.key, step // self.per_epoch)
        return jax.random.permutation(key, self.rows)

    def at(self, step: jax.Array, order: Any) -> tuple[Problem, Any]:
        """The problem of the batch of a step, and the order that it is of."""
        if self.sampling == "replacement":
            key = jax.random.fold_in(self.key, step)
            index = jax.random.randint(key, (self.size,), 0, self.rows)
            return self._of(lambda a: a[index]), order
        first = step % self.per_epoch
        start = jnp.minimum(first * self.size, self.rows - self.size)

        def piece(a: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(a, start, self.size)

        if self.sampling == "sequential":
            return self._of(piece), order
        begun = first == 0
        order = lax.cond(begun, lambda: vary_as(self.order(step), order), lambda: order)
        index = piece(order)
        return self._of(lambda a: a[index]), order

    def _of(self, part: Any) -> Problem:
        weights = self.problem.weights
        return self.problem._replace(
            points=part(self.problem.points),
            weights=None if weights is None else part(weights),
        )
