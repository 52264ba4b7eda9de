"""Sums of divergences in x/y over the last axis, without cancellation near x = y.

With s = (x − y)/(x + y) the logarithm of x/y is 2 (s + s³ R), R = 1/3 + s²/5 + …: what
the divergences take off it drops out before it is rounded, so that nothing cancels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sum_kullback_leibler(x: Tensor, y: Tensor) -> Tensor:
    """Σ x log(x/y) − x + y, over the last axis; y where x ≤ 0."""
    absent = x <= 0
    safe_x, safe_y = (torch.where(absent, 1, a) for a in (x, y))
    near, s, r = _series(safe_x, safe_y)
    far = safe_x * _log_quotient(safe_x, safe_y) - (safe_x - safe_y)
    # 2 (1 + s)(s + s³ R) − 2 s in units of (x + y)/2, of which x − y is 2 s.
    series = (safe_x - safe_y) * s * (1 + s * (1 + s) * r)
    present = torch.where(near, series, far)
    return torch.where(absent, y, present).sum(-1)


def sum_itakura_saito(x: Tensor, y: Tensor) -> Tensor:
    """Σ x/y − log(x/y) − 1, over the last axis."""
    near, s, r = _series(x, y)
    far = (x - y) / y - _log_quotient(x, y)
    # 2 s / (1 − s), which is x/y − 1, less 2 (s + s³ R).
    return torch.where(near, 2 * s**2 * (1 / (1 - s) - s * r), far).sum(-1)


def log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """The logarithm of x/y, and 0 where x ≤ 0."""
    absent = x <= 0
    x, y = (torch.where(absent, 1, a) for a in torch.broadcast_tensors(x, y))
    near, s, r = _series(x, y)
    return torch.where(near, 2 * (s + s**3 * r), _log_quotient(x, y))


@torch.no_grad()
def sums_of_steps(y: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Σ of both divergences of y + step from y, [] each, without a derivative.

    The step may be far below the rounding of y.
    """
    x, t = y + step, torch.where(step == 0, 0, step / y)
    s = t / (2 + t)
    near, r = s.abs() <= 0.25, _tail(s)
    log = _log_quotient(torch.where(x > 0, x, 1), y)
    far = torch.where(x > 0, x * log, 0) - step, t - _log_quotient(x, y)
    close = step * s * (1 + s * (1 + s) * r), s * (t - 2 * s**2 * r)
    leibler, saito = (
        torch.where(near, *terms).sum() for terms in zip(close, far, strict=True)
    )
    return leibler, saito


def _series(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where x is near y > 0, s and R; elsewhere s is 0."""
    near = (x - y).abs() <= 0.25 * x + 0.25 * y
    # In units of about y, whose square is in range.
    unit = torch.exp2(2.0 - torch.frexp(y.detach()).exponent.to(y.dtype))
    unit = unit.clamp(max=1 / torch.finfo(y.dtype).tiny)
    x, y = (torch.where(near, a * unit, 1) for a in (x, y))
    s = (x - y) / (x + y)
    return near, s, _tail(s)


def _tail(s: Tensor) -> Tensor:
    """R = 1/3 + s²/5 + s⁴/7 + …; for |s| ≤ 1/4 the rest is less than a rounding."""
    square, r = s * s, torch.zeros_like(s)
    for q in reversed(range(12 if s.dtype == torch.float64 else 5)):
        r = r * square + 1 / (2 * q + 3)
    return r


def _log_quotient(x: Tensor, y: Tensor) -> Tensor:
    """The logarithm of x/y to a rounding of 1, of any x and y."""
    # With x = m 2ᵉ: no large logarithms are subtracted, and no quotient overflows. Of
    # halves, because a derivative divides by 2ᵉ.
    (m_x, e_x), (m_y, e_y) = (torch.frexp(0.5 * a) for a in (x, y))
    return (e_x - e_y).to(x.dtype) * math.log(2) + (m_x.log() - m_y.log())
