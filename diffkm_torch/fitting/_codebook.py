"""One step of a codebook of moving averages, by the points of all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.distances import Distance
from diffkm_torch.fitting._processes import largest, shared_by
from diffkm_torch.fitting._state import State
from diffkm_torch.fitting._step import as_algorithm, updated
from diffkm_torch.fitting._units import in_unit
from diffkm_torch.optimizers import EmaState, GradientTransformation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.no_grad()
def averaged(
    points: Tensor,
    weights: Tensor | None,
    centroids: Tensor,
    counts: Tensor,
    optimizer: GradientTransformation,
    distance: Distance,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Centroids [k, d] and counts [k] after a step, the same in all processes.

    What is not finite has no part in it, but a process without any other has: it adds
    zeros to what all exchange, for which all wait.
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
    state = State(c, EmaState(n), 0, torch.zeros_like(c))
    state = updated(algorithm, problem, state).state
    new_c, new_n = state.centroids, state.opt_state.counts
    # A sum of finite rows may overflow, and one of no rows is no step.
    moves = (some > 0) & new_c.isfinite().all(1) & new_n.isfinite()
    return torch.where(moves[:, None], new_c, c), torch.where(moves, new_n, n)
