"""Optimizers and distances by name: a name can be pickled, a closure cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import optax

import diffkm_jax as dk
from diffkm_jax.distances import Distance

DISTANCES = {
    distance.__name__: distance
    for distance in (
        dk.squared_euclidean,
        dk.cosine,
        dk.kl_divergence,
        dk.itakura_saito,
        dk.euclidean,
        dk.manhattan,
    )
}
# An optimizer is static by identity: one object for each name, and learning rate.
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "newton": dk.newton,
    "macqueen": dk.macqueen,
    "ema": cache(dk.ema),
    "lbfgs": cache(optax.lbfgs),
}
WITH_RATE: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": cache(optax.sgd),
    "adam": cache(optax.adam),
}


def distance_of(distance: str | Distance) -> Distance:
    """The distance of a name, or the one given."""
    return DISTANCES[distance] if isinstance(distance, str) else distance


def optimizer_of(
    optimizer: str | optax.GradientTransformation | None, rate: float | None
) -> Any:
    """The optimizer of a name, with its learning rate, if any; or the one given."""
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer]()
    assert rate is not None, f"{optimizer} has a rate"
    return WITH_RATE[optimizer](rate)


def rate_of(
    optimizer: str | optax.GradientTransformation | None,
    points: np.ndarray,
    weights: np.ndarray | None,
    batch_size: int | None,
) -> float | None:
    """The learning rate of an optimizer that is named alone, or None.

    Gradients are sums over the points of a step: plain descent is stable below
    1 / (their weight in the largest cluster).
    """
    if optimizer == "sgd":
        weight = float(len(points) if weights is None else weights.sum())
        share = 1.0 if batch_size is None else batch_size / len(points)
        return 0.75 / (weight * share)
    if optimizer == "adam":
        return 0.05 * float(np.sqrt(np.mean(np.var(points, axis=0, dtype=float))))
    return None
