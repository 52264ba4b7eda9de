"""One step of a codebook of moving averages, by the points of all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffkm_torch._checks import as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.distances import Distance
from diffkm_torch.fitting._processes import largest, rows_of_least, shared_by
from diffkm_torch.fitting._reassign import Rule, reassigned, retracted_where_set
from diffkm_torch.fitting._state import State
from diffkm_torch.fitting._step import as_algorithm, updated
from diffkm_torch.fitting._units import in_unit
from diffkm_torch.optimizers import EmaState, GradientTransformation
from diffkm_torch.statistics import statistics_by

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.no_grad()
def averaged(
    points: Tensor,
    weights: Tensor | None,
    centroids: Tensor,
    counts: Tensor,
    *,
    optimizer: GradientTransformation,
    distance: Distance,
    process_group: ProcessGroup | None,
    labels: Tensor | None = None,
    min_count: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Centroids [k, d] and counts [k] after a step, the same in all processes.

    It is of points with the labels, [n], or of the nearest. What is not finite has no
    part in it, but a process without any other has: it adds zeros to what all exchange,
    for which all wait. Codes with a count below `min_count` are then set anew.
    """
    group = shared_by(process_group)
    acc = accumulation_dtype(centroids)
    c, n = centroids.to(acc), counts.to(acc)
    x, w = points, points.new_ones(len(points)) if weights is None else weights
    usable = x.isfinite().all(1) & w.isfinite()
    x, w = torch.where(usable[:, None], x, 0), torch.where(usable, w, 0)
    algorithm, problem, _ = as_algorithm(
        x,
        c,
        optimizer=optimizer,
        empty="keep",
        temperature=None,
        weights=w,
        distance=distance,
    )
    own = w.to(problem.dtype(c)).max()
    heaviest, some = largest(torch.stack([own, usable.any().to(own.dtype)]), group)
    problem = in_unit(problem, c, heaviest)
    algorithm = algorithm._replace(group=group)
    stats = None if labels is None else statistics_by(problem, c, labels)
    state = State(c, EmaState(n), 0, torch.zeros_like(c))
    found = updated(algorithm, problem, state, stats)
    new_c, new_n = found.state.centroids, found.state.opt_state.counts
    # A sum of finite rows may overflow, and one of no rows is no step.
    moves = (some > 0) & new_c.isfinite().all(1) & new_n.isfinite()
    new_c, new_n = torch.where(moves[:, None], new_c, c), torch.where(moves, new_n, n)
    if min_count is None:
        return new_c, new_n
    fits = x.to(centroids.dtype).isfinite().all(1)
    usable = (w > 0) & fits & found.finite
    rows, number = random_rows(x.to(acc), usable, len(c), group)
    least = as_scalar("min_count", min_count, acc, zero=True).to(c.device)
    old = State(new_c, EmaState(new_n), 0, torch.zeros_like(c))
    rule = Rule(min_count=least)
    new = reassigned(optimizer, old, rows, rule, None, number // 2, number)
    new = retracted_where_set(problem, new, old)
    return new.centroids, new.opt_state.counts


def random_rows(
    x: Tensor, usable: Tensor, k: int, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Random usable rows of all processes, [k, d], and how many usable ones there are.

    Where these are fewer than k, they are the first, and the others are zeros.
    """
    noise = torch.rand(len(x), device=x.device)
    # Those with the smallest numbers: of every process at most k.
    least, index = torch.where(usable, noise, 2.0).sort(stable=True)
    missing = max(0, k - len(x))
    least = pad(least[:k], (0, missing), value=2.0)
    rows = torch.where(usable[:, None], x, 0)[index[:k]]
    rows = pad(rows, (0, 0, 0, missing))
    return rows_of_least(rows, least, usable.sum(), group)
