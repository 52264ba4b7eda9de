"""For which points and centroids a distance is defined: as `diffkm_jax.distances`."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._problem import Problem
from diffkm_torch.distances import cosine, itakura_saito, kl_divergence


def out_of_domain(problem: Problem, *centroids: Tensor) -> bool:
    """Whether a point of positive weight, or an active centroid of any set, is."""
    if problem.distance not in (cosine, kl_divergence, itakura_saito):
        return False
    acc = accumulation_dtype(problem.points, problem.weights, *centroids)
    points, found = problem.points.to(acc), False
    if problem.weights is not None:
        points = points[problem.weights > 0]
    for c in centroids:
        c = c.to(acc)
        c = c if problem.active is None else c[problem.active]
        found |= _outside(problem.distance, points, c)
    return found


def _outside(distance: object, x: Tensor, c: Tensor) -> bool:
    if distance is cosine:
        tiny = torch.finfo(x.dtype).tiny  # As small, a row is zero to `cosine`.
        return any(bool((a.abs() < tiny).all(1).any()) for a in (x, c))
    least = x < 0 if distance is kl_divergence else x <= 0
    return bool(least.any() | (c <= 0).any())
