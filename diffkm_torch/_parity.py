"""The mirror, function by function: by how much each differs from its twin.

The functions are found by introspection and their arguments made by the names of their
parameters, so that what is new is compared, or fails, and cannot be forgotten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from types import ModuleType
from typing import Any

import numpy as np

import diffkm_jax
import diffkm_torch
from diffkm_torch import optimizers
from diffkm_torch.agreement import Report, compare_gradients

# What is compared beside the defaults: parameters that are not arrays, and those whose
# default is another formula.
VARIANTS: dict[str, tuple[Any, ...]] = {
    "derivative": ("one_step", "unrolled", "none"),
    "differentiable": (False, True),
    "empty": ("farthest",),
    "gap": (None,),
    "hard": (True,),
    "method": ("rotation_trick",),
    "scaled": (True,),
    "temperature": (0.3,),
}
# Names of functions of each package, where a function is the argument.
FUNCTIONS = "assignment", "method"
DEFAULTS = {
    "axis_name",
    "block_size",
    "column_weights",
    "decay",
    "distance",
    "max_configurations",
    "max_steps",
    "num_iters",
    "num_samples",
    "optimizer",
}
NO_ARRAYS = {*VARIANTS, *FUNCTIONS, *DEFAULTS, "noise", "one_hot", "state"}
SCALARS = {
    "baseline": 0.3,
    "eta": 0.8,
    "gap": 1.5,
    "scale": 0.8,
    "strength": 1.2,
    "tau": 0.7,
    "tau_backward": 0.4,
    "temperature": 0.3,
    "tol": 0.0,
}


@dataclass(frozen=True)
class Row:
    """One line of the table: a function, how it was called, and what came of it."""

    name: str
    report: Report | None
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the twins agree."""
        return self.report is not None and self.report.agree

    def difference(self, dtype: str, *kinds: str) -> float:
        """The largest difference, over the largest entry of its kind and output."""
        pairs = self.report.pairs if self.report else ()
        found = (p.scaled for p in pairs if p.dtype == dtype and p.kind in kinds)
        return max(found, default=0.0)


def rows(
    names: Collection[str] = (), *, order: int = 1, jit: bool = False
) -> Iterator[Row]:
    """A row for every mirrored function, or for those named, and for each variant."""
    data = _arrays()
    for space, name in mirrored():
        if names and space + name not in names:
            continue
        parameters = inspect.signature(_find(diffkm_jax, space, name)).parameters
        for variant in _variants(parameters):
            options = ", ".join(f"{key}={value}" for key, value in variant.items())
            label = f"{space}{name}({options})"
            try:
                arrays = _arguments(space, name, parameters, variant, data)
                functions = (
                    _outcome(module, space, name, variant)
                    for module in (diffkm_jax, diffkm_torch)
                )
                report = compare_gradients(
                    *functions, kwargs=arrays, order=order, jit=jit
                )
            except Exception as error:
                yield Row(label, None, f"{type(error).__name__}: {error}")
            else:
                yield Row(label, report)


def mirrored() -> list[tuple[str, str]]:
    """The public functions that both packages have: ("" or "estimators.", name)."""
    found = []
    for space in ("", "estimators."):
        ours, theirs = (_space(m, space) for m in (diffkm_jax, diffkm_torch))
        for name in sorted({*ours.__all__} & {*theirs.__all__}):
            if inspect.isfunction(inspect.unwrap(getattr(ours, name))):
                found.append((space, name))
    return found


def _space(module: ModuleType, space: str) -> ModuleType:
    return module.estimators if space else module


def _find(module: ModuleType, space: str, name: str) -> Callable:
    return getattr(_space(module, space), name)


def _variants(parameters: Any) -> Iterator[dict[str, Any]]:
    required = {
        key: VARIANTS[key]
        for key, parameter in parameters.items()
        if key in VARIANTS and parameter.default is inspect.Parameter.empty
    }
    if not required:
        yield {}
    for key in parameters:
        for value in VARIANTS.get(key, ()):
            yield {key: value}


