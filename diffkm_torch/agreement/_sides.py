"""Both sides of a comparison: outputs and derivatives as NumPy arrays, by key.

Two classes do the same in two frameworks. A key is (kind, output, input), as in
("gradient", "output['loss']", "arg0").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

from diffkm_torch.agreement._arguments import Arguments

Key = tuple[str, str, str]
Arrays = list[np.ndarray]
Found = dict[Key, np.ndarray]


@dataclass(frozen=True)
class Seeds:
    """What derivatives are contracted with, of each kind a list of arrays."""

    cotangents: Arrays
    tangents: Arrays
    second: Arrays

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> Seeds:
        """The seeds with every array changed."""
        lists = self.cotangents, self.tangents, self.second
        return Seeds(*([change(a) for a in arrays] for arrays in lists))


@dataclass(frozen=True)
class Task:
    """What is asked of both sides: derivatives of which order, in which modes."""

    arguments: Arguments
    order: int
    forward: bool

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs that move."""
        return list(self.arguments.moving.values())


@dataclass(frozen=True)
class Outputs:
    """Names, shapes and dtypes of what a function returns, each kind by name."""

    floating: dict[str, tuple[tuple[int, ...], str]]
    other: dict[str, tuple[tuple[int, ...], str]]


def origins_of(task: Task, outputs: Outputs) -> dict[Key, tuple[str, tuple[str, ...]]]:
    """The output and the inputs behind each key, in the order of both sides' arrays."""
    found: dict[Key, tuple[str, tuple[str, ...]]] = {}
    for name in [*outputs.floating, *outputs.other]:
        found["value", name, ""] = name, ()
    pairs = [(name, i) for name in outputs.floating for i in task.inputs]
    for name, i in pairs:
        found["gradient", name, i] = name, (i,)
    if task.forward:
        for i in task.inputs:
            for name in outputs.floating:
                found["tangent", name, i] = name, (i,)
    if task.order == 2:
        for name, i in pairs:
            for j in task.inputs:
                found["second", f"(d {name} / d {i})", j] = name, (i, j)
    return found


class JaxSide:
    """The JAX function; its arrays and seeds are arguments of what is compiled."""

    def __init__(self, fn: Callable, task: Task) -> None:
        self.fn, self.task = fn, task

    def values(self, arrays: Arrays) -> Arrays:
        """The floating outputs."""
        return list(
            map(np.asarray, self._compiled_values(list(map(jnp.asarray, arrays))))
        )

    def run(
        self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key], *, jit: bool
    ) -> Found:
        """Outputs and derivatives."""
        call = self._compiled if jit else self._everything
        lists = arrays, seeds.cotangents, seeds.tangents, seeds.second
        with _noted("jax_fn", arrays):
            found = call(*(list(map(jnp.asarray, each)) for each in lists))
        return dict(zip(keys, map(np.asarray, found), strict=True))

    @cached_property
    def _compiled(self) -> Callable:
        return jax.jit(self._everything)

    @cached_property
    def _compiled_values(self) -> Callable:
        return jax.jit(lambda arrays: list(self._leaves(arrays)[0].values()))

    def _leaves(self, arrays: list) -> tuple[dict[str, Any], dict[str, Any]]:
        args, kwargs = self.task.arguments.filled(arrays)
        kind = jax.Array | np.ndarray | np.generic
        leaves = _named(self.fn(*args, **kwargs), kind, "jax_fn")
        return _split(leaves, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating))

    def outputs(self, arrays: Arrays) -> Outputs:
        """What the function returns, found without running it."""
        found: list[Outputs] = []

        def note(arrays: list) -> None:
            floating, other = (
                {name: (tuple(a.shape), a.dtype.name) for name, a in leaves.items()}
                for leaves in self._leaves(arrays)
            )
            found.append(Outputs(floating, other))

        with _noted("jax_fn", arrays):
            jax.eval_shape(note, list(map(jnp.asarray, arrays)))
        return found[0]

    def _everything(
        self, arrays: list, cotangents: list, tangents: list, second: list
    ) -> list:
        def function(moving: list) -> list:
            return list(
                self._leaves(with_moving(self.task, arrays, moving))[0].values()
            )

        def gradients(moving: list) -> list:
            return pull(function, moving, cotangents)[1]

        def pull(function: Callable, moving: list, seeds: list) -> tuple[list, list]:
            values, back = jax.vjp(function, moving)
            zeros = [jnp.zeros_like(value) for value in values]
            found = []
            for i, seed in enumerate(seeds):
                seed = seed.astype(values[i].dtype)
                found += back([*zeros[:i], seed, *zeros[i + 1 :]])[0]
            return values, found

        moving = [arrays[i] for i in self.task.arguments.moving]
        values, first = pull(function, moving, cotangents)
        found = [*values, *self._leaves(arrays)[1].values(), *first]
        if self.task.forward:
            for i, tangent in enumerate(tangents):
                along = [jnp.zeros_like(a) for a in moving]
                along[i] = tangent
                found += jax.jvp(function, (moving,), (along,))[1]
        if self.task.order == 2:
            found += pull(gradients, moving, second)[1]
        return found


