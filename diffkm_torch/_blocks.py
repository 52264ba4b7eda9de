"""Sums over blocks of points, of which a processor's cache holds all there is to do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffkm_torch._problem import Problem


def block_for(problem: Problem, k: int, d: int) -> int:
    """Points in a block: as told, or a power of two by shape.

    Its scores and rows take 2 MB for each thread, or less, in float32. All points where
    an accelerator wants them, or torch.compile would write every block down.
    """
    if problem.block_size is not None:
        return problem.block_size
    if problem.points.device.type != "cpu" or torch.compiler.is_compiling():
        return len(problem.points)
    fitting = max(1, (torch.get_num_threads() << 19) // max(k, d, 1))
    return min(1 << 15, max(256, 1 << fitting.bit_length() - 1))


def over_points(
    f: Callable[..., tuple[Tensor, ...]], problem: Problem, c: Tensor, block: int
) -> tuple[Tensor, ...]:
    """Sums what f(x, w, c) makes of the points and weights of every block.

    Added in pairs, and so are the derivatives in c: one by one, they would lose ε with
    every block.
    """
    x, w = problem.points.split(block), problem.weights
    rows = list(zip(x, [None] * len(x) if w is None else w.split(block), strict=True))

    def total(rows: list, c: Tensor) -> tuple[Tensor, ...]:
        if len(rows) == 1:
            return f(*rows[0], c)
        middle = len(rows) // 2
        left, right = c.expand(2, *c.shape)
        halves = total(rows[:middle], left), total(rows[middle:], right)
        return tuple(a + b for a, b in zip(*halves, strict=True))

    return total(rows, c)
