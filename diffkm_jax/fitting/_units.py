"""The state of an optimizer, in the unit of the weights of a fit."""

from __future__ import annotations

from typing import Any

import jax
import optax

from diffkm_jax._problem import Problem
from diffkm_jax._units import in_true_unit
from diffkm_jax.optimizers import is_per_count


def counts_in_unit(
    optimizer: optax.GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The state of an optimizer that knows nothing but counts, as its steps need it."""
    if problem.unit is None or not is_per_count(optimizer):
        return opt_state
    return jax.tree.map(lambda n: n / problem.unit.astype(n.dtype), opt_state)


def counts_in_true_unit(
    optimizer: optax.GradientTransformation, opt_state: Any, problem: Problem
) -> Any:
    """The same, as it is to be kept."""
    return in_true_unit(opt_state, problem) if is_per_count(optimizer) else opt_state
