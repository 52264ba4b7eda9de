"""Outputs and derivatives of each side, as NumPy arrays by key.

Two classes do the same in two frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffkm_torch._leaves import combine
from diffkm_torch.agreement._arguments import Arguments
from diffkm_torch.agreement._outputs import Outputs, named_leaves, outputs_of
from diffkm_torch.agreement._seeds import Arrays, Seeds

# (kind, output, input), as in ("gradient", "output['loss']", "arg0").
Key = tuple[str, str, str]
Result = dict[Key, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What is asked of both sides: derivatives of which order, in which modes."""

    arguments: Arguments
    order: int
    forward: bool

    @property
    def moving(self) -> list[int]:
        """The inputs that are differentiated, by their index among all arrays."""
        return list(self.arguments.moving)

    @property
    def inputs(self) -> list[str]:
        """Their names."""
        return list(self.arguments.moving.values())


def keys_of(task: Task, outputs: Outputs) -> dict[Key, tuple[str, tuple[str, ...]]]:
    """The output and the inputs behind each key, in the order of `evaluate`."""
    keys: dict[Key, tuple[str, tuple[str, ...]]] = {}
    for name in [*outputs.floating, *outputs.other]:
        keys["value", name, ""] = name, ()
    pairs = [(name, i) for name in outputs.floating for i in task.inputs]
    for name, i in pairs:
        keys["gradient", name, i] = name, (i,)
    if task.forward:
        for i in task.inputs:
            for name in outputs.floating:
                keys["tangent", name, i] = name, (i,)
    if task.order == 2:
        for name, i in pairs:
            for j in task.inputs:
                keys["second", f"(d {name} / d {i})", j] = name, (i, j)
    return keys


class JaxSide:
    """The JAX function; its arrays and seeds are arguments of what is compiled."""

    def __init__(self, fn: Callable, task: Task) -> None:
        self.fn, self.task = fn, task

    def outputs(self, arrays: Arrays) -> Outputs:
        """What the function returns, found without running it."""
        traced: list[Outputs] = []

        def trace(arrays: list) -> None:
            traced.append(outputs_of(*self._call(arrays), lambda dtype: dtype.name))

        with _error_notes("jax_fn", arrays):
            jax.eval_shape(trace, list(map(jnp.asarray, arrays)))
        return traced[0]

    def values(self, arrays: Arrays) -> Arrays:
        """The floating outputs."""
        return list(
            map(np.asarray, self._jitted_floats(list(map(jnp.asarray, arrays))))
        )

    def evaluate(
        self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key], *, jit: bool
    ) -> Result:
        """Outputs and derivatives."""
        call = self._jitted if jit else self._evaluate
        lists = arrays, seeds.cotangents, seeds.tangents, seeds.second
        with _error_notes("jax_fn", arrays):
            found = call(*(list(map(jnp.asarray, each)) for each in lists))
        return dict(zip(keys, map(np.asarray, found), strict=True))

    @cached_property
    def _jitted(self) -> Callable:
        return jax.jit(self._evaluate)

    @cached_property
    def _jitted_floats(self) -> Callable:
        return jax.jit(self._floats)

    def _call(self, arrays: list) -> tuple[dict[str, Any], dict[str, Any]]:
        args, kwargs = self.task.arguments.filled(arrays)
        kind = jax.Array | np.ndarray | np.generic
        return named_leaves(
            self.fn(*args, **kwargs),
            kind,
            "jax_fn",
            lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating),
        )

    def _floats(self, arrays: list) -> list:
        return list(self._call(arrays)[0].values())

    def _evaluate(
        self, arrays: list, cotangents: list, tangents: list, second: list
    ) -> list:
        def function(moving: list) -> list:
            return self._floats(combine(arrays, self.task.moving, moving))

        def gradients(moving: list) -> list:
            return _vjps(function, moving, cotangents)[1]

        moving = [arrays[i] for i in self.task.moving]
        values, first = _vjps(function, moving, cotangents)
        found = [*values, *self._call(arrays)[1].values(), *first]
        if self.task.forward:
            zeros = [jnp.zeros_like(a) for a in moving]
            for i, tangent in enumerate(tangents):
                along = combine(zeros, [i], [tangent])
                found += jax.jvp(function, (moving,), (along,))[1]
        if self.task.order == 2:
            found += _vjps(gradients, moving, second)[1]
        return found


