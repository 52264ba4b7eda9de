"""Estimators with control variates: what is subtracted has a known mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import diffkm_torch.assignments as maps
from diffkm_torch._checks import as_scalar, check_callable, check_floating
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._conditional import below_draw
from diffkm_torch.assignments._straight_through import chosen, perturbed
from diffkm_torch.estimators._attach import attach, value_and_gradient
from diffkm_torch.estimators._estimator import Cost, Estimator, setting
from diffkm_torch.estimators._score_function import score, weighted, wide

Scalar = float | Tensor


def rebar(*, tau: Scalar = 0.5, eta: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.rebar`: the relaxed cost as a control variate."""
    settings = {"tau": setting("tau", tau), "eta": setting("eta", eta)}
    return Estimator("rebar", _rebar, settings, num_draws=2)


def _rebar(
    f: Cost, logits: Tensor, noise: Tensor, *, tau: Scalar, eta: Scalar
) -> Tensor:
    drawn = chosen(logits, noise[0])

    def free(z: Tensor) -> Tensor:
        return f(maps.gumbel_softmax(z, noise[0], tau=tau))

    def given_the_draw(z: Tensor) -> Tensor:
        entries = below_draw(z, drawn, noise[1], differentiable=True)
        return f(maps.softmax(entries, tau=tau).to(z.dtype))

    eta = as_scalar("eta", eta, accumulation_dtype(logits, noise), zero=True)
    return _controlled(f(drawn), logits, drawn, free, given_the_draw, eta)


def _controlled(
    costs: Tensor,
    logits: Tensor,
    drawn: Tensor,
    free: Cost,
    given_the_draw: Cost,
    eta: Tensor,
) -> Tensor:
    """Costs with the estimate (f − eta c) (D − p) + eta (∂c free − ∂c given D)."""
    _, from_free = value_and_gradient(free, logits)
    control, from_given = value_and_gradient(given_the_draw, logits)
    signal = wide(costs)
    signal = signal - eta.to(signal.dtype) * control.to(signal.dtype)
    direction = score(logits, drawn)
    correction = eta.to(direction.dtype) * (from_free - from_given).to(direction.dtype)
    estimate = weighted(signal, direction) + correction
    return attach(costs, logits, estimate.masked_fill(logits.isneginf(), 0))


def relax(control: Callable[..., Tensor], params: Any) -> Estimator:
    """Mirrors `diffkm_jax.estimators.relax`: a control variate of one's own."""
    check_callable("control", control)
    for leaf in pytree.tree_leaves(params):
        check_floating("params", leaf)
    return Estimator("relax", partial(_relax, control), {"params": params}, num_draws=2)


def _relax(
    control: Callable[..., Tensor],
    f: Cost,
    logits: Tensor,
    noise: Tensor,
    *,
    params: Any,
) -> Tensor:
    drawn = chosen(logits, noise[0])
    costs = f(drawn)
    dtype = accumulation_dtype(logits, noise)
    params = pytree.tree_map(lambda a: a.to(dtype), params)

    def of(z: Tensor) -> Tensor:
        found = control(params, z)
        if found.shape != costs.shape:
            raise ValueError(
                "control must return costs of the shape of those of f "
                f"{tuple(costs.shape)}, got shape {tuple(found.shape)}"
            )
        return found

    def free(z: Tensor) -> Tensor:
        return of(perturbed(z, noise[0]))

    def given_the_draw(z: Tensor) -> Tensor:
        return of(maps.conditional_gumbel(z, drawn, noise[1], differentiable=True))

    one = torch.ones((), dtype=costs.dtype, device=costs.device)
    return _controlled(costs, logits, drawn, free, given_the_draw, one)
