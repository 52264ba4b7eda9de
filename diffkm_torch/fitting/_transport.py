"""Entropic transport to clusters of bounded size: its prices, one for each cluster."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._numerics import quotient
from diffkm_torch.fitting._bounds import Bounds


class Transport(NamedTuple):
    """What is shared out: costs [n, k], weights [n], bounds of columns, temperature."""

    costs: Tensor
    weights: Tensor
    bounds: Bounds
    temperature: Tensor

    def logits(self, prices: Tensor) -> Tensor:
        """Scores, [n, k], −∞ for clusters that may have nothing."""
        scores = -quotient(self.costs + prices, self.temperature)
        return scores.masked_fill(self.bounds.high <= 0, -torch.inf)

    def plan(self, prices: Tensor) -> Tensor:
        """P, [n, k], whose rows sum to one."""
        return self.logits(prices).softmax(1)

    def sizes(self, prices: Tensor) -> Tensor:
        """Σ_i w_i P_ij, [k]."""
        return (self.weights[:, None] * self.plan(prices)).sum(0)

    def value(self, prices: Tensor) -> Tensor:
        """What the best prices maximize, []."""
        free = -self.temperature * self.logits(prices).logsumexp(1)
        held, bound = self.held(prices.detach())
        return (self.weights * free).sum() - (
            torch.where(held, bound, 0) * prices
        ).sum()

    def held(self, lean: Tensor) -> tuple[Tensor, Tensor]:
        """Which bounds are met exactly, [k], by the signs of prices, and the bounds."""
        low, high = self.bounds
        held = ((lean != 0) | (low == high)) & (high > 0)
        return held.detach(), torch.where(lean > 0, high, low)

    def excess(self, prices: Tensor) -> Tensor:
        """How far sizes are from where these prices are the best, relative, []."""
        (low, high), sizes = self.bounds, self.sizes(prices)
        at = torch.where(prices > 0, high, torch.where(prices < 0, low, sizes))
        wanted = at.clamp(low, high)
        apart = torch.where(high > 0, sizes - wanted, 0)
        return (apart / torch.where(wanted > 0, wanted, 1)).abs().max()

    def slope(self, prices: Tensor) -> Tensor:
        """Minus the derivative of sizes in prices, [k, k]: (diag − Pᵀ W P)/T."""
        plan = self.plan(prices)
        weighed = self.weights[:, None] * plan
        return (weighed.sum(0).diag() - weighed.T @ plan) / self.temperature


def prices_of(problem: Transport) -> tuple[Tensor, bool]:
    """The best prices, [k], without a graph, and whether sizes are met."""
    with torch.no_grad():
        cold, costs = problem.temperature, problem.costs
        goal, enough = (1e-13, 1e-10) if costs.dtype == torch.float64 else (2e-7, 4e-6)
        mean = (costs.mean(1) * problem.weights).sum() / problem.weights.sum()
        temperature, prices = torch.maximum(mean, cold), torch.zeros_like(costs[0])
        stalls, before = 0, torch.inf
        for _ in range(500):
            at = problem._replace(temperature=temperature)
            prices = _better(at, prices)
            excess = float(at.excess(prices))
            if temperature > cold:
                if excess < 0.01:
                    temperature = torch.maximum(temperature / 2, cold)
                continue
            stalls += excess > 0.5 * before
            before = excess
            limit = enough + _rounding(problem, prices)
            patience = 3 if excess <= enough else 20
            if excess <= goal or (excess <= limit and stalls > patience):
                break
        limit = enough + _rounding(problem, prices)
        return prices, float(problem.excess(prices)) <= limit


def _rounding(problem: Transport, prices: Tensor) -> float:
    """What of a size the rounding of its price may move, relative."""
    eps = torch.finfo(prices.dtype).eps
    return 4 * eps * float(prices.abs().max() / problem.temperature)


def _better(at: Transport, prices: Tensor) -> Tensor:
    """Newton's prices if they are much better, else the best on the way to them.

    By quarters: the value is concave, so that once it falls it has had its best. Or
    Sinkhorn's, if those are better still.
    """
    new = _newton(at, prices)
    part = float((at.costs.max() + at.temperature) / (new - prices).abs().max())
    if part < 1:
        new = prices + part * (new - prices)
    if at.excess(new) <= 0.5 * at.excess(prices):
        return new

    def value(prices: Tensor) -> float:
        return float(at.value(prices).nan_to_num(nan=-torch.inf))

    best, part = new, 0.25
    while part > 1e-12 and value(found := prices + part * (new - prices)) >= value(
        best
    ):
        best, part = found, part / 4
    others = _sinkhorn(at, prices)
    return others if value(others) > value(best) else best


def _newton(at: Transport, prices: Tensor) -> Tensor:
    """The prices that are best where sizes are linear in them, by trying bounds."""
    (low, high), sizes, slope = at.bounds, at.sizes(prices), at.slope(prices)
    outside = sizes - sizes.clamp(low, high)
    lean = torch.where(prices == 0, outside, prices)
    given = bool(((low == high) | (high <= 0)).all())
    new = prices
    for _ in range(2 * len(prices) + 1):
        held, bound = at.held(lean)
        right = torch.where(held, sizes - bound, -prices)
        matrix = regular(slope, held, pinned=given)
        change = torch.linalg.solve(matrix, right)
        new = torch.where(held, prices + change, 0)
        expected = sizes - slope @ (new - prices)
        away = expected - expected.clamp(low, high)
        kept = torch.where(new * lean > 0, lean, 0)
        leaning = torch.where(lean == 0, away, kept)
        same = (leaning.sign() == lean.sign()) | (low == high)
        if bool(same.all()):
            break
        lean = leaning
    return new


def regular(slope: Tensor, held: Tensor, *, pinned: bool) -> Tensor:
    """The slope with the identity in other rows, so that it has an inverse."""
    k, eps = len(slope), torch.finfo(slope.dtype).eps
    matrix = torch.where(held[:, None], slope, torch.eye(k, dtype=slope.dtype))
    scale = matrix.diagonal()
    matrix = matrix + 32 * eps * (scale + scale.mean()).diag()
    if pinned:
        both = held[:, None] & held
        matrix = matrix + torch.where(both, scale.sum() / k**2, 0)
    return matrix


def _sinkhorn(at: Transport, prices: Tensor) -> Tensor:
    """The best prices where the share that rows have left is held."""
    low, high = at.bounds
    tiny = torch.finfo(prices.dtype).tiny
    free = at.sizes(prices).clamp(min=tiny).log() + prices / at.temperature
    new = at.temperature * (free - free.clamp(low.log(), high.log()))
    return torch.where(high > 0, new, 0)


def differentiable(transport: Transport, prices: Tensor) -> Tensor:
    """The prices with their derivative, exact to the second order.

    That of two Newton steps whose matrix is held constant.
    """
    held, _ = transport.held(prices)
    with torch.no_grad():
        pinned = bool((held == (transport.bounds.high > 0)).all())
        matrix = regular(transport.slope(prices), held, pinned=pinned)
    start = prices
    for _ in range(2):
        _, bound = transport.held(start)
        missing = torch.where(held, bound - transport.sizes(prices), prices)
        move = torch.linalg.solve(matrix, missing)
        prices = prices - (move - move.detach())
    return prices
