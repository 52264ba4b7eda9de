"""Loss, counts and shifts of clusters of bounded size, of costs in one [n, k] array."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_scalar
from diffkm_torch._expansion import given
from diffkm_torch._geometry import fill_rows, prepare_rows
from diffkm_torch._problem import Problem
from diffkm_torch.distances._form import Form
from diffkm_torch.fitting._bounds import Bounds
from diffkm_torch.fitting._exchange import exchanged
from diffkm_torch.fitting._transport import Transport, differentiable, prices_of
from diffkm_torch.statistics import Statistics


class Shares(NamedTuple):
    """The best shares at some centroids: labels [n], prices [k], whether they are."""

    labels: Tensor
    prices: Tensor
    usable: bool
    met: bool


class _Rows(NamedTuple):
    """Embedded points [n, d], weights [n], costs [n, k], embedded centroids [k, d]."""

    form: Form
    x: Tensor
    w: Tensor
    costs: Tensor
    c: Tensor


def _rows(problem: Problem, centroids: Tensor) -> _Rows:
    about = given(problem, centroids)
    assert about is not None, "the caller asks first"
    form, _, c, anchor = about
    x, w = prepare_rows(problem.points.to(c.dtype), problem.weights, anchor)

    def costs_of(x: Tensor) -> Tensor:
        x = form.embed(x)
        return form.cost(x[:, None], c[None], x[:, None] - c[None])

    if problem.weights is not None:
        with torch.no_grad():
            costs = costs_of(x)
            bad = torch.where(costs.isnan().any(1), torch.nan, costs.amin(1))
        x = fill_rows(x, w, bad, anchor)
    return _Rows(form, form.embed(x), w.expand(len(x)), costs_of(x), c)


def _transport(problem: Problem, rows: _Rows, bounds: Bounds) -> Transport:
    assert problem.temperature is not None, "the caller asks first"
    t = as_scalar("temperature", problem.temperature, rows.costs.dtype)
    least = rows.costs.detach().amin(1, keepdim=True)
    return Transport(rows.costs - least, rows.w, bounds, t)


def shared(problem: Problem, centroids: Tensor, bounds: Bounds) -> Shares:
    """The best shares at some centroids, without a graph."""
    with torch.no_grad():
        rows = _rows(problem, centroids)
        costs, counted = rows.costs, rows.w > 0
        none = costs.new_zeros(costs.shape[1])
        nearest = costs.nan_to_num(nan=0.0).argmin(1)
        least = costs.amin(1, keepdim=True)
        usable = bool(least.isfinite().all()) and not bool(costs.isnan().any())
        if not usable:
            return Shares(nearest, none, False, True)
        if problem.temperature is not None:
            transport = _transport(problem, rows, bounds)
            t = transport.temperature
            if not (bool(t > 0) and bool(t.isfinite())):
                return Shares(nearest, none, False, True)
            prices, met = prices_of(transport)
            return Shares(transport.logits(prices).argmax(1), prices, True, met)
        excess, k = costs - least, costs.shape[1]
        # More than any exchange of finite costs, so that few are infinite.
        far = 4 * k * excess[excess.isfinite()].max() + 1
        excess = torch.where(excess.isinf(), far, excess)
        labels = exchanged(excess, counted, bounds.low, bounds.high)
        return Shares(torch.where(counted, labels, nearest), none, True, True)


def statistics_at(
    problem: Problem, centroids: Tensor, bounds: Bounds, shares: Shares
) -> Statistics:
    """Loss, counts and shifts for the best shares at these centroids, by autograd."""
    rows = _rows(problem, centroids)
    form, x, w, costs, c = rows
    if not shares.usable:
        nan = costs.new_full((), torch.nan)
        return Statistics(nan, nan.expand(len(c)), nan.expand(c.shape))
    if problem.temperature is None:
        plan = torch.nn.functional.one_hot(shares.labels, len(c)).to(costs.dtype)
        own = c[shares.labels]
        loss = (w * form.cost(x, own, x - own)).sum()
    else:
        transport = _transport(problem, rows, bounds)
        prices = differentiable(transport, shares.prices)
        plan = transport.plan(prices)
        loss = transport.value(prices) + (w * costs.detach().amin(1)).sum()
    share = w[:, None] * plan
    shifts = (share[:, :, None] * (x[:, None] - c[None])).sum(0)
    return Statistics(loss, share.sum(0), shifts)


def plan_at(
    problem: Problem, centroids: Tensor, bounds: Bounds, shares: Shares
) -> Tensor:
    """The plan, [n, k]; NaN where sizes are missed."""
    transport = _transport(problem, _rows(problem, centroids), bounds)
    plan = transport.plan(differentiable(transport, shares.prices))
    return plan if shares.usable and shares.met else plan * torch.nan
