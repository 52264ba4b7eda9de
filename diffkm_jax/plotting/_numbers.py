"""Arguments as NumPy arrays of float64, whatever they are arrays of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from diffkm_jax._hints import shown
from diffkm_jax._printed import numbers_of


def as_numbers(name: str, value: Any, shape: tuple, layout: str) -> np.ndarray:
    """The value as an array of float64 with `shape`, in which None fits any size."""
    if isinstance(value, Tracer):
        raise TypeError(f"{name} must not be traced: return it from the program first")
    numbers = None
    try:
        is_array = isinstance(value, jax.Array) or hasattr(value, "detach")
        numbers = numbers_of(value if is_array else np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        pass  # Ragged, of words, or a list of tensors with a gradient.
    if numbers is None:
        got = shown(value)
        raise TypeError(f"{name} must be an array of real numbers, got {got}")
    fits = len(shape) == numbers.ndim and all(
        size in (None, found) for size, found in zip(shape, numbers.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must be {layout}, got shape {numbers.shape}")
    return numbers


def named(name: str, values: Any, labels: Any, alone: str) -> dict[str, Any]:
    """Values by the names that they are drawn under.

    Args:
        name: Of the argument.
        values: A mapping, a sequence, or one value, a record.
        labels: Names of a sequence, or of the one; None is by number.
        alone: The name of one, and of the others before their number.
    """
    if isinstance(values, Mapping):
        if labels is not None:
            raise ValueError("labels must be None for a mapping, which has names")
        found = {str(key): value for key, value in values.items()}
    else:
        is_record = hasattr(values, "_fields")
        several = isinstance(values, Sequence) and not is_record
        each = list(values) if several else [values]
        names = [f"{alone} {i}" for i in range(len(each))] if several else [alone]
        if labels is not None:
            names = [labels] if isinstance(labels, str) else [str(a) for a in labels]
        if len({*names}) != len(each):
            raise ValueError(
                f"labels must be {len(each)} different names, as many as {name}, "
                f"got {names}"
            )
        found = dict(zip(names, each, strict=True))
    if not found:
        raise ValueError(f"{name} must have at least one, got none")
    return found
