"""How functions are called that are not called with their arguments as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from diffkm_torch import optimizers


def plain(module: ModuleType, function: Callable, **kwargs: Any) -> Any:
    return function(**kwargs)


def _conditional_gumbel(
    module: ModuleType, function: Callable, logits: Any, **kwargs: Any
) -> Any:
    return function(logits, module.hard(logits), **kwargs)


def estimate(
    module: ModuleType,
    function: Callable,
    logits: Any,
    target: Any,
    noise: Any,
    **settings: Any,
) -> Any:
    def cost(rows: Any) -> Any:
        costs = (rows - target[: len(rows)]) ** 3
        return costs.sum((-2, -1)) if rows.ndim == 3 else costs.sum(-1)

    return function(**settings).expect(cost, logits, noise)


def relax(module: ModuleType, function: Callable, params: Any, **kwargs: Any) -> Any:
    """The control variate is quadratic in the perturbed logits."""

    def made(**settings: Any) -> Any:
        return function(lambda w, z: (z**2 @ w).sum(-1), params, **settings)

    return estimate(module, made, **kwargs)


def _bernoulli(module: ModuleType, function: Callable, log_odds: Any) -> Any:
    cost, rows = function(lambda values: (values**2).sum((-2, -1)), log_odds)
    return cost(module.softmax(rows))


def _fit(module: ModuleType, function: Callable, **kwargs: Any) -> dict[str, Any]:
    result = function(**kwargs)._asdict()
    names = "centroids", "labels", "loss", "counts", "residual", "history"
    return {key: result[key] for key in names}


def _sized(inner: Callable, module: Any, function: Callable, **kwargs: Any) -> Any:
    """With sizes about equal; hard, without the weights, which divide points.

    Soft, at a temperature at which a fit comes to rest in 40 steps: only there has it a
    derivative.
    """
    size = len(kwargs["weights"]) // len(kwargs["centroids"])
    if "temperature" in kwargs:
        kwargs["temperature"] = kwargs["temperature"] / 4
    else:
        del kwargs["weights"]
    if "tol" in kwargs:
        kwargs["max_steps"] = 40
    return inner(module, function, **kwargs, min_size=size - 1, max_size=size + 1)


def _finite_scalar(
    module: ModuleType, function: Callable, points: Any
) -> tuple[Any, Any]:
    levels = (3, 4) * 8
    return tuple(function(points, levels=levels[: points.shape[-1]]))


def _lookup_free(
    module: ModuleType, function: Callable, points: Any, **kwargs: Any
) -> tuple:
    """Of undecided points on either side of zero, moved there without rounding."""
    return tuple(function((points - 1) / 8, **kwargs))


def _residual(
    module: ModuleType, function: Callable, active: Any, **kwargs: Any
) -> tuple:
    """With the same codes of both codebooks active."""
    return tuple(function(active=active[None][np.zeros(2, int)], **kwargs))


def _product(
    module: ModuleType, function: Callable, codebooks: Any, **kwargs: Any
) -> tuple:
    """Of two groups."""
    half = codebooks[..., : codebooks.shape[-1] // 2]
    return _residual(module, function, codebooks=half, **kwargs)


def _power(row: Any) -> Any:
    """A convex function, in both packages."""
    return (row**4).sum()


def _optimizer(
    module: ModuleType,
    function: Callable,
    points: Any,
    centroids: Any,
    **settings: Any,
) -> tuple:
    """Two updates."""
    optimizer = function(**settings)
    state = module.init(centroids, optimizer=optimizer)
    state, _ = module.update(points, state, optimizer=optimizer)
    state, stats = module.update(points, state, optimizer=optimizer)
    return state.centroids, *stats


def _update(
    module: ModuleType, function: Callable, points: Any, centroids: Any, **kwargs: Any
) -> tuple:
    optimizer = module.newton()
    if "min_count" in kwargs:
        optimizer = module.macqueen()
        kwargs["index"] = module.assign(points, centroids)
    state = module.init(centroids, optimizer=optimizer)
    state, stats = function(points, state, optimizer=optimizer, **kwargs)
    return state.centroids, *stats


def _reassign(
    module: ModuleType, function: Callable, points: Any, centroids: Any, **kwargs: Any
) -> tuple:
    optimizer = module.macqueen()
    state, _ = module.update(
        points, module.init(centroids, optimizer=optimizer), optimizer=optimizer
    )
    # Any rows: each is one of those that are first in the data.
    index = module.assign(points, centroids)
    state = function(points, state, index, ratio=0.9, **kwargs)
    return state.centroids, state.opt_state.counts


# How a function is called; the others with their arguments as they are, and factories
# of estimators by `estimate`.
CALLS = {
    **dict.fromkeys(("assign_bounded", "soft_assign_bounded"), partial(_sized, plain)),
    "assigned_loss": lambda m, f, **kwargs: f(assignment=m.softmax, **kwargs),
    "conditional_gumbel": _conditional_gumbel,
    "estimators.attach": plain,
    "estimators.bernoulli": _bernoulli,
    "estimators.over_rows": lambda _, f, costs, rows: f(costs, rows) * rows,
    "estimators.relax": relax,
    "finite_scalar_quantize": _finite_scalar,
    "fit": _fit,
    "fit_bounded": partial(_sized, _fit),
    "bregman": lambda _, f, x, y: f(_power)(x, y),
    "init": lambda _, f, **kwargs: f(**kwargs).centroids,
    "lookup_free_quantize": _lookup_free,
    "product_quantize": _product,
    "residual_quantize": _residual,
    "mahalanobis": lambda _, f, precision, x, y: f(precision)(x, y),
    "reassign": _reassign,
    "update": _update,
    **dict.fromkeys(optimizers.__all__, _optimizer),
}
