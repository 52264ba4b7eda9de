"""K-means losses: the mirror of `diffkm_jax.losses`, by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffkm_torch._checks import as_scalar, check_block_size, check_callable
from diffkm_torch.distances import Distance, pairwise, squared_euclidean
from diffkm_torch.statistics import Statistics, masked, prepared, statistics

__all__ = ["assigned_loss", "kmeans_loss", "soft_kmeans_loss"]

Assignment = Callable[[Tensor], Tensor]


def kmeans_loss(
    points: Tensor,
    centroids: Tensor,
    *,
    weights: Tensor | None = None,
    distance: Distance = squared_euclidean,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Tensor:
    """Mirrors `diffkm_jax.kmeans_loss`: Σ_i w_i min_j distance(x_i, c_j), []."""
    options = {"weights": weights, "active": active, "block_size": block_size}
    return general_statistics(points, centroids, distance, None, **options).loss


def soft_kmeans_loss(
    points: Tensor,
    centroids: Tensor,
    *,
    temperature: float | Tensor,
    weights: Tensor | None = None,
    distance: Distance = squared_euclidean,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Tensor:
    """Mirrors `diffkm_jax.soft_kmeans_loss`: the free energy at a temperature, []."""
    if temperature is None:
        raise ValueError("temperature must be a number or a scalar array, got None")
    options = {"weights": weights, "active": active, "block_size": block_size}
    return general_statistics(points, centroids, distance, temperature, **options).loss


def assigned_loss(
    points: Tensor,
    centroids: Tensor,
    assignment: Assignment,
    *,
    temperature: float | Tensor = 1.0,
    weights: Tensor | None = None,
    distance: Distance = squared_euclidean,
    active: Tensor | None = None,
) -> Tensor:
    """Mirrors `diffkm_jax.assigned_loss`: Σ_ij w_i A_ij distance_ij, []."""
    x, c, w, active = prepared(points, centroids, weights, active)
    check_callable("assignment", assignment)
    costs = pairwise(x, c, distance=distance)
    temperature = as_scalar("temperature", temperature, costs.dtype)
    logits = masked(-costs / temperature, active)
    rows = assignment(logits)
    if rows.shape != logits.shape:
        shapes = f"{tuple(rows.shape)} for logits {tuple(logits.shape)}"
        raise ValueError(f"assignment must keep the shape of its logits, got {shapes}")
    return (w * (rows.to(costs.dtype) * costs).sum(1)).sum()


def general_statistics(
    points: Tensor,
    centroids: Tensor,
    distance: Distance,
    temperature: float | Tensor | None,
    *,
    weights: Tensor | None,
    active: Tensor | None,
    block_size: int | None,
) -> Statistics:
    """The statistics of any distance, but for the shifts of one not squared Euclidean.

    Those are left at zero: −½ times autograd's gradient in the centroids.
    """
    if distance is squared_euclidean:
        return statistics(
            points,
            centroids,
            weights=weights,
            temperature=temperature,
            active=active,
            block_size=block_size,
        )
    x, c, w, active = prepared(points, centroids, weights, active)
    check_callable("distance", distance)
    check_block_size(block_size)
    if temperature is not None:
        temperature = as_scalar("temperature", temperature, x.dtype)
    loss, counts = x.new_zeros(()), x.new_zeros(len(c))
    size = block_size or len(x)
    for rows, mass in zip(x.split(size), w.split(size), strict=True):
        costs = pairwise(rows, c, distance=distance)
        if temperature is None:
            labels = masked(-costs.detach(), active).argmax(1)
            loss = loss + (mass * distance(rows, c[labels])).sum()
            counts = counts.index_add(0, labels, mass)
        else:
            score = masked(-costs / temperature, active)
            loss = loss - temperature * (mass * score.logsumexp(1)).sum()
            counts = counts + (mass[:, None] * score.softmax(1)).sum(0)
    return Statistics(loss, counts, torch.zeros_like(c))
