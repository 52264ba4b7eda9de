"""The labels of least cost under bounds on the sizes of clusters, by exchanges.

Points move along a shortest path from one cluster to another, while that brings sizes
nearer their bounds or costs less; then nothing is better (Murota 2003).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def exchanged(costs: Tensor, counted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The labels [n] of least total cost, of costs [n, k]; starts at the nearest."""
    n, k = costs.shape
    labels = costs.argmin(1)
    for _ in range(2 * n + 100):
        sizes = torch.stack([((labels == j) & counted).sum() for j in range(k)])
        step = _best(_edges(costs, counted, labels), sizes, low, high)
        if step is None:
            break
        path, before = step, labels.clone()
        for at, to in pairwise(path):
            members = ((before == at) & counted).nonzero()[:, 0]
            gaps = costs[members, to] - costs[members, at]
            labels[members[gaps.argmin()]] = to
    return labels


def _edges(costs: Tensor, counted: Tensor, labels: Tensor) -> Tensor:
    """What the cheapest point of each cluster costs to move to each other, [k, k]."""
    k = costs.shape[1]
    edges = costs.new_full((k, k), torch.inf)
    for j in range(k):
        members = costs[(labels == j) & counted]
        if len(members):
            edges[j] = (members - members[:, j : j + 1]).amin(0)
        edges[j, j] = 0
    return edges


def _best(edges: Tensor, sizes: Tensor, low: Tensor, high: Tensor) -> list[int] | None:
    """The path along which points move next, or None if none is better."""
    k, eps = len(edges), torch.finfo(edges.dtype).eps
    length, rough = edges.clone(), torch.where(edges.isfinite(), edges.abs(), 0)
    hop = torch.arange(k).expand(k, k).clone()
    for m in range(k):
        through = length[:, m, None] + length[m]
        size = rough[:, m, None] + rough[m]
        shorter = through < length - 8 * eps * size
        shorter.fill_diagonal_(False)
        length = torch.where(shorter, through, length)
        rough = torch.where(shorter, size, rough)
        hop = torch.where(shorter, hop[:, m, None].expand(k, k), hop)
    leaves = (sizes > high).int() - (sizes <= low).int()
    comes = (sizes < low).int() - (sizes >= high).int()
    gains = leaves[:, None] + comes
    reached = length.isfinite()
    reached.fill_diagonal_(False)
    if not bool(reached.any()):
        return None
    most = gains[reached].max()
    candidates = torch.where(reached & (gains == most), length, torch.inf)
    source, target = divmod(int(candidates.argmin()), k)
    rounding = 8 * eps * rough[source, target]
    if most < 0 or (most == 0 and not candidates[source, target] < -rounding):
        return None
    path = [source]
    while path[-1] != target:
        path.append(int(hop[path[-1], target]))
    return path
