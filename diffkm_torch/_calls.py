"""How the functions of both packages are called to be compared: tables.

Arguments are found by the names of parameters, so that one that is new is given, or
raises, and cannot be forgotten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

import diffkm_jax
import diffkm_torch
from diffkm_torch import optimizers
from diffkm_torch._callers import CALLS, estimate, plain, relax
from diffkm_torch._example_arrays import SCALARS, arrays

__all__ = ["SCALARS", "arguments", "arrays", "call", "variants"]

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
    "size": (2,),
    "temperature": (0.3,),
}
# What a parameter without a default is.
REQUIRED = {"size": 2}
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
    "max_size",
    "max_steps",
    "min_size",
    "num_iters",
    "num_samples",
    "one_hot",
    "index",
    "law",
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


def _required(name: str) -> dict[str, Any]:
    parameters = _parameters(name)
    return {
        key: value
        for key, value in REQUIRED.items()
        if key in parameters and parameters[key].default is inspect.Parameter.empty
    }


def variants(name: str) -> Iterator[dict[str, Any]]:
    """The options of every call: none, unless one is required, and one at a time."""
    required = _required(name)
    varied = {
        key: p
        for key, p in _parameters(name).items()
        if key in VARIANTS and key not in required
    }
    if all(p.default is not p.empty for p in varied.values()):
        yield {}
    for key in varied:
        for value in VARIANTS[key]:
            if (name, value) == ("fit_bounded", "unrolled"):
                continue  # It has no such derivative.
            yield {key: value}


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
        bound = _required(name)
        bound |= {} if name != "estimators.relax" else {"control": sum, "params": ()}
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
    options = _required(name) | options
    return partial(_call_of(name), module, attrgetter(name)(module), **options)


def _call_of(name: str) -> Callable[..., Any]:
    default = estimate if name.startswith("estimators.") else plain
    return CALLS.get(name, default)
