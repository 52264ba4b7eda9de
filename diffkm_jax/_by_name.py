"""Distances and optimizers by their names, for the estimator and the command line.

Imports neither JAX nor optax before it needs them: the names alone are quick.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import diffkm_jax as dk

if TYPE_CHECKING:
    import optax

    from diffkm_jax.distances import Distance

# Whether the minimizer of each is a mean.
DISTANCES = {
    "squared_euclidean": True,
    "cosine": True,
    "euclidean": False,
    "manhattan": False,
    "kl_divergence": True,
    "itakura_saito": True,
}
COUNTING = "newton", "macqueen", "ema"
WITHOUT_RATE = *COUNTING, "lbfgs"
WITH_DEFAULT_RATE = "sgd", "adam"


def distance_of(distance: str | Distance) -> Distance:
    """The distance of a name, or the one given."""
    return getattr(dk, distance) if isinstance(distance, str) else distance


@cache  # An optimizer is static by identity: one for each name and rate.
def optimizer_of(
    name: str, rate: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a name, with its learning rate if it has one."""
    if name in COUNTING:
        return getattr(dk, name)()
    import optax

    made: Any = getattr(optax, name)
    return made() if name in WITHOUT_RATE else made(rate)


def needs_rate(name: str, distance: str | Distance) -> bool:
    """Whether an optimizer has no default learning rate under a distance."""
    if name == "sgd":
        return getattr(distance, "__name__", distance) != "squared_euclidean"
    return name not in (*WITHOUT_RATE, *WITH_DEFAULT_RATE)


def default_rate(name: str, weight: float, variance: float) -> float | None:
    """The learning rate that an optimizer has by default, or None if it has none.

    Args:
        name: Of the optimizer.
        weight: Of the points of a step. Gradients are sums over them: plain descent is
            stable below 1 / (the weight in the largest cluster), if squared Euclidean.
        variance: Mean variance of the features, where the distance takes them from.
    """
    rates = {"sgd": 0.75 / weight, "adam": 0.05 * math.sqrt(variance)}
    return rates.get(name)
