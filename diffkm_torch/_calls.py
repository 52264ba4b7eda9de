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
from diffkm_torch._callers import CALLS, estimate, plain, relax

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
    "min_count": (7.0,),
    "scaled": (True,),
    "temperature": (0.3,),
}
SCALARS = {
    "alpha": 1.6,
    "baseline": 0.3,
    "beta": 0.4,
    "diversity_weight": 0.7,
    "eta": 0.8,
    "gap": 1.5,
    "min_count": 7.0,
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
    "d",
    "decay",
    "distance",
    "dtype",
    "f",
    "group_size",
    "levels",
    "max_configurations",
    "max_steps",
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
    "diveq": "normal",
    "gumbel_rao": "draws",
    "nsvq": "normal",
    "quantize": "choices",
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
        "codebooks": np.stack([centroids, centroids - centroids.mean(0)]),
        "weights": rng.uniform(0.5, 1.5, 40),
        "active": np.array([True, True, False, True, True]),
        "nearest": points[::-1].copy(),
        "labels": np.arange(12).reshape(3, 4),
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
        "choices": rng.gumbel(size=(40, 5)),
    }


def arguments(name: str, variant: dict[str, Any], data: dict) -> dict[str, Any]:
    """The arrays of a call, from `data` by the names of the parameters."""
    found = {key: data[key] for key in BESIDE.get(name, ())}
    for key, parameter in _parameters(name).items():
        if key == "noise":
            # Where it may be None, it is for a temperature.
            if parameter.default is parameter.empty or "temperature" in variant:
                found[key] = data[NOISE.get(name, "noise")]
        elif key in SCALARS:
            # None is another formula: a variant.
            if variant.get(key, parameter.default) is not None:
                found[key] = data[key]
        elif key in data:
            found[key] = data[key]
        elif key not in NO_ARRAYS:
            raise TypeError(f"no argument is known for the parameter {key!r}")
    if _call_of(name) in (estimate, relax):
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
    default = estimate if name.startswith("estimators.") else plain
    return CALLS.get(name, default)
