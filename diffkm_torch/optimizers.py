"""K-means algorithms as (init, update) pairs: the mirror of `diffkm_jax.optimizers`.

An `update` is called as in optax: `update(gradient, state, params, *, counts, shifts,
value, grad, value_fn)` returns the updates to add to the parameters, and the new state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_scalar, check_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import shown
from diffkm_torch._numerics import per_count
from diffkm_torch.distances._forms import WITH_MEANS

__all__ = [
    "EmaState",
    "GradientTransformation",
    "MacQueenState",
    "ema",
    "macqueen",
    "newton",
    "sgd",
]


DecaySchedule = Callable[[Tensor], float | Tensor]


class GradientTransformation(NamedTuple):
    """The pair (init, update) of an optimizer.

    Attributes:
        init: Function of the centroids, [k, d], to the optimizer's own state.
        update: Function of gradient [k, d], that state, centroids [k, d] and, by
            keyword, what `update` passes on, to updates [k, d], which are added to the
            centroids, and the new state.
    """

    init: Callable[[Tensor], Any]
    update: Callable[..., tuple[Tensor, Any]]


class _PerCount(GradientTransformation):
    """An optimizer whose step, and whose state but for its unit, is per weight."""


def is_per_count(optimizer: GradientTransformation) -> bool:
    """Whether a step is the same with gradient and counts in any unit of the weights.

    The state of such an optimizer is empty, or has `counts` in that unit and nothing
    else that has a unit.
    """
    return isinstance(optimizer, _PerCount)


class MacQueenState(NamedTuple):
    """Mirrors `diffkm_jax.optimizers.MacQueenState`: the running counts, [k]."""

    counts: Tensor


class EmaState(NamedTuple):
    """Mirrors `diffkm_jax.optimizers.EmaState`: averages of the counts [k], step."""

    counts: Tensor
    step: Tensor | None = None


def _require(name: str, counts: Tensor | None) -> Tensor:
    if counts is None:
        raise ValueError(
            f"{name}() needs counts, the cluster weights of the pass, got None: only a "
            f"distance that has means has them ({WITH_MEANS}), and a wrapper around "
            "the optimizer must pass extra arguments on; else take a gradient optimizer"
        )
    return counts


def _step(gradient: Tensor, shifts: Tensor | None, counts: Tensor) -> Tensor:
    """shifts_j / counts_j, [k, d], in the dtype of the gradient."""
    # In float32 or wider: a count beyond 65504 is infinite in float16.
    acc = accumulation_dtype(gradient, counts)
    if shifts is None:
        # If squared Euclidean; of others a gradient is no shift.
        shifts = -0.5 * gradient.to(acc)
    return per_count(shifts.to(acc), counts.to(acc)).to(gradient.dtype)


def newton() -> GradientTransformation:
    """Mirrors `diffkm_jax.newton`: update = shifts / counts.

    Example:
        >>> x, c = torch.tensor([[0.0], [1.0], [8.0]]), torch.tensor([[0.0], [9.0]])
        >>> state, _ = dt.update(x, dt.init(c, optimizer=dt.newton()))
        >>> state.centroids.tolist()  # The means.
        [[0.5], [8.0]]
    """
    return _NEWTON


def macqueen() -> GradientTransformation:
    """Mirrors `diffkm_jax.macqueen`: the same, over the counts of all passes so far."""
    return _MACQUEEN


def ema(decay: float | DecaySchedule = 0.99) -> GradientTransformation:
    """Mirrors `diffkm_jax.ema`: (1 − decay) shifts over moving averages of counts.

    A schedule gets the number of updates so far as a tensor, [], int32; of operations
    on tensors it compiles to one graph.
    """
    if callable(decay):
        return _ema(decay)
    try:
        usable = bool(0 <= decay < 1)
    except (TypeError, ValueError, RuntimeError):
        expected = "a number or a schedule (a function of the step)"
        raise TypeError(f"decay must be {expected}, got {shown(decay)}") from None
    if not usable:
        raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
    return _constant_ema(float(decay))


def _newton_update(
    updates: Tensor,
    state: tuple,
    params: Tensor | None = None,
    *,
    counts: Tensor | None = None,
    shifts: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, tuple]:
    del params, extra
    return _step(updates, shifts, _require("newton", counts)), state


def _macqueen_update(
    updates: Tensor,
    state: MacQueenState,
    params: Tensor | None = None,
    *,
    counts: Tensor | None = None,
    shifts: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, MacQueenState]:
    del params, extra
    new = _require("macqueen", counts)
    seen = state.counts + new.to(state.counts.dtype)
    return _step(updates, shifts, seen), MacQueenState(seen)


def _ema_update(
    decay: float | DecaySchedule,
    updates: Tensor,
    state: EmaState,
    params: Tensor | None = None,
    *,
    counts: Tensor | None = None,
    shifts: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, EmaState]:
    del params, extra
    n = _require("ema", counts).to(state.counts.dtype)
    share = _scheduled(decay, state.step, n) if callable(decay) else decay
    average = share * state.counts + (1 - share) * n
    kept = torch.where(state.counts == 0, n, average)
    steps = ((1 - share) * _step(updates, shifts, kept)).to(updates.dtype)
    return steps, EmaState(kept, None if state.step is None else state.step + 1)


def _scheduled(schedule: DecaySchedule, step: Any, like: Tensor) -> Tensor:
    """The decay at a step, NaN where it is none."""
    value = as_scalar("decay", given := schedule(step), like.dtype, zero=True)
    if isinstance(given, int | float) and given > 1:
        raise ValueError(f"decay must be at most 1, got {given} of its schedule")
    return torch.where((value >= 0) & (value <= 1), value, torch.nan)


def _no_counts(params: Tensor) -> Tensor:
    return params.new_zeros(params.shape[0], dtype=accumulation_dtype(params))


def _macqueen_init(params: Tensor) -> MacQueenState:
    return MacQueenState(_no_counts(params))


def _ema_init(decay: float | DecaySchedule, params: Tensor) -> EmaState:
    zero = params.new_zeros((), dtype=torch.int32)
    return EmaState(_no_counts(params), zero if callable(decay) else None)


def _newton_init(params: Tensor) -> tuple:
    del params
    return ()


# Constants and not caches, at which torch.compile warns.
_NEWTON = _PerCount(_newton_init, _newton_update)
_MACQUEEN = _PerCount(_macqueen_init, _macqueen_update)


def _ema(decay: float | DecaySchedule) -> GradientTransformation:
    return _PerCount(partial(_ema_init, decay), partial(_ema_update, decay))


_constant_ema = cache(_ema)


def sgd(learning_rate: float) -> GradientTransformation:
    """Gradient descent, the twin of `optax.sgd`: update = −learning_rate · gradient.

    Args:
        learning_rate: Positive number, in the inverse unit of the weights (gradients
            are of the sum over the points): below 1 / max(counts) it is stable.

    Returns:
        A stateless `GradientTransformation` of gradients [k, d].

    Raises:
        ValueError: `learning_rate` is not a scalar, or not positive and finite.

    Example:
        >>> x, c = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0]])
        >>> descent = dt.sgd(0.125)
        >>> state, _ = dt.update(x, dt.init(c, optimizer=descent), optimizer=descent)
        >>> state.centroids.tolist()  # The gradient of the sum is -4.
        [[0.5]]

    Source: `optax.sgd`, https://optax.readthedocs.io
    """
    check_scalar("learning_rate", learning_rate, torch.float32)

    def update(
        updates: Tensor, state: tuple, params: Tensor | None = None, **extra: Any
    ) -> tuple[Tensor, tuple]:
        del params, extra
        return -learning_rate * updates, state

    return GradientTransformation(lambda params: (), update)
