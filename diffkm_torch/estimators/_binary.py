"""Binary variables: Bernoulli log-odds, and estimators by antithetic draws of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch._checks import as_logits, check_callable, check_integer
from diffkm_torch.assignments._straight_through import chosen
from diffkm_torch.estimators._attach import attach
from diffkm_torch.estimators._enumeration import probabilities
from diffkm_torch.estimators._estimator import Cost, Estimator
from diffkm_torch.estimators._score_function import score, weighted, wide


def bernoulli(f: Callable[[Tensor], Tensor], log_odds: Tensor) -> tuple[Cost, Tensor]:
    """Mirrors `diffkm_jax.estimators.bernoulli`: rows of two clusters, one and zero."""
    check_callable("f", f)
    log_odds = as_logits(log_odds, "log_odds")
    logits = torch.stack([log_odds, torch.zeros_like(log_odds)], -1)
    return partial(_of_ones, f), logits


def _of_ones(f: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return f(rows[..., 0])


def arm() -> Estimator:
    """Mirrors `diffkm_jax.estimators.arm`: weighed by the noise, for k = 2."""
    return Estimator("arm", _arm, {})


def _arm(f: Cost, logits: Tensor, noise: Tensor) -> Tensor:
    _binary("arm", logits)
    draws = chosen(logits, noise[0]), chosen(logits, noise[0].flip(-1))
    apart = noise[0] - noise[0].flip(-1)
    # Equal ones that are infinite would make a NaN.
    apart = torch.where(noise[0] == noise[0].flip(-1), 0, apart)
    return _of_pair(f, logits, draws, torch.sigmoid(apart) - 0.5)


def disarm() -> Estimator:
    """Mirrors `diffkm_jax.estimators.disarm`: two antithetic draws, for k = 2."""
    return Estimator("disarm", _disarm, {})


def _disarm(f: Cost, logits: Tensor, noise: Tensor) -> Tensor:
    p = _binary("disarm", logits)
    draws = chosen(logits, noise[0]), chosen(logits, noise[0].flip(-1))
    larger = (maps.hard(p) * p).sum(-1, keepdim=True)
    return _of_pair(f, logits, draws, 0.5 * larger * (draws[0] - draws[1]).to(p.dtype))


def arms(*, num_samples: int = 4) -> Estimator:
    """Mirrors `diffkm_jax.estimators.arms`: a Dirichlet copula, for k = 2.

    Example:
        >>> def slopes(record):  # Of a thousand problems alike.
        ...     logits = torch.zeros(1000, 2, requires_grad=True)
        ...     noise = record.draw(torch.Generator().manual_seed(0), logits.shape)
        ...     record.expect(lambda rows: rows[:, 0], logits, noise).sum().backward()
        ...     return logits.grad[:, 0]
        >>> arms, rloo = es.arms(num_samples=4), es.rloo(num_samples=4)
        >>> bool(slopes(arms).var() < 0.5 * slopes(rloo).var())
        True
    """
    check_integer("num_samples", num_samples, minimum=2)
    return Estimator("arms", _arms, {}, num_draws=num_samples)


def _arms(f: Cost, logits: Tensor, noise: Tensor) -> Tensor:
    p = _binary("arms", logits)
    n, first = len(noise), p[..., 0]
    large = torch.finfo(noise.dtype).max / 4
    shares = torch.softmax(-noise[..., 0].clamp(-large, large).to(p.dtype), 0)
    is_rare = first <= p[..., 1]
    rare = torch.where(is_rare, first, p[..., 1])
    drawn_rare = (1 - shares) ** (n - 1) < rare
    is_first = drawn_rare == is_rare
    draws = torch.stack([is_first, ~is_first], -1).to(logits.dtype)
    # P(both rare)/P(rare)², the covariance over the variance of one.
    root = rare ** (1 / (n - 1))
    both = (2 * root - 1).clamp_min(0) ** (n - 1)
    possible = rare > 0
    safe = torch.where(possible, rare, 0.5)
    covariance = torch.where(possible, both - rare**2, -(rare**2))
    correction = 1 / (1 - covariance / (safe * (1 - safe)))
    found = [f(row) for row in draws]
    costs = torch.stack([wide(cost) for cost in found])
    mean = costs.mean(0)
    signal = (costs - mean) / (n - 1)
    scores = torch.stack([score(logits, row) for row in draws])
    estimate = weighted(signal, scores).sum(0) * correction[..., None]
    estimate = estimate.masked_fill(logits.isneginf(), 0)
    return attach(mean.to(found[0].dtype), logits, estimate)


def _binary(name: str, logits: Tensor) -> Tensor:
    """The probabilities, [..., 2]."""
    if logits.shape[-1] != 2:
        raise ValueError(
            f"logits must be [..., 2] for {name}, got shape {tuple(logits.shape)}: "
            "those of Bernoulli variables are made by bernoulli(f, log_odds)"
        )
    return probabilities(logits)


def _of_pair(
    f: Cost, logits: Tensor, draws: tuple[Tensor, Tensor], direction: Tensor
) -> Tensor:
    """The mean cost of two draws, with the gradient (f(D) − f(D')) direction."""
    found = f(draws[0])
    costs, others = wide(found), wide(f(draws[1]))
    direction = direction.masked_fill(logits.isneginf(), 0)
    gradient = weighted(costs - others, direction)
    return attach((0.5 * (costs + others)).to(found.dtype), logits, gradient)
