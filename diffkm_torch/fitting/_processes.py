"""Sums over the processes of `torch.distributed`, the same in all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffkm_torch._hints import shown
from diffkm_torch.statistics import Statistics

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_group(group: Any) -> None:
    """Raises TypeError unless it is None or a group that this process is in."""
    if group is None or (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        return
    raise TypeError(
        "process_group must be None or a torch.distributed.ProcessGroup that this "
        f"process is in, got {shown(group)}"
    )


def shared_by(group: ProcessGroup | None) -> ProcessGroup | None:
    """The group, of all processes if None; None where a process is alone in it."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if group is None else group
    return None if dist.get_world_size(group) == 1 else group


def largest(values: Tensor, group: ProcessGroup | None) -> Tensor:
    """The largest of each value, [m], in any process."""
    if group is not None:
        dist.all_reduce(values, dist.ReduceOp.MAX, group)
    return values


def rows_of_least(
    rows: Tensor, numbers: Tensor, total: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """The k rows with the smallest of the sorted numbers [k] of all processes, [k, d].

    And the sum of the totals, []. Only these rows are exchanged, by sums with zeros.
    """
    if group is None:
        return rows, total
    k, process = len(rows), dist.get_rank(group)
    every = numbers.new_zeros(dist.get_world_size(group), k)
    every[process] = numbers
    dist.all_reduce(every, dist.ReduceOp.SUM, group)
    order = every.reshape(-1).argsort(stable=True)[:k]
    mine = order // k == process
    found = torch.where(mine[:, None], rows[order % k], 0)
    dist.all_reduce(found, dist.ReduceOp.SUM, group)
    dist.all_reduce(total, dist.ReduceOp.SUM, group)
    return found, total


def summed(stats: Statistics, group: ProcessGroup | None) -> Statistics:
    """The statistics of the points of all processes, exchanged as one tensor."""
    if group is None:
        return stats
    flat = torch.cat([a.reshape(-1) for a in stats])
    dist.all_reduce(flat, dist.ReduceOp.SUM, group)
    parts = flat.split([a.numel() for a in stats])
    return Statistics(*(p.reshape(a.shape) for p, a in zip(parts, stats, strict=True)))
