"""Optimizers by name: those of this library, and all of optax that have a rate."""

from __future__ import annotations

import inspect
from typing import Any

import optax

import diffkm_jax as dk
from diffkm_jax._by_name import WITHOUT_RATE, needs_rate
from diffkm_jax._command_line.output import CommandError

# One wants a key, of the other there is a second version.
LEFT_OUT = "noisy_sgd", "optimistic_adam"


def names() -> list[str]:
    """What an optimizer may be called."""
    return [*WITHOUT_RATE, *(name for name in vars(optax) if has_rate(name))]


def has_rate(name: str) -> bool:
    """Whether optax has an optimizer of this name, whose argument is a rate."""
    made: Any = getattr(optax, name, None)
    if name.startswith(("_", "scale_by")) or name in ("lbfgs", *LEFT_OUT):
        return False
    try:
        parameters = [*inspect.signature(made).parameters.values()]
    except (TypeError, ValueError):  # No function.
        return False
    if not parameters or parameters[0].name != "learning_rate":
        return False
    return all(
        p.default is not p.empty for p in parameters[1:] if p.kind < p.VAR_KEYWORD
    )


def check_optimizer(options: Any) -> None:
    """Raises unless there is such an optimizer, or none is named, and it has a rate."""
    name = options.optimizer
    if name is None:
        return
    if name not in names():
        known = ", ".join(sorted(names()))
        raise CommandError(f"argument --optimizer: must be of {known}; got {name!r}")
    if options.learning_rate is None and needs_rate(name, options.distance):
        what = f"{name} has no default one under {options.distance}"
        raise CommandError(f"argument --learning-rate: {what}")


def settling(steps: int) -> Any:
    """Moving averages that come to rest in a number of steps, as `fit_minibatch`'s."""
    share = optax.cosine_decay_schedule(1.0, max(1, steps))
    return dk.ema(lambda step: 1 - share(step))
