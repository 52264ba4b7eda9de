"""K-means losses: the mirror of `diffkm_jax.losses`, by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffkm_torch._checks import as_problem, as_scalar, check_callable, check_given
from diffkm_torch._geometry import fill_rows, masked, prepare
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import quotient
from diffkm_torch.distances import Distance, pairwise, squared_euclidean
from diffkm_torch.statistics import loss_of

__all__ = ["assigned_loss", "kmeans_loss", "soft_kmeans_loss"]

Assignment = Callable[[Tensor], Tensor]


@hinted
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
    problem, centroids = as_problem(
        points,
        centroids,
        distance=distance,
        weights=weights,
        active=active,
        block_size=block_size,
    )
    return loss_of(problem, centroids)


@hinted
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
    check_given("temperature", temperature)
    problem, centroids = as_problem(
        points,
        centroids,
        distance=distance,
        weights=weights,
        active=active,
        temperature=temperature,
        block_size=block_size,
    )
    return loss_of(problem, centroids)


@hinted
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
    problem, centroids = as_problem(
        points, centroids, distance=distance, weights=weights, active=active
    )
    check_callable("assignment", assignment, 1)
    x, c, w, fill = prepare(problem, centroids, with_data=True)
    temperature = as_scalar("temperature", temperature, x.dtype)

    def costs_and_logits(x: Tensor) -> tuple[Tensor, Tensor]:
        costs = pairwise(x, c, distance=distance)
        limit = -costs.detach() / temperature.detach()
        # Where it is infinite, its derivative in the temperature would be 0 · ∞.
        logits = -quotient(costs.masked_fill(limit.isinf(), 0), temperature)
        return costs, masked(torch.where(limit.isinf(), limit, logits), active)

    if weights is not None:
        with torch.no_grad():
            # What a row costs is finite if some logit is, and none is NaN.
            _, logits = costs_and_logits(x)
        usable = logits.isfinite().any(1) & ~logits.isnan().any(1)
        x = fill_rows(x, w, torch.where(usable, 0.0, torch.inf), fill)
    costs, logits = costs_and_logits(x)
    rows = assignment(logits)
    if rows.shape != logits.shape:
        shapes = f"{tuple(rows.shape)} for logits {tuple(logits.shape)}"
        raise ValueError(f"assignment must keep the shape of its logits, got {shapes}")
    # Replaced before the product, whose derivatives would be 0 · ∞.
    unused = (rows == 0) | (w == 0)[:, None]
    costs = costs.masked_fill(unused & costs.isinf(), 0)
    return (w * (rows.to(costs.dtype) * costs).sum(1)).sum()
