"""The arguments of `compare_steps`, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from diffkm_torch._hints import shown
from diffkm_torch.agreement._arguments import as_numpy, check_real
from diffkm_torch.agreement._parameters import (
    Match,
    Rule,
    check_on_cpu,
    match_parameters,
)
from diffkm_torch.agreement._verdicts import DTYPES
from diffkm_torch.agreement.steps._sides import Task


def check_functions(jax_loss: Any, torch_loss: Any, scheduler: Any) -> None:
    """Raises TypeError unless they are functions."""
    for name, fn in (("jax_loss", jax_loss), ("torch_loss", torch_loss)):
        if not callable(fn):
            raise TypeError(f"{name} must be a function, got {shown(fn)}")
    if scheduler is not None and not callable(scheduler):
        raise TypeError(
            "scheduler must be a function of the optimizer, as partial(StepLR, "
            f"step_size=10), got {shown(scheduler)}"
        )


def check_optimizers(optimizers: Any) -> None:
    """Raises TypeError unless it is a pair of optax's and a function for torch's."""
    expected = (
        "(optax transformation, function of parameters to a torch optimizer), as "
        "(optax.adam(0.1), partial(torch.optim.Adam, lr=0.1))"
    )
    if not isinstance(optimizers, tuple | list) or len(optimizers) != 2:
        raise TypeError(f"optimizers must be {expected}, got {shown(optimizers)}")
    ours, theirs = optimizers
    if _is_optax(theirs) and not _is_optax(ours):
        raise TypeError(f"optimizers must be {expected}, got them the other way round")
    if not _is_optax(ours):
        raise TypeError(f"optimizers must be {expected}, got first {shown(ours)}")
    if isinstance(theirs, torch.optim.Optimizer):
        name = type(theirs).__name__
        raise TypeError(
            f"optimizers must be {expected}, got a torch optimizer that was made: "
            f"copies of module are trained, hand in partial(torch.optim.{name}, ...)"
        )
    if not callable(theirs):
        raise TypeError(f"optimizers must be {expected}, got second {shown(theirs)}")


def _is_optax(optimizer: Any) -> bool:
    return hasattr(optimizer, "init") and hasattr(optimizer, "update")


def check_options(dtypes: Any, tol: Any, max_norm: Any) -> None:
    """Raises ValueError unless the options have values that there are."""
    if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(DTYPES):
        raise ValueError(f"dtypes must be among {DTYPES}, got {dtypes!r}")
    if tol is not None and not (isinstance(tol, int | float) and 0 < tol < 1):
        raise ValueError(f"tol must be between 0 and 1, got {tol!r}")
    if max_norm is not None and not (
        isinstance(max_norm, int | float) and max_norm > 0
    ):
        raise ValueError(f"max_norm must be a positive number, got {max_norm!r}")


def read_parameters(params: Any, module: Any, match: Rule) -> Task:
    """The tree and what its parameters are in the module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {shown(module)}")
    named, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    check_on_cpu("module", module)
    matches = match_parameters(
        params,
        {name: tuple(p.shape) for name, p in named.items()},
        match,
        buffers={
            name: tuple(b.shape) for name, b in buffers.items() if b.is_floating_point()
        },
    )
    leaves, tree = jax.tree.flatten(params)
    for m in matches:
        # As float64, because NumPy asks no dtype of ml_dtypes for NaN.
        if not np.isfinite(np.asarray(leaves[m.index], np.float64)).all():
            raise ValueError(f"params must be finite, but {m.path} is not")
    return Task(leaves, tree, _those(matches, named), _those(matches, buffers))


def _those(matches: Iterable[Match], named: dict[str, Any]) -> tuple[Match, ...]:
    return tuple(m for m in matches if m.name in named)


def read_batches(batches: Any) -> list[tuple]:
    """One tuple of NumPy arrays, or trees of them, for each step."""
    if isinstance(batches, np.ndarray | jax.Array | torch.Tensor):
        batches = list(batches) if batches.ndim else None
    elif not isinstance(batches, Sequence):
        batches = list(batches) if isinstance(batches, Iterable) else None
    if batches is None:
        raise TypeError("batches must be a sequence of arrays or tuples of arrays")
    if not len(batches):
        raise ValueError("batches must hold one for each step, got none")
    found = []
    for i, batch in enumerate(batches):
        batch = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        found.append(
            jax.tree.map(lambda leaf, i=i: _array(f"batches[{i}]", leaf), batch)
        )
    return found


def _array(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, torch.Tensor):
        leaf = as_numpy(leaf)
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    if is_key or not isinstance(
        leaf, np.ndarray | np.generic | jax.Array | int | float
    ):
        kinds = "a random key" if is_key else shown(leaf)
        raise TypeError(f"{name} must hold arrays that both can use, got {kinds}")
    array = as_numpy(leaf)
    check_real(name, array)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"{name} must be without NaN")
    return array
