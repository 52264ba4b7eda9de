"""Leave-one-out REINFORCE with control variates of Stein's identity: by loops."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from diffkm_torch._checks import check_integer
from diffkm_torch._hints import shown
from diffkm_torch.assignments._straight_through import chosen
from diffkm_torch.estimators._attach import attach, value_and_gradient
from diffkm_torch.estimators._enumeration import probabilities
from diffkm_torch.estimators._estimator import Cost, Estimator
from diffkm_torch.estimators._score_function import score, weighted, wide

Scalar = float | Tensor


def rodeo(
    *, num_samples: int = 4, alpha: Scalar = 1.0, beta: Scalar = 1.0
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.rodeo`, by a loop over the rows drawn anew.

    The slopes of the cost are by autograd: `torch.func` cannot transform them.

    Example:
        >>> record, f = es.rodeo(num_samples=2), lambda row: row @ torch.arange(3.0)
        >>> def slope(seed):
        ...     logits = torch.zeros(3, requires_grad=True)
        ...     noise = record.draw(torch.Generator().manual_seed(seed), (3,))
        ...     record.expect(f, logits, noise).backward()
        ...     return logits.grad
        >>> torch.allclose(slope(0), slope(1), atol=1e-6)  # Its slope is all.
        True
    """
    check_integer("num_samples", num_samples, minimum=2)
    settings = {"alpha": alpha, "beta": beta}
    for name, value in settings.items():
        if not isinstance(value, Real | Tensor):
            raise TypeError(f"{name} must be real, got {shown(value)}")
        if isinstance(value, Tensor) and value.ndim:
            raise ValueError(
                f"{name} must be a scalar (rank 0), got shape {tuple(value.shape)}"
            )
    return Estimator("rodeo", _rodeo, settings, num_draws=num_samples, discrete=True)


def _rodeo(
    f: Cost, logits: Tensor, noise: Tensor, *, alpha: Scalar, beta: Scalar
) -> Tensor:
    draws = [chosen(logits, g) for g in noise]
    found = [value_and_gradient(f, row) for row in draws]
    p = probabilities(logits)
    kept = found[0][0].ndim
    shape = (*p.shape[:kept], -1, p.shape[-1])
    # Every problem as a matrix of its rows, [*batch, r, k].
    x = [row.to(p.dtype).reshape(shape) for row in draws]
    costs = [wide(cost) for cost, _ in found]
    slopes = [slope.to(p.dtype).reshape(shape) for _, slope in found]
    q = p.reshape(shape)
    num_rows = q.shape[-2]

    def surrogate(i: int, y: Tensor) -> Tensor:
        """The mean of the others' slopes, along y − p, [*batch]."""
        terms = [
            (slopes[j] * (y - q)).sum((-2, -1)) for j in range(len(draws)) if j != i
        ]
        return torch.stack(terms).mean(0)

    def stein(i: int, of: str) -> Tensor:
        """A h at draw i, or A [h (· − p)], over all that a row can be."""
        total = 0
        for row in range(num_rows):
            for category in range(q.shape[-1]):
                y = x[i].clone()
                y[..., row, :] = torch.eye(q.shape[-1], dtype=q.dtype)[category]
                chance = q[..., row, category]
                at_y, at_x = surrogate(i, y), surrogate(i, x[i])
                if of == "cost":
                    total = total + chance * (at_y - at_x)
                    continue
                moved = at_y[..., None, None] * (y - q)
                stayed = at_x[..., None, None] * (x[i] - q)
                total = total + chance[..., None, None] * (moved - stayed)
        return torch.as_tensor(total) / num_rows

    alpha, beta = (torch.as_tensor(a, dtype=p.dtype) for a in (alpha, beta))
    controlled = [cost + alpha * stein(i, "cost") for i, cost in enumerate(costs)]
    estimate = torch.zeros_like(p)
    for i, row in enumerate(draws):
        others = [c for j, c in enumerate(controlled) if j != i]
        signal = costs[i] - torch.stack(others).mean(0)
        control = stein(i, "score").reshape(p.shape)
        part = weighted(signal, score(logits, row)) + beta * control
        estimate = estimate + part / len(draws)
    mean = torch.stack(costs).mean(0).to(found[0][0].dtype)
    return attach(mean, logits, estimate.masked_fill(logits.isneginf(), 0))
