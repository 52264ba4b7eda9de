"""The program of `evaluate`: draws enumerated or sampled, and a report of each."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.diagnostics._discrete import alike, probes_of
from diffkm_jax.diagnostics._draws import draw, joint_draw
from diffkm_jax.diagnostics._estimates import Sample, Truth, estimate, judged
from diffkm_jax.diagnostics._moments import moments
from diffkm_jax.diagnostics._report import by_reference, difference_of, numbers_of
from diffkm_jax.diagnostics._settings import Group, with_settings
from diffkm_jax.estimators._attach import over_rows
from diffkm_jax.estimators._cost import TracedCost
from diffkm_jax.estimators._enumeration import exact, num_configurations
from diffkm_jax.estimators._estimator import Estimator
from diffkm_jax.estimators._laws import Law


class Plan(NamedTuple):
    """What is static about an evaluation, as in `evaluate`.

    Of a grid its size, of a reference all but its numbers, and what is drawn.
    """

    num_samples: int
    max_configurations: int
    chunk_size: int | None
    enumerate_draws: bool
    size: int | None
    reference: tuple | None
    law: Law

    def joint(self, record: Estimator, num: int) -> int | None:
        """How many draws to enumerate, of `num` for each noise row; None is sample."""
        count = num**record.num_draws
        few = self.enumerate_draws and record.discrete
        few = few and count <= min(self.max_configurations, 2**31 - 1)
        return count if few or not record.num_draws else None

    def chunk(self, numbers: int) -> int:
        """How many samples, each of so many numbers, to hold at a time."""
        return self.chunk_size or max(1, min(1 << 15, (1 << 22) // max(1, numbers)))


@partial(jax.jit, static_argnums=(0, 1))
def reports_of(
    plan: Plan,
    groups: tuple[Group, ...],
    key: jax.Array,
    cost: TracedCost,
    logits: jax.Array,
    arrays: list[list],
    of_reference: list,
) -> tuple[list[dict], list[jax.Array]]:
    """The numbers of every record's report, and whether it is discrete.

    That is known, and tested, where it is relied on. Numbers of a record that is not as
    it declares are NaN. The arrays are settings, of every group and of the reference.
    """
    num = num_configurations(logits, cost.num_axes, plan.law)
    problem = Problem(cost, logits, num, key)
    truth = _truth(plan, problem, of_reference)
    by_count: dict[int | None, list[int]] = {}
    for i, group in enumerate(groups):
        by_count.setdefault(plan.joint(group.record, num), []).append(i)
    # That of the first record comes first: all others are compared with it.
    order = sorted(by_count, key=lambda c: min(groups[i].members for i in by_count[c]))
    found: dict[int, tuple[dict, jax.Array]] = {}
    lead: dict = {}
    for count in order:
        chosen = [(groups[i], arrays[i]) for i in by_count[count]]
        members = [m for group, _ in chosen for m in group.members]
        leader = members.index(0) if 0 in members else None
        samples, fits = _samples(plan, chosen, problem, truth, count, leader)
        numbers = jax.vmap(jax.vmap(partial(numbers_of, truth=truth, count=count)))
        of_class = numbers(samples)
        if leader is not None:
            lead = jax.tree.map(itemgetter(leader), of_class)
        if count is not None or leader is None:
            of_class |= difference_of(of_class, lead)
        if plan.reference is not None:
            of_class |= by_reference(of_class, truth)
        for j, member in enumerate(members):
            at = j if plan.size else (j, 0)
            one = jax.tree.map(itemgetter(at), of_class)
            found[member] = one, fits[j].all()
    ordered = [found[i] for i in range(len(found))]
    return [numbers for numbers, _ in ordered], [fits for _, fits in ordered]


class Problem(NamedTuple):
    """A cost and logits, how many draws they have, and the key of samples."""

    cost: TracedCost
    logits: jax.Array
    num: int
    key: jax.Array


def _truth(plan: Plan, problem: Problem, arrays: list) -> Truth:
    """The exact gradient, or the mean of the reference's estimates of it."""
    cost, logits, num, key = problem
    if plan.reference is None:
        size, law = plan.law
        record = exact(max_configurations=num, size=size, law=law)
        value, gradient = estimate(record, cost, logits, None)
        return Truth(value, gradient, jnp.zeros_like(gradient))
    record = with_settings(plan.reference, arrays)
    # Of noise of its own: no sample has this number.
    own = jax.random.fold_in(key, 2**32 - 1)

    def drawn(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        weight = jnp.ones(logits.shape[: cost.num_axes], accumulation_dtype(logits))
        noise = draw(jax.random.fold_in(own, i), logits, record.num_draws, False)
        return weight, noise

    chunk_size = plan.chunk((1 + record.num_draws) * logits.size)
    sample = partial(estimate, record, cost, logits)
    (value, gradient), _ = moments(drawn, sample, plan.num_samples, chunk_size)
    num = plan.num_samples
    return Truth(value.mean, gradient.mean, gradient.squares / (num - 1) / num)


def _samples(
    plan: Plan,
    chosen: list[tuple[Group, list]],
    problem: Problem,
    truth: Truth,
    count: int | None,
    leader: int | None,
) -> tuple[Sample, jax.Array]:
    """The moments of samples [records, size, ...], and what is discrete as declared."""
    cost, logits, _, key = problem
    kept, records = cost.num_axes, [group.record for group, _ in chosen]
    num_draws = max(record.num_draws for record in records)
    size = plan.size or 1
    shape = sum(len(group.members) for group, _ in chosen), size
    # One axis for all of them, and none for one: XLA sums over axes of length 1 slowly.
    entries = (shape[0] * size,) if shape != (1, 1) else ()
    is_relied_on = plan.enumerate_draws and all(r.discrete for r in records)
    by_label = is_relied_on and plan.law.size == 1

    def drawn(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        if count is not None:
            weight, noise = joint_draw(logits, kept, plan.law, num_draws, i)
        else:
            weight = jnp.ones(logits.shape[:kept], accumulation_dtype(logits))
            noise = draw(jax.random.fold_in(key, i), logits, num_draws, by_label)
        return weight.reshape((1,) * len(entries) + weight.shape), noise

    def sample(noise: jax.Array) -> Sample:
        def of(record: Estimator) -> tuple[jax.Array, jax.Array]:
            return estimate(record, cost, logits, noise[: record.num_draws])

        each = [group.map(of, numbers, size) for group, numbers in chosen]
        all_of = [jnp.concatenate(parts) for parts in zip(*each, strict=True)]
        all_of = tuple(a.reshape(entries + a.shape[2:]) for a in all_of)
        judge = partial(judged, truth=truth)
        found = jax.vmap(judge)(all_of) if entries else judge(all_of)
        if leader is None or count is not None or not entries:
            return found
        error = found.error.reshape(shape + found.error.shape[1:])
        difference = (error - error[leader][None]).reshape(found.error.shape)
        return found._replace(difference=difference)

    probes = None
    if num_draws and is_relied_on:
        probes = probes_of(key, logits, num_draws, plan.law)
    total = plan.num_samples if count is None else count
    chunk_size = plan.chunk((shape[0] * size + num_draws) * logits.size)
    found, aside = moments(drawn, sample, total, chunk_size, probes=probes)
    fits = jnp.ones(shape, bool)
    if aside is not None:
        pairs = aside.cost, aside.gradient
        fits = (jax.vmap(alike, 1)(pairs) if entries else alike(pairs)).reshape(shape)

    def whole(a: jax.Array) -> jax.Array:
        a = jnp.broadcast_to(a, entries + a.shape[len(entries) :])
        a = a.reshape(shape + a.shape[len(entries) :])
        return jnp.where(over_rows(fits, a), a, jnp.nan)

    return jax.tree.map(whole, found), fits
