"""Square roots and norms that are safe at zero, with their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor


def quotient(x: Tensor, t: Tensor) -> Tensor:
    """The quotient x / t, t > 0, with a derivative in t summed before it is large.

    In units of a small t the divisor is 1, and what autograd makes of it too.
    """
    unit = t.detach().clamp(max=1)
    return (x / unit) / (t / unit)


def per_count(sums: Tensor, counts: Tensor) -> Tensor:
    """sums_j / counts_j, [k, d]; zero for clusters without weight."""
    counts = counts[:, None]
    positive = counts > 0
    return torch.where(positive, sums / torch.where(positive, counts, 1), 0)


def safe_sqrt(x: Tensor) -> Tensor:
    """√max(x, 0), with derivative 0 where x is not positive; a NaN stays one."""
    positive = x > 0
    root = torch.where(positive, x, 1).sqrt()
    return torch.where(positive, root, x.detach().clamp(min=0))


def polar(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x as a product of two, [..., 1], and its direction, [..., d].

    The first is about the largest entry, in whose units squares neither overflow nor
    underflow. Norm, direction and their gradients are zero at zero.
    """
    tiny = torch.finfo(x.dtype).tiny
    # Of a vector without entries, too.
    entries = torch.nn.functional.pad(x.detach().abs(), (0, 1))
    scale = entries.amax(-1, keepdim=True)
    zero = scale < tiny
    scale = scale.clamp(max=0.25 / tiny)
    x = torch.where(zero, 0, x / torch.where(zero, 1, scale))
    length = torch.where(zero, 1, (x * x).sum(-1, keepdim=True)).sqrt()
    return torch.where(zero, 0, scale), length, x / length


def log_sum(logs: Tensor, axis: int) -> Tensor:
    """The logarithm of a sum of exponentials, −∞ with derivative zero of none."""
    largest = logs.detach().amax(axis, keepdim=True)
    nothing = largest.isneginf()
    largest = largest.masked_fill(nothing, 0)
    total = (logs - largest).exp().sum(axis, keepdim=True)
    found = largest + total.masked_fill(nothing, 1).log()
    return found.masked_fill(nothing, -torch.inf).squeeze(axis)