def _arrays() -> dict[str, np.ndarray]:
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
        "points": points,
        "centroids": centroids,
        "weights": rng.uniform(0.5, 1.5, 40),
        "active": np.array([True, True, False, True, True]),
        "nearest": points[::-1].copy(),
        "x": points[:6],
        "y": points[6:12],
        "precision": root @ root.T,
        "logits": logits,
        "costs": rng.normal(size=2),
        "gradient": rng.normal(size=logits.shape),
        "target": rng.normal(size=logits.shape),
        "noise": rng.gumbel(size=(12, *logits.shape)),
        "normal": rng.normal(size=points.shape),
    }


def _arguments(
    space: str, name: str, parameters: Any, variant: dict[str, Any], data: dict
) -> dict[str, np.ndarray]:
    """The arrays of a function, and those that its outcome needs beside them."""
    arrays = {}
    for key, parameter in parameters.items():
        if key in SCALARS:
            # An optional temperature is a variant.
            if key not in variant and parameter.default is not None:
                arrays[key] = np.float64(SCALARS[key])
        elif key in data and key != "noise":
            arrays[key] = data[key]
        elif key not in NO_ARRAYS:
            raise TypeError(f"no argument is known for the parameter {key!r}")
    if variant.get("temperature"):
        arrays["temperature"] = np.float64(variant["temperature"])
    if "noise" in parameters:
        stacked = name in ("gumbel_rao", "perturbed_argmax")
        gumbel = data["noise"][:4] if stacked else data["noise"][0]
        arrays["noise"] = data["normal"] if name == "nsvq" else gumbel
    if name in optimizers.__all__ or name == "update":
        arrays |= {key: data[key] for key in ("points", "centroids")}
    if name == "mahalanobis":
        arrays |= {key: data[key] for key in ("x", "y")}
    if space and name != "attach":
        # DisARM is of two categories.
        width = 2 if name == "disarm" else 5
        draws = _find(diffkm_torch, space, name)().num_draws
        arrays["noise"] = data["noise"][:draws, ..., :width]
        arrays |= {key: data[key][..., :width] for key in ("logits", "target")}
    return arrays


def _outcome(
    module: ModuleType, space: str, name: str, variant: dict[str, Any]
) -> Callable[..., Any]:
    """What is compared of a function: arrays, made of what it returns."""
    function = _find(module, space, name)
    options: dict[str, Any] = {
        key: getattr(module, value) if key in FUNCTIONS else value
        for key, value in variant.items()
        if key != "temperature"
    }
    if name == "assigned_loss":
        options["assignment"] = module.softmax

    def optimized(points: Any, centroids: Any, **settings: Any) -> tuple:
        optimizer = function(**settings)
        state = module.init(centroids, optimizer=optimizer)
        state, _ = module.update(points, state, optimizer=optimizer)
        state, stats = module.update(points, state, optimizer=optimizer)
        return state.centroids, *stats

    def updated(points: Any, centroids: Any, **rest: Any) -> tuple:
        state, stats = function(points, module.init(centroids), **rest, **options)
        return state.centroids, *stats

    def fitted(**arrays: Any) -> dict[str, Any]:
        result = function(**arrays, **options)._asdict()
        names = "centroids", "labels", "loss", "counts", "residual", "history"
        return {key: result[key] for key in names}

    def estimated(logits: Any, target: Any, noise: Any, **settings: Any) -> Any:
        record = function(**settings, **options)

        def cost(rows: Any) -> Any:
            return ((rows - target[: len(rows)]) ** 3).sum((-2, -1))

        return record.expect(cost, logits, noise)

    def sampled(logits: Any, **rest: Any) -> Any:
        return function(logits, module.hard(logits), **rest, **options)

    def measured(precision: Any, x: Any, y: Any) -> Any:
        return function(precision)(x, y)

    def plain(**arrays: Any) -> Any:
        return function(**arrays, **options)

    special = {
        "fit": fitted,
        "update": updated,
        "init": lambda **arrays: function(**arrays).centroids,
        "mahalanobis": measured,
        "conditional_gumbel": sampled,
        "attach": plain,  # In estimators, but none.
    }
    if name in special:
        return special[name]
    if name in optimizers.__all__:
        return optimized
    return estimated if space else plain
