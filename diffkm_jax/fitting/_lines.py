"""What a fit says of itself in five lines, and what to look at next."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffkm_jax._printed import has_rank, known, lines_of, number, shape, span

# More sizes than these are told by the least and the largest.
FEW = 6


def lines_of_fit(result: Any, again: str) -> str:
    """The lines of a `FitResult` or a `StreamResult`; `again` is the call to go on."""
    return lines_of(result, _rows(result, again))


def _rows(result: Any, again: str) -> list[tuple[str, str]] | None:
    """The rows; None of what is traced, of several fits, or no numbers at all."""
    t, labels = getattr(result, "temperature", None), getattr(result, "labels", None)
    found = known(result.status, result.num_steps, result.loss, result.residual)
    rest = known(result.counts, *(() if t is None else (t,)))
    if found is None or rest is None or not rest[0].size:
        return None
    if any(a.ndim for a in [*found, *rest[1:]]) or not np.isfinite(found[0]):
        return None
    is_one = has_rank(result.centroids, 2) and has_rank(result.history, 1)
    is_one &= rest[0].ndim == 1 and (labels is None or has_rank(labels, 1))
    if not is_one:
        return None
    _, steps, loss, _ = found
    at = f" at temperature {number(rest[1])}" if rest[1:] else ""
    return [
        (type(result).__name__, str(result.flags)),
        ("steps", number(steps)),
        ("loss", number(loss) + at),
        ("sizes", _sizes(rest[0])),
        ("look at", _look_at(result, {*str(result.flags).split("|")}, again)),
    ]


def _sizes(counts: np.ndarray) -> str:
    """How much weight clusters have, and how many have none."""
    some = counts[counts != 0]
    if not some.size:
        return f"{counts.size} clusters without points"
    if 1 < some.size <= FEW:
        first, last = ", ".join(number(a, 4) for a in some[:-1]), number(some[-1], 4)
        sizes = f"{first} and {last}"
    else:
        sizes = span(some)
    missing = counts.size - some.size
    without = f", {missing} without points" if missing else ""
    return f"{some.size} cluster{'s' * (some.size != 1)} of {sizes}{without}"


def _look_at(result: Any, flags: set[str], again: str) -> str:
    """What helps most, of the flags that are on: what others may come of is first."""
    advice = {
        "DOMAIN": "points and centroids, for rows outside the domain of the distance",
        "NON_FINITE": _not_finite(result),
        "INTERRUPTED": f"state, to go on: {again}",
        "EMPTY_CLUSTER": 'counts; another start, or a policy as empty="farthest"',
        "NOT_AT_REST": f"residual; to go on, {again}, or a smaller tol",
        "MAX_STEPS": f"history; to go on, {again}",
        "NO_IMPROVEMENT": "history; a larger patience goes on for longer",
        "LINEAR_SOLVE": "certificate(points, result.centroids, ...) before a gradient",
    }
    for name, text in advice.items():
        if name in flags:
            return text
    parts = [f"centroids {shape(result.centroids)}"]
    if hasattr(result, "labels"):
        parts.append(f"labels {shape(result.labels)}")
    return ", ".join([*parts, "history"])


def _not_finite(result: Any) -> str:
    """Where the first number is that is not finite, as far as a result knows it."""
    t = getattr(result, "temperature", None)
    at = None if t is None else known(t)
    if at and not at[0] > 0:
        return f"temperature, which must be positive and was {number(at[0])}"
    [history] = known(result.history) or [np.zeros(0)]
    bad = np.flatnonzero(~np.isfinite(history))
    data = "points, weights" if hasattr(result, "labels") else "batches"
    if not bad.size:
        return f"{data} and optimizer: a step was not finite, where losses were"
    first = bad[0]
    loss = f"history[{first}] is {history[first]}"
    if first:
        return f"{data} and optimizer: {loss}, the first not finite"
    return f"{data} and the start: {loss}"


def lines_of_state(state: Any) -> str:
    """The lines of a `State`."""
    return lines_of(state, _rows_of_state(state))


def _rows_of_state(state: Any) -> list[tuple[str, str]] | None:
    remainder = state.remainder
    found = known(state.step, state.centroids, 0.0 if remainder is None else remainder)
    if found is None or found[0].ndim or found[1].ndim != 2 or not found[1].size:
        return None
    step, centroids, lost = found
    leaves = len(jax.tree.leaves(state.opt_state))
    arrays = f"{leaves} array{'s' * (leaves != 1)}" if leaves else "no state"
    return [
        ("State", f"at step {number(step)}"),
        ("centroids", f"{shape(state.centroids)}, from {span(centroids)}"),
        ("remainder", f"of rounding, up to {number(np.max(np.abs(lost)), 2)}"),
        ("optimizer", f"{arrays} of its own"),
        ("look at", "centroids; fit(points, state, ...) goes on from it"),
    ]
