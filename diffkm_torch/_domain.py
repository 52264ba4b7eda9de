"""Whether points and centroids are where a distance of this library is defined."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._expansion import given
from diffkm_torch._problem import Problem


@torch.no_grad()
def out_of_domain(problem: Problem, start: Tensor, end: Tensor, labels: Tensor) -> bool:
    """Whether a point of weight is not, or an active centroid at either end.

    Or whether the distance of a point to its centroid is negative.
    """
    weights, active, about = problem.weights, problem.active, given(problem, end)
    if about is None:
        return False
    form, acc = about.form, about.rows.dtype
    x, counted = problem.points.to(acc), None if weights is None else weights > 0
    found = [
        (form.outside(x), counted),
        (form.is_negative(x, about.rows, labels), counted),
        *((form.outside(c.to(acc)), active) for c in (start, end)),
    ]
    return any(
        bool((rows if on is None else rows & on).any())
        for rows, on in found
        if rows is not None
    )
