"""For which points and centroids a distance of this library is defined."""

from __future__ import annotations

from torch import Tensor

from diffkm_torch._problem import Problem
from diffkm_torch.distances._forms import form_of


def out_of_domain(problem: Problem, *centroids: Tensor) -> bool:
    """Whether a point of positive weight, or an active centroid of any set, is."""
    form, weights, active = form_of(problem.distance), problem.weights, problem.active
    if form is None:
        return False
    acc = problem.dtype(*centroids)
    points = problem.points if weights is None else problem.points[weights > 0]
    rows = [points, *(c if active is None else c[active] for c in centroids)]
    return any(bool(form.outside(a.detach().to(acc)).any()) for a in rows)
