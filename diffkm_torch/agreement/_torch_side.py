"""The torch side: a function of tensors, or a module in the dtype that is asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from diffkm_torch.agreement._arguments import as_numpy
from diffkm_torch.agreement._outputs import Outputs, named_leaves, outputs_of
from diffkm_torch.agreement._seeds import Arrays, Seeds
from diffkm_torch.agreement._task import (
    DRAW_ONCE,
    Key,
    Result,
    Task,
    closed_over,
    error_notes,
)


class TorchSide:
    """The torch function."""

    framework = "torch"
    by_differences = False

    def __init__(self, fn: Callable, task: Task, whose: str) -> None:
        self.fn, self.task, self.whose = fn, task, whose

    def outputs(self, arrays: Arrays) -> tuple[Outputs, bool]:
        """What the function returns, and whether any of it requires a gradient."""
        with self._running(arrays):
            leaves = self._call(self._tensors(arrays))
        outputs = outputs_of(*leaves, lambda dtype: str(dtype).removeprefix("torch."))
        return outputs, any(leaf.requires_grad for leaf in leaves[0].values())

    def values(self, arrays: Arrays, *, jit: bool = True) -> Arrays:
        """The floating outputs."""
        with self._running(arrays):
            return list(map(as_numpy, self._call(self._tensors(arrays))[0].values()))

    def evaluate(
        self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key], *, jit: bool
    ) -> Result:
        """Outputs and derivatives; torch compiles nothing here."""
        with self._running(arrays):
            found = self._evaluate(arrays, seeds)
        return dict(zip(keys, map(as_numpy, found), strict=True))

    def remarks(self, arrays: Arrays) -> Iterator[str]:
        """Tensors that the function closes over and that stay as they are."""
        dtype = _widest(arrays)
        for name, value in closed_over(self.fn):
            if isinstance(value, nn.Module):
                found = {p.dtype for p in value.parameters()} - {dtype}
                if found:
                    yield (
                        f"closes over the module {name}, whose parameters stay "
                        f"{found.pop()}: hand in the module itself"
                    )
            elif isinstance(value, Tensor) and value.ndim and _is_narrow(value, dtype):
                found = f"{value.dtype}{list(value.shape)}"
                yield f"closes over {name}, {found}: an argument would be {dtype}"

    def how_to_repeat(self) -> str:
        """Noise is an argument."""
        names = self.fn.dropouts() if isinstance(self.fn, ModuleOf) else []
        if names:
            return f"{', '.join(names)} draws as long as it trains: hand in .eval()"
        return DRAW_ONCE

    @contextmanager
    def _running(self, arrays: Arrays) -> Iterator[None]:
        """With gradients, and new tensors in the dtype under test."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(_widest(arrays))
        remarks = (f"{self.whose} {remark}." for remark in self.remarks(arrays))
        try:
            with torch.enable_grad(), error_notes(self.whose, arrays, remarks):
                yield
        finally:
            torch.set_default_dtype(before)

    def _tensors(self, arrays: Arrays) -> list[Tensor]:
        tensors = list(map(torch.tensor, arrays))
        for i in self.task.moving:
            tensors[i].requires_grad_()
        return tensors

    def _call(self, tensors: list) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return named_leaves(
            self.task.arguments.call(self.fn, tensors),
            Tensor,
            self.whose,
            "torch.as_tensor",
            Tensor.is_floating_point,
        )

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


class ModuleOf:
    """A module as a function of its parameters; the module itself is left untouched.

    Args:
        module: Of which copies are made, one for every dtype.
        own: The module's own names, by those that parameters are given with.
    """

    def __init__(self, module: nn.Module, own: Mapping[str, str]) -> None:
        self.module, self.own = module, own
        self._copies: dict[torch.dtype, nn.Module] = {}

    def __call__(
        self, parameters: Mapping[str, Tensor], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """The module on its arguments, with parameters by name in place of its own."""
        dtype = torch.get_default_dtype()
        if dtype not in self._copies:
            self._copies[dtype] = copy.deepcopy(self.module).to(dtype)
        module = self._copies[dtype]
        # Copies, which a forward pass that counts or averages may change.
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        given = {self.own.get(name, name): p for name, p in parameters.items()}
        state = {**buffers, **given}
        return torch.func.functional_call(module, state, args, kwargs)

    def dropouts(self) -> list[str]:
        """Names of the modules inside that are random as long as they train."""
        return [
            name or type(module).__name__
            for name, module in self.module.named_modules()
            if module.training and "Dropout" in type(module).__name__
        ]


def _is_narrow(tensor: Tensor, dtype: torch.dtype) -> bool:
    is_floating = tensor.is_floating_point()
    return is_floating and torch.finfo(tensor.dtype).bits < torch.finfo(dtype).bits


def _widest(arrays: Arrays) -> torch.dtype:
    wide = any(a.dtype == np.float64 for a in arrays)
    return torch.float64 if wide else torch.float32


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