def _vjps(function: Callable, moving: list, seeds: list) -> tuple[list, list]:
    """The values, and of each of them the gradients: seed · d value / d moving."""
    values, pullback = jax.vjp(function, moving)
    zeros = [jnp.zeros_like(value) for value in values]
    gradients = []
    for i, seed in enumerate(seeds):
        seed = seed.astype(values[i].dtype)
        gradients += pullback(combine(zeros, [i], [seed]))[0]
    return values, gradients


class TorchSide:
    """The torch function."""

    def __init__(self, fn: Callable, task: Task) -> None:
        self.fn, self.task = fn, task

    def outputs(self, arrays: Arrays) -> tuple[Outputs, bool]:
        """What the function returns, and whether any of it requires a gradient."""
        with torch.enable_grad(), _error_notes("torch_fn", arrays):
            leaves = self._call(self._tensors(arrays))
        outputs = outputs_of(*leaves, lambda dtype: str(dtype).removeprefix("torch."))
        return outputs, any(leaf.requires_grad for leaf in leaves[0].values())

    def values(self, arrays: Arrays) -> Arrays:
        """The floating outputs."""
        return list(map(_numpy, self._call(self._tensors(arrays))[0].values()))

    def evaluate(self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key]) -> Result:
        """Outputs and derivatives."""
        with torch.enable_grad(), _error_notes("torch_fn", arrays):
            found = self._evaluate(arrays, seeds)
        return dict(zip(keys, map(_numpy, found), strict=True))

    def _tensors(self, arrays: Arrays) -> list[Tensor]:
        tensors = list(map(torch.tensor, arrays))
        for i in self.task.moving:
            tensors[i].requires_grad_()
        return tensors

    def _call(self, tensors: list) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        args, kwargs = self.task.arguments.filled(tensors)
        output = self.fn(*args, **kwargs)
        return named_leaves(output, Tensor, "torch_fn", Tensor.is_floating_point)

    def _evaluate(self, arrays: Arrays, seeds: Seeds) -> list[Tensor]:
        tensors = self._tensors(arrays)
        moving = [tensors[i] for i in self.task.moving]
        floating, other = (list(leaves.values()) for leaves in self._call(tensors))
        second = self.task.order == 2
        gradients = _gradients(floating, moving, seeds.cotangents, create_graph=second)
        found = [*floating, *other, *gradients]
        if self.task.forward:
            for i, tangent in zip(self.task.moving, seeds.tangents, strict=True):
                found += self._tangents(arrays, i, torch.tensor(tangent))
        if second:
            found += _gradients(gradients, moving, seeds.second)
        return found

    def _tangents(self, arrays: Arrays, i: int, tangent: Tensor) -> list[Tensor]:
        """Of the floating outputs, along a tangent of one input."""
        tensors = list(map(torch.tensor, arrays))
        with forward_ad.dual_level():
            tensors[i] = forward_ad.make_dual(tensors[i], tangent)
            duals = map(forward_ad.unpack_dual, self._call(tensors)[0].values())
            return [
                torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent
                for dual in duals
            ]


def _gradients(
    leaves: list[Tensor],
    moving: list[Tensor],
    seeds: Arrays,
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """One backward pass for each leaf; zeros where nothing comes back."""
    gradients = []
    for leaf, seed in zip(leaves, seeds, strict=True):
        if not leaf.requires_grad:
            gradients += [torch.zeros_like(a) for a in moving]
            continue
        gradients += torch.autograd.grad(
            leaf,
            moving,
            torch.tensor(seed, dtype=leaf.dtype, device=leaf.device),
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
    return gradients


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    # By force, because torch has zeros that are not stored.
    return tensor.numpy(force=True)


@contextmanager
def _error_notes(whose: str, arrays: Arrays) -> Iterator[None]:
    """Adds to an error whose function raised it, and on what."""
    try:
        yield
    except Exception as error:
        shapes = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
        error.add_note(f"This came of calling {whose} on arrays {shapes}.")
        raise
