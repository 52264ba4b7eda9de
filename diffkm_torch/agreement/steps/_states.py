"""The state of an optimizer by the names of optax, wherever in a chain it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch

# Fields of optax's states, and what torch's optimizers call the same.
FIELDS: dict[str, tuple[str, ...]] = {
    "count": ("step",),
    "trace": ("momentum_buffer",),
    "mu": ("exp_avg", "grad_avg"),
    "nu": ("exp_avg_sq", "exp_inf", "square_avg"),
    "nu_max": ("max_exp_avg_sq",),
    "sum_of_squares": ("sum",),
    "e_g": ("square_avg",),
    "e_x": ("acc_delta",),
    "step_sizes": ("step_size",),
}
# By (field, path of the parameter).
State = dict[tuple[str, str], np.ndarray]


def jax_state(state: Any, paths: Mapping[str, str]) -> State:
    """Of optax's state the fields that are known, by parameter.

    A count belongs to the parameters whose moments stand beside it: the counts of
    schedules and of `inject_hyperparams` stand alone.

    Args:
        state: Of an optax transformation.
        paths: The paths of the parameters, by `jax.tree_util.keystr` in their tree.
    """
    found: State = {}
    counts: dict[str, np.ndarray] = {}
    beside: dict[str, set[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        for i, key in enumerate(path):
            field = getattr(key, "name", None)
            if field not in FIELDS:
                continue
            place = jax.tree_util.keystr(path[:i])
            rest = jax.tree_util.keystr(path[i + 1 :])
            if field == "count" and i + 1 == len(path):
                counts[place] = np.asarray(leaf)
            elif rest in paths and field != "count":
                found[field, paths[rest]] = np.asarray(leaf)
                beside.setdefault(place, set()).add(paths[rest])
    for place, count in counts.items():
        for path in beside.get(place, ()):
            found["count", path] = count
    return found


def torch_state(state: Mapping[str, Any], path: str) -> tuple[State, set[str]]:
    """Of torch's state of one parameter the same fields, and the names of the rest."""
    found: State = {}
    left = {name for name, value in state.items() if value is not None}
    for field, names in FIELDS.items():
        for name in names:
            value = state.get(name)
            if value is not None:
                found[field, path] = torch.as_tensor(value).numpy(force=True).copy()
                left.discard(name)
                break
    return found, left


def torch_name(field: str, state: Mapping[str, Any]) -> str:
    """What torch calls a field."""
    return next((name for name in FIELDS[field] if name in state), FIELDS[field][0])
