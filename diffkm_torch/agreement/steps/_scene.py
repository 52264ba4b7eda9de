"""The step that parts, as vectors to be fitted to what is known of optimizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffkm_torch.agreement.steps._sides import Arrays, Key, Result
from diffkm_torch.agreement.steps._verdicts import Results

# What fits leaves at most this share of the vector, and of what is to be explained.
FIT, EXPLAINED = 1e-5, 1e-2
SIDES = "JAX", "torch"


@dataclass(frozen=True)
class Scene:
    """The step that parts.

    Attributes:
        step: Counted from 1.
        base: What both sides left.
        before: In the step before, {} before the first.
        start: Parameters at the start, by path.
        groups: Settings of torch's optimizer, by path.
        keys: The arrays that part, in the order of a step.
        max_norm: To which torch's gradients were clipped, None if not.
        without_gradient: Paths whose gradient was None in torch.
    """

    step: int
    base: Results
    before: Results
    start: dict[str, np.ndarray]
    groups: dict[str, dict[str, Any]]
    keys: list[Key]
    max_norm: float | None
    without_gradient: set[str]

    @property
    def group(self) -> dict[str, Any]:
        """The settings of what parts first."""
        return self.groups.get(self.keys[0][2], {})

    @property
    def gradient(self) -> np.ndarray:
        """Torch's, before it was clipped, as one vector."""
        return self.pair("gradient")[1]

    def pair(self, kind: str, field: str = "") -> Arrays:
        """Of both sides all arrays of a kind that both have, as one vector each."""
        keys = [k for k in self.base[0] if k[:2] == (kind, field) and k in self.base[1]]
        return [_joined(result, keys) for result in self.base]

    def changes(self) -> Arrays:
        """Of both sides what the step added to the parameters, as one vector each."""
        now = self.pair("parameter")
        return [a - b for a, b in zip(now, self.old(), strict=True)]

    def old(self) -> Arrays:
        """The parameters of both sides before the step, as one vector each."""
        keys = [k for k in self.base[0] if k[0] == "parameter"]
        if self.before[0]:
            return [_joined(result, keys) for result in self.before]
        at = np.concatenate([np.ravel(self.start[path]) for *_, path in keys])
        return [at, at]


def _joined(result: Result, keys: list[Key]) -> np.ndarray:
    arrays = [np.ravel(np.asarray(result[k], np.float64)) for k in keys]
    return np.concatenate(arrays) if arrays else np.zeros(0)


def factor_of(a: np.ndarray, b: np.ndarray) -> float | None:
    """The c with b = c a in all entries, None if there is none."""
    square = float(a @ a) if a.shape == b.shape else 0.0
    if not square or not np.isfinite(b).all() or not b.any():
        return None
    factor = float(a @ b) / square
    rest = np.abs(b - factor * a).max()
    most = min(FIT * np.abs(b).max(), EXPLAINED * np.abs(b - a).max())
    return factor if rest <= most else None


def is_close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a is b but for a small share of it."""
    same = a.shape == b.shape and a.size > 0
    return same and bool(np.abs(a - b).max() <= FIT * np.abs(b).max())


def spread(a: np.ndarray) -> float:
    """How far the entries are from one number, relative to it."""
    middle = abs(float(np.median(a)))
    return float(np.abs(a - np.median(a)).max()) / middle if middle else np.inf
