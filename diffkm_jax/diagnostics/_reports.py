"""The program of `evaluate`: draws enumerated or sampled, and a report of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax.diagnostics._discrete import is_discrete_at
from diffkm_jax.diagnostics._estimates import Sample, estimate, joint_draw, judged
from diffkm_jax.diagnostics._moments import moments
from diffkm_jax.diagnostics._report import Report, report_of
from diffkm_jax.diagnostics._settings import with_settings
from diffkm_jax.estimators._cost import TracedCost
from diffkm_jax.estimators._enumeration import exact, num_configurations
from diffkm_jax.estimators._estimator import Estimator


class Plan(NamedTuple):
    """What is static about an evaluation, as in `evaluate`."""

    num_samples: int
    max_configurations: int
    chunk_size: int
    enumerate_draws: bool

    def joint(self, record: Estimator, num: int) -> int | None:
        """How many draws to enumerate, of `num` for each noise row; None is sample."""
        count = num**record.num_draws
        few = self.enumerate_draws and record.discrete
        few = few and count <= min(self.max_configurations, 2**31 - 1)
        return count if few or not record.num_draws else None


@partial(jax.jit, static_argnums=(0, 1))
def reports_of(
    plan: Plan,
    kind: Any,
    key: jax.Array,
    cost: TracedCost,
    logits: jax.Array,
    settings: list,
) -> tuple[tuple[Report, ...], list[jax.Array]]:
    """A report of every record, and whether each is discrete where that is relied on.

    A report that is not as its record declares is NaN.
    """
    records, kept = with_settings(kind, settings), cost.num_axes
    num = num_configurations(logits, kept)
    truth = estimate(exact(max_configurations=num), cost, logits, None)
    counts = [plan.joint(record, num) for record in records]
    sampled = [e for e, count in zip(records, counts, strict=True) if count is None]
    paired = counts[0] is None

    def sample(i: jax.Array) -> tuple[jax.Array, list[Sample]]:
        most = max(sampled, key=lambda record: record.num_draws)
        noise = most.draw(jax.random.fold_in(key, i), logits.shape, logits.dtype)
        found = [
            judged(estimate(e, cost, logits, noise[: e.num_draws]), truth)
            for e in sampled
        ]
        if paired:
            first = found[0].error
            found = [s._replace(difference=s.error - first) for s in found]
        return jnp.ones_like(found[0].cosine), found

    def enumerated(record: Estimator, fits: jax.Array) -> Callable:
        def at(code: jax.Array) -> tuple[jax.Array, list[Sample]]:
            weight, noise = joint_draw(logits, kept, num, record.num_draws, code)
            found = estimate(record, cost, logits, noise)
            found = jax.tree.map(lambda a: jnp.where(fits, a, jnp.nan), found)
            return weight, [judged(found, truth)]

        return at

    num_samples, chunk_size = plan.num_samples, plan.chunk_size
    drawn = iter(moments(sample, num_samples, chunk_size) if sampled else [])
    reports, as_declared = [], []
    for record, count in zip(records, counts, strict=True):
        fits = jnp.ones((), bool)
        if count is None:
            found = next(drawn)
        else:
            if record.num_draws:
                fits = is_discrete_at(key, cost, logits, record)
            (found,) = moments(enumerated(record, fits), count, chunk_size)
        first = reports[0] if reports else None
        reports.append(report_of(found, truth, count, num_samples, first, paired))
        as_declared.append(fits)
    return tuple(reports), as_declared
