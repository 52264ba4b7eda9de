"""What a fit says of itself in five lines, and what to look at next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkm_torch._printed import has_rank, known, lines_of, number, shape, span

# More sizes than these are told by the least and the largest.
FEW = 6
AGAIN = "fit(points, result.state, ...)"


def lines_of_fit(result: Any) -> str:
    """The lines of a `FitResult`."""
    return lines_of(result, _rows(result))


def _rows(result: Any) -> list[tuple[str, str]] | None:
    """The rows; None of what is mapped over, of several fits, or no numbers at all."""
    t, counts = result.temperature, result.counts
    found = known(result.status, result.num_steps, result.loss, result.residual)
    rest = known(counts, *(() if t is None else (t,)))
    if found is None or rest is None or not rest[0].numel():
        return None
    if any(a.ndim for a in [*found, *rest[1:]]) or not found[0].isfinite():
        return None
    is_one = has_rank(result.centroids, 2) and has_rank(counts, 1)
    if not (is_one and has_rank(result.labels, 1) and has_rank(result.history, 1)):
        return None
    _, steps, loss, _ = found
    at = f" at temperature {number(rest[1])}" if rest[1:] else ""
    return [
        ("FitResult", str(result.flags)),
        ("steps", number(steps)),
        ("loss", number(loss) + at),
        ("sizes", _sizes(rest[0])),
        ("look at", _look_at(result, {*str(result.flags).split("|")})),
    ]


def _sizes(counts: Tensor) -> str:
    """How much weight clusters have, and how many have none."""
    some = counts[counts != 0]
    if not len(some):
        return f"{len(counts)} clusters without points"
    if 1 < len(some) <= FEW:
        first, last = ", ".join(number(a, 4) for a in some[:-1]), number(some[-1], 4)
        sizes = f"{first} and {last}"
    else:
        sizes = span(some)
    missing = len(counts) - len(some)
    without = f", {missing} without points" if missing else ""
    return f"{len(some)} cluster{'s' * (len(some) != 1)} of {sizes}{without}"


def _look_at(result: Any, flags: set[str]) -> str:
    """What helps most, of the flags that are on: what others may come of is first."""
    advice = {
        "DOMAIN": "points and centroids, for rows outside the domain of the distance",
        "NON_FINITE": _not_finite(result),
        "EMPTY_CLUSTER": 'counts; another start, or a policy as empty="farthest"',
        "NOT_AT_REST": f"residual; to go on, {AGAIN}, or a smaller tol",
        "MAX_STEPS": f"history; to go on, {AGAIN}",
        "LINEAR_SOLVE": "the Hessian before a gradient: singular, or not positive",
    }
    for name, text in advice.items():
        if name in flags:
            return text
    centroids, labels = shape(result.centroids), shape(result.labels)
    return f"centroids {centroids}, labels {labels}, history"


def _not_finite(result: Any) -> str:
    """Where the first number is that is not finite, as far as a result knows it."""
    t = result.temperature
    if t is not None and not (at := float(t)) > 0:
        return f"temperature, which must be positive and was {number(at)}"
    [history] = known(result.history) or [torch.zeros(0)]
    bad = (~history.isfinite()).nonzero().flatten().tolist()
    if not bad:
        return "points, weights and optimizer: a step was not finite, where losses were"
    loss = f"history[{bad[0]}] is {float(history[bad[0]])}"
    if bad[0]:
        return f"points, weights and optimizer: {loss}, the first not finite"
    return f"points, weights and the start: {loss}"


def lines_of_state(state: Any) -> str:
    """The lines of a `State`."""
    return lines_of(state, _rows_of_state(state))


def _rows_of_state(state: Any) -> list[tuple[str, str]] | None:
    remainder = state.remainder
    found = known(state.step, state.centroids, 0.0 if remainder is None else remainder)
    if found is None or found[0].ndim or found[1].ndim != 2 or not found[1].numel():
        return None
    step, centroids, lost = found
    leaves = _num_tensors(state.opt_state)
    tensors = f"{leaves} tensor{'s' * (leaves != 1)}" if leaves else "no state"
    return [
        ("State", f"at step {number(step)}"),
        ("centroids", f"{shape(state.centroids)}, from {span(centroids)}"),
        ("remainder", f"of rounding, up to {number(lost.abs().max(), 2)}"),
        ("optimizer", f"{tensors} of its own"),
        ("look at", "centroids; fit(points, state, ...) goes on from it"),
    ]


def _num_tensors(tree: Any) -> int:
    if isinstance(tree, tuple | list):
        return sum(map(_num_tensors, tree))
    return int(isinstance(tree, Tensor))
