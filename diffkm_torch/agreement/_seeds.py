"""The arrays that derivatives are contracted with, drawn or given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Seeds:
    """What derivatives are contracted with, of each kind a list of arrays.

    Attributes:
        cotangents: Of the floating outputs.
        tangents: Of the inputs that move.
        second: Of the gradients: outputs by inputs, the last fastest.
    """

    cotangents: Arrays
    tangents: Arrays
    second: Arrays

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> Seeds:
        """The seeds with every array changed."""
        lists = self.cotangents, self.tangents, self.second
        return Seeds(*([change(a) for a in arrays] for arrays in lists))


def seeds(
    cotangent: Any,
    outputs: dict[str, tuple[int, ...]],
    inputs: Arrays,
    rng: np.random.Generator,
) -> Seeds:
    """The seeds of outputs, shapes by name, and of inputs that move."""

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(rng.normal(size=shape))

    if not isinstance(cotangent, str):
        cotangents = _given(cotangent, outputs)
    elif cotangent == "ones":
        cotangents = [np.ones(shape) for shape in outputs.values()]
    else:
        cotangents = [normal(shape) for shape in outputs.values()]
    second = [normal(a.shape) for _ in outputs for a in inputs]
    return Seeds(cotangents, [normal(a.shape) for a in inputs], second)


def _given(cotangent: Any, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """The cotangents of the user, one for every floating output."""
    found = {
        f"output{jax.tree_util.keystr(path)}": np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(cotangent)
    }
    given = {name: a.shape for name, a in found.items()}
    if given != shapes:
        raise ValueError(f"cotangent must have the shapes {shapes}, got {given}")
    return [found[name] for name in shapes]
