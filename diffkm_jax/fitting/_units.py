"""The state of an optimizer, in the unit of the weights of a fit."""

from __future__ import annotations

from typing import Any

import jax
import optax

from diffkm_jax._problem import Problem
from diffkm_jax.optimizers import is_per_count


def counts_in_unit(
    optimizer: optax.GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The state of an optimizer that is per count, as its steps need it."""
    if problem.unit is None or not is_per_count(optimizer):
        return opt_state
    return _scaled(opt_state, 1 / problem.unit)


def counts_in_true_unit(
    optimizer: optax.GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The same, as it is to be kept."""
    if problem.unit is None or not is_per_count(optimizer):
        return opt_state
    return _scaled(opt_state, problem.unit)


def _scaled(opt_state: Any, factor: jax.Array) -> Any:
    if not opt_state:
        return opt_state
    counts = jax.tree.map(lambda n: n * factor.astype(n.dtype), opt_state.counts)
    return opt_state._replace(counts=counts)