class TorchSide:
    """The torch function."""

    def __init__(self, fn: Callable, task: Task) -> None:
        self.fn, self.task = fn, task

    def outputs(self, arrays: Arrays) -> tuple[Outputs, bool]:
        """What the function returns, and whether any of it requires a gradient."""
        with torch.enable_grad(), _noted("torch_fn", arrays):
            floating, other = self._leaves(self._tensors(arrays))
        named = (
            {
                name: (tuple(a.shape), str(a.dtype).removeprefix("torch."))
                for name, a in leaves.items()
            }
            for leaves in (floating, other)
        )
        return Outputs(*named), any(leaf.requires_grad for leaf in floating.values())

    def values(self, arrays: Arrays) -> Arrays:
        """The floating outputs."""
        return list(map(_numpy, self._leaves(self._tensors(arrays))[0].values()))

    def run(self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key]) -> Found:
        """Outputs and derivatives."""
        with torch.enable_grad(), _noted("torch_fn", arrays):
            found = self._everything(arrays, seeds)
        return dict(zip(keys, map(_numpy, found), strict=True))

    def _tensors(self, arrays: Arrays) -> list[Tensor]:
        tensors = list(map(torch.tensor, arrays))
        for i in self.task.arguments.moving:
            tensors[i].requires_grad_()
        return tensors

    def _leaves(self, tensors: list) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        args, kwargs = self.task.arguments.filled(tensors)
        leaves = _named(self.fn(*args, **kwargs), Tensor, "torch_fn")
        return _split(leaves, lambda leaf: leaf.is_floating_point())

    def _everything(self, arrays: Arrays, seeds: Seeds) -> list[Tensor]:
        tensors = self._tensors(arrays)
        moving = [tensors[i] for i in self.task.arguments.moving]
        floating, other = (list(leaves.values()) for leaves in self._leaves(tensors))
        second = self.task.order == 2
        gradients = _pull(floating, moving, seeds.cotangents, graph=second)
        found = [*floating, *other, *gradients]
        if self.task.forward:
            for i, tangent in zip(
                self.task.arguments.moving, seeds.tangents, strict=True
            ):
                found += self._push(arrays, i, torch.tensor(tangent))
        if second:
            found += _pull(gradients, moving, seeds.second)
        return found

    def _push(self, arrays: Arrays, i: int, tangent: Tensor) -> list[Tensor]:
        tensors = list(map(torch.tensor, arrays))
        with forward_ad.dual_level():
            tensors[i] = forward_ad.make_dual(tensors[i], tangent)
            leaves = self._leaves(tensors)[0].values()
            found = [forward_ad.unpack_dual(leaf) for leaf in leaves]
            return [
                torch.zeros_like(f.primal) if f.tangent is None else f.tangent
                for f in found
            ]


def _pull(
    leaves: list[Tensor], moving: list[Tensor], seeds: Arrays, *, graph: bool = False
) -> list[Tensor]:
    """One backward pass for each leaf; zeros where nothing comes back."""
    found = []
    for leaf, seed in zip(leaves, seeds, strict=True):
        if not leaf.requires_grad:
            found += [torch.zeros_like(a) for a in moving]
            continue
        found += torch.autograd.grad(
            leaf,
            moving,
            torch.tensor(seed, dtype=leaf.dtype, device=leaf.device),
            retain_graph=True,
            create_graph=graph,
            materialize_grads=True,
        )
    return found


def with_moving(task: Task, arrays: Sequence, moving: Sequence) -> list:
    """The arrays, those that move exchanged."""
    full = list(arrays)
    for i, array in zip(task.arguments.moving, moving, strict=True):
        full[i] = array
    return full


def _named(output: Any, kind: Any, whose: str) -> dict[str, Any]:
    """The leaves of what a function returned, by path, checked."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(output):
        name = f"output{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, kind):
            wrap = "jnp.asarray" if whose == "jax_fn" else "torch.as_tensor"
            raise TypeError(
                f"{whose} must return arrays or trees of them, got "
                f"{type(leaf).__name__} as {name}: wrap a number in {wrap}, and leave "
                "out what is no number"
            )
        if "complex" in str(leaf.dtype):
            raise TypeError(f"{whose} must return real arrays, {name} is {leaf.dtype}")
        leaves[name] = leaf
    return leaves


def _split(
    leaves: dict[str, Any], is_floating: Callable[[Any], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The floating leaves and the others, each sorted by name."""
    names = sorted(leaves)
    floating = {name: leaves[name] for name in names if is_floating(leaves[name])}
    return floating, {name: leaves[name] for name in names if name not in floating}


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    # By force, because torch has zeros that are not stored.
    return tensor.numpy(force=True)


@contextmanager
def _noted(whose: str, arrays: Arrays) -> Iterator[None]:
    """Adds to an error whose function raised it, and on what."""
    try:
        yield
    except Exception as error:
        shapes = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
        error.add_note(f"This came of calling {whose} on arrays {shapes}.")
        raise


def check_same_outputs(ours: Outputs, theirs: Outputs) -> None:
    """Raises unless both functions return the same tree of shapes and dtypes."""
    mine, other = ours.floating | ours.other, theirs.floating | theirs.other
    if mine.keys() != other.keys():
        only = [
            f"only {whose} returns {', '.join(sorted(a.keys() - b.keys()))}"
            for whose, a, b in (("jax_fn", mine, other), ("torch_fn", other, mine))
            if a.keys() - b.keys()
        ]
        trees = "; ".join(only)
        raise ValueError(f"jax_fn and torch_fn must return the same tree: {trees}")
    if not mine:
        raise ValueError("jax_fn and torch_fn must return at least one array, got none")
    for name, (shape, dtype) in mine.items():
        shape_there, dtype_there = other[name]
        if shape != shape_there:
            shapes = f"jax_fn {shape}, torch_fn {shape_there}"
            raise ValueError(f"{name} must have the same shape in both: {shapes}")
        if _kind(dtype) != _kind(dtype_there):
            dtypes = f"jax_fn {dtype}, torch_fn {dtype_there}"
            raise TypeError(f"{name} must have the same dtype in both: {dtypes}")


def _kind(dtype: str) -> str:
    """The dtype, but for the width of an integer: torch's labels have 64 bits."""
    return dtype.rstrip("0123456789") if "int" in dtype else dtype
