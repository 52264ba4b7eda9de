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


def summed(stats: Statistics, group: ProcessGroup | None) -> Statistics:
    """The statistics of the points of all processes, exchanged as one tensor."""
    if group is None:
        return stats
    flat = torch.cat([a.reshape(-1) for a in stats])
    dist.all_reduce(flat, dist.ReduceOp.SUM, group)
    parts = flat.split([a.numel() for a in stats])
    return Statistics(*(p.reshape(a.shape) for p, a in zip(parts, stats, strict=True)))
