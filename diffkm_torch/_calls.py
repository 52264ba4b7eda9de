"""How the functions of both packages are called to be compared: tables.

Arguments are found by the names of parameters, so that one that is new is given, or
raises, and cannot be forgotten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from operator import attrgetter
from types import ModuleType
from typing import Any

import numpy as np

import diffkm_jax
import diffkm_torch
from diffkm_torch import optimizers

# What is compared beside the defaults: parameters that are not arrays, and those whose
# default is another formula.
VARIANTS: dict[str, tuple[Any, ...]] = {
    "derivative": ("one_step", "unrolled", "none"),
    "distribution": ("normal",),
    "differentiable": (False, True),
    "empty": ("farthest",),
    "gap": (None,),
    "hard": (True,),
    "method": ("rotation_trick",),
    "scaled": (True,),
    "temperature": (0.3,),
}
SCALARS = {
    "alpha": 1.6,
    "baseline": 0.3,
    "beta": 0.4,
    "eta": 0.8,
    "gap": 1.5,
    "scale": 0.8,
    "strength": 1.2,
    "tau": 0.7,
    "tau_backward": 0.4,
    "temperature": 0.3,
    "tol": 0.0,
}
# Parameters that are no arrays and stay at their default, or that `CALLS` fills in.
NO_ARRAYS = {
    *VARIANTS,
    "assignment",
    "axis_name",
    "block_size",
    "column_weights",
    "control",
    "decay",
    "distance",
    "f",
    "max_configurations",
    "max_size",
    "max_steps",
    "min_size",
    "num_iters",
    "num_samples",
    "one_hot",
    "index",
    "optimizer",
    "phi",
    "ratio",
    "state",
}
# Noise that is not one draw of Gumbel for every logit.
NOISE = {
    "gumbel_rao": "draws",
    "nsvq": "normal",
    "perturbed_argmax": "draws",
    "reinmax_cv": "draws",
    "reinmax_rao": "draws",
}
# Estimators of two categories.
BINARY = "estimators.arm", "estimators.arms", "estimators.disarm"
# Arrays beside those that the parameters name.
BESIDE = {
    "bregman": ("x", "y"),
    "mahalanobis": ("x", "y"),
    "reassign": ("points", "centroids"),
    "update": ("points", "centroids"),
    **dict.fromkeys(optimizers.__all__, ("points", "centroids")),
}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(attrgetter(name)(diffkm_jax)).parameters)


def variants(name: str) -> Iterator[dict[str, Any]]:
    """The options of every call: none, unless one is required, and one at a time."""
    varied = {key: p for key, p in _parameters(name).items() if key in VARIANTS}
    if all(p.default is not p.empty for p in varied.values()):
        yield {}
    for key in varied:
        for value in VARIANTS[key]:
            if (name, value) == ("fit_bounded", "unrolled"):
                continue  # It has no such derivative.
            yield {key: value}


def arrays() -> dict[str, np.ndarray]:
    """Arrays by the name of their parameter: 40 of the embedded digits, 16 features."""
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        digits = np.load(file)["points"][:40].astype(np.float64)
    rng = np.random.default_rng(0)
    points = digits.reshape(40, 4, 2, 4, 2).mean((2, 4)).reshape(40, 16) / 16
    # Positive, for the divergences, and off the grid, on which there are ties.
    points = points + rng.uniform(0.05, 0.1, points.shape)
    centroids = points[:5] + 0.01
    root = rng.normal(size=(16, 16)) / 4
    logits = -((points[5:11, None] - centroids) ** 2).sum(2).reshape(2, 3, 5) / 0.3
    return {
        **{name: np.asarray(value) for name, value in SCALARS.items()},
        "points": points,
        "centroids": centroids,
        "weights": rng.uniform(0.5, 1.5, 40),
        "active": np.array([True, True, False, True, True]),
        "nearest": points[::-1].copy(),
        "x": points[:6],
        "y": points[6:12],
        "precision": root @ root.T,
        "logits": logits,
        "log_odds": logits,
        "params": rng.normal(size=5),
        "rows": logits,
        "costs": rng.normal(size=2),
        "gradient": rng.normal(size=logits.shape),
        "target": rng.normal(size=logits.shape),
        "targets": np.exp(logits) / np.exp(logits).sum(-1, keepdims=True),
        "gumbel": (gumbel := rng.gumbel(size=(12, *logits.shape))),
        "noise": gumbel[0],
        "draws": gumbel[:4],
        "normal": rng.normal(size=points.shape),
    }


def arguments(name: str, variant: dict[str, Any], data: dict) -> dict[str, Any]:
    """The arrays of a call, from `data` by the names of the parameters."""
    found = {key: data[key] for key in BESIDE.get(name, ())}
    for key, parameter in _parameters(name).items():
        if key == "noise":
            found[key] = data[NOISE.get(name, "noise")]
        elif key in SCALARS:
            # None is another formula: a variant.
            if variant.get(key, parameter.default) is not None:
                found[key] = data[key]
        elif key in data:
            found[key] = data[key]
        elif key not in NO_ARRAYS:
            raise TypeError(f"no argument is known for the parameter {key!r}")
    if _call_of(name) in (_estimate, _relax):
        factory = attrgetter(name)(diffkm_torch)
        bound = {} if name != "estimators.relax" else {"control": sum, "params": ()}
        num_draws = factory(**bound).num_draws
        width = 2 if name in BINARY else 5
        found |= {key: data[key][..., :width] for key in ("logits", "target")}
        found["noise"] = data["gumbel"][:num_draws, ..., :width]
        if name == "estimators.unordered_set":
            # Of one row each.
            found = {key: array[..., 0, :] for key, array in found.items()}
    return found


def call(module: ModuleType, name: str, variant: dict[str, Any]) -> Callable[..., Any]:
    """A function of arrays by keyword, to arrays made of what the function returns."""
    options = {
        key: getattr(module, value) if key == "method" else value
        for key, value in variant.items()
        # Numbers are among the arrays, so that they are differentiated.
        if not isinstance(value, float)
    }
    return partial(_call_of(name), module, attrgetter(name)(module), **options)


def _call_of(name: str) -> Callable[..., Any]:
    default = _estimate if name.startswith("estimators.") else _plain
    return CALLS.get(name, default)


def _plain(module: ModuleType, function: Callable, **kwargs: Any) -> Any:
    return function(**kwargs)


def _conditional_gumbel(
    module: ModuleType, function: Callable, logits: Any, **kwargs: Any
) -> Any:
    return function(logits, module.hard(logits), **kwargs)


def _estimate(
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


def _relax(module: ModuleType, function: Callable, params: Any, **kwargs: Any) -> Any:
    """The control variate is quadratic in the perturbed logits."""

    def made(**settings: Any) -> Any:
        return function(lambda w, z: (z**2 @ w).sum(-1), params, **settings)

    return _estimate(module, made, **kwargs)


def _bernoulli(module: ModuleType, function: Callable, log_odds: Any) -> Any:
    cost, rows = function(lambda values: (values**2).sum((-2, -1)), log_odds)
    return cost(module.softmax(rows))


def _fit(module: ModuleType, function: Callable, **kwargs: Any) -> dict[str, Any]:
    result = function(**kwargs)._asdict()
    names = "centroids", "labels", "loss", "counts", "residual", "history"
    return {key: result[key] for key in names}


def _sized(inner: Callable, module: Any, function: Callable, **kwargs: Any) -> Any:
    """With sizes about equal; hard, without the weights, which divide points."""
    size = len(kwargs["weights"]) // len(kwargs["centroids"])
    if "temperature" not in kwargs:
        del kwargs["weights"]
    return inner(module, function, **kwargs, min_size=size - 1, max_size=size + 1)


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
    state, stats = function(points, module.init(centroids), **kwargs)
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
# of estimators by `_estimate`.
CALLS = {
    **dict.fromkeys(("assign_bounded", "soft_assign_bounded"), partial(_sized, _plain)),
    "assigned_loss": lambda m, f, **kwargs: f(assignment=m.softmax, **kwargs),
    "conditional_gumbel": _conditional_gumbel,
    "estimators.attach": _plain,
    "estimators.bernoulli": _bernoulli,
    "estimators.over_rows": lambda _, f, costs, rows: f(costs, rows) * rows,
    "estimators.relax": _relax,
    "fit": _fit,
    "fit_bounded": partial(_sized, _fit),
    "bregman": lambda _, f, x, y: f(_power)(x, y),
    "init": lambda _, f, **kwargs: f(**kwargs).centroids,
    "mahalanobis": lambda _, f, precision, x, y: f(precision)(x, y),
    "reassign": _reassign,
    "update": _update,
    **dict.fromkeys(optimizers.__all__, _optimizer),
}
