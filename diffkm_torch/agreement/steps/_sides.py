"""Training on each side, step by step; what a step leaves, as NumPy arrays by key."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor, nn

from diffkm_torch._hints import shown
from diffkm_torch._leaves import combine
from diffkm_torch.agreement._parameters import Match
from diffkm_torch.agreement._task import error_notes
from diffkm_torch.agreement.steps._states import jax_state, torch_name, torch_state

KINDS = "loss", "gradient", "state", "parameter"
# (kind, field of the state or "", path of the parameter or ""); arrays in JAX's layout.
Key = tuple[str, str, str]
Result = dict[Key, np.ndarray]
Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        leaves: Of JAX's tree, those that are no parameters included.
        tree: Its structure.
        matches: Of its parameters.
        held: Of the matches those of buffers, which no optimizer moves.
    """

    leaves: list[Any]
    tree: Any
    matches: tuple[Match, ...]
    held: tuple[Match, ...]

    @property
    def start(self) -> Arrays:
        """Parameters, then buffers, by the order of the matches."""
        both = (*self.matches, *self.held)
        return [np.asarray(self.leaves[m.index]) for m in both]


class JaxSide:
    """A loss of JAX and an optimizer of optax."""

    def __init__(self, loss: Callable, optimizer: Any, task: Task, *, jit: bool):
        self.loss, self.task, self.jit = loss, task, jit
        self.optimizer = optax.with_extra_args_support(optimizer)

    def start(self, arrays: Arrays, dtype: str) -> JaxTraining:
        """A training from such parameters and buffers."""
        return JaxTraining(self, [jnp.asarray(a.astype(dtype)) for a in arrays])

    def init(self, parameters: list) -> Any:
        """The first state of the optimizer."""
        with jax.numpy_dtype_promotion("standard"):
            return self.optimizer.init(self._parameter_tree(parameters))

    @cached_property
    def paths(self) -> dict[str, str]:
        """The paths of the matches, by the path in the tree of the parameters."""
        matches = self.task.matches
        tree = self._parameter_tree([m.path for m in matches])
        found = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): name for path, name in found}

    @cached_property
    def step(self) -> Callable:
        """Loss, gradients, new parameters and state."""
        return jax.jit(self._step) if self.jit else self._step

    def _parameter_tree(self, parameters: Sequence[Any]) -> Any:
        """The tree with None for what is no parameter."""
        nothing = [None] * len(self.task.leaves)
        places = [m.index for m in self.task.matches]
        return jax.tree.unflatten(self.task.tree, combine(nothing, places, parameters))

    def _step(self, parameters: list, held: list, state: Any, batch: list) -> tuple:
        places = [m.index for m in (*self.task.matches, *self.task.held)]

        def loss_of(parameters: list) -> Any:
            leaves = combine(self.task.leaves, places, [*parameters, *held])
            loss = self.loss(jax.tree.unflatten(self.task.tree, leaves), *batch)
            _check_loss("jax_loss", loss, parameters[0].dtype)
            return loss

        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        # Optax promotes inside.
        with jax.numpy_dtype_promotion("standard"):
            tree = self._parameter_tree(parameters)
            updates, state = self.optimizer.update(
                self._parameter_tree(gradients), state, tree, value=loss
            )
            moved = optax.apply_updates(tree, updates)
        return loss, gradients, jax.tree.leaves(moved), state


class JaxTraining:
    """One training of JAX, with its parameters and its state."""

    def __init__(self, side: JaxSide, arrays: list) -> None:
        number = len(side.task.matches)
        self.side, self.parameters, self.held = side, arrays[:number], arrays[number:]
        self.state = side.init(self.parameters)

    def step(self, batch: Any) -> Result:
        """Takes a step, returns what it leaves."""
        arrays = list(jax.tree.map(jnp.asarray, batch))
        with error_notes("jax_loss or optax", jax.tree.leaves(batch)):
            loss, gradients, self.parameters, self.state = self.side.step(
                self.parameters, self.held, self.state, arrays
            )
        found: Result = {("loss", "", ""): np.asarray(loss)}
        paths = [m.path for m in self.side.task.matches]
        for path, gradient in zip(paths, gradients, strict=True):
            found["gradient", "", path] = np.asarray(gradient)
        for (field, path), value in jax_state(self.state, self.side.paths).items():
            found["state", field, path] = value
        for path, parameter in zip(paths, self.parameters, strict=True):
            found["parameter", "", path] = np.asarray(parameter)
        return found


@dataclass(frozen=True)
class TorchSide:
    """A loss, a module and an optimizer of torch.

    Attributes:
        loss: Of the module and a batch.
        module: Copied for every training.
        optimizer: Of the list of its parameters.
        scheduler: Of the optimizer; None for none.
        max_norm: To which gradients are clipped; None for not.
        task: What is trained.
    """

    loss: Callable
    module: nn.Module
    optimizer: Callable
    scheduler: Callable | None
    max_norm: float | None
    task: Task

    def start(self, arrays: Arrays, dtype: str) -> TorchTraining:
        """A training from such parameters and buffers."""
        module = copy.deepcopy(self.module).to(getattr(torch, dtype))
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        with torch.no_grad():
            matches = (*self.task.matches, *self.task.held)
            for m, array in zip(matches, arrays, strict=True):
                start = np.ascontiguousarray(m.to_torch(array.astype(dtype)))
                named[m.name].copy_(torch.tensor(start))
        return TorchTraining(self, module)


class TorchTraining:
    """One training of torch."""

    def __init__(self, side: TorchSide, module: nn.Module) -> None:
        self.side, self.module = side, module
        self.named = dict(module.named_parameters())
        self.optimizer = side.optimizer(list(module.parameters()))
        _check_optimizer(self.optimizer, list(module.parameters()))
        self.scheduler = side.scheduler(self.optimizer) if side.scheduler else None
        self.left: set[str] = set()
        self.names: dict[str, str] = {}
        self.without_gradient: set[str] = set()
        self.groups: dict[str, dict[str, Any]] = {}

    def loss(self, batch: Any) -> Tensor:
        """The loss where the training is, checked."""
        tensors = jax.tree.map(torch.tensor, batch)
        with torch.enable_grad(), error_notes("torch_loss", jax.tree.leaves(batch)):
            loss = self.side.loss(self.module, *tensors)
        dtype = next(iter(self.named.values())).dtype
        _check_loss("torch_loss", loss, str(dtype).removeprefix("torch."))
        return loss

    def step(self, batch: Any) -> Result:
        """Takes a step, returns what it leaves, and keeps what explains it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        if not loss.requires_grad:
            raise ValueError(
                "torch_loss must depend on the parameters of the module it is given, "
                "but its loss requires no gradient"
            )
        loss.backward()
        found: Result = {("loss", "", ""): loss.numpy(force=True)}
        matches = self.side.task.matches
        for m in matches:
            gradient = self.named[m.name].grad
            if gradient is None:
                self.without_gradient.add(m.path)
                gradient = torch.zeros_like(self.named[m.name])
            found["gradient", "", m.path] = self._to_jax(m, gradient)
        if self.side.max_norm is not None:
            nn.utils.clip_grad_norm_(self.named.values(), self.side.max_norm)
        self.groups = self._groups()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        for m in matches:
            state = self.optimizer.state.get(self.named[m.name], {})
            fields, left = torch_state(state, m.path)
            self.left |= left
            for (field, path), value in fields.items():
                self.names[field] = torch_name(field, state)
                value = (
                    m.to_jax(value) if np.ndim(value) == len(m.torch_shape) else value
                )
                found["state", field, path] = value
        for m in matches:
            found["parameter", "", m.path] = self._to_jax(m, self.named[m.name])
        return found

    def _to_jax(self, match: Match, tensor: Tensor) -> np.ndarray:
        return match.to_jax(tensor.numpy(force=True)).copy()

    def _groups(self) -> dict[str, dict[str, Any]]:
        """The settings of each parameter, by its path in JAX."""
        paths = {self.named[m.name]: m.path for m in self.side.task.matches}
        return {
            paths[p]: {name: v for name, v in group.items() if name != "params"}
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p in paths
        }


def _check_loss(name: str, loss: Any, dtype: Any) -> None:
    kind = jax.Array if name == "jax_loss" else Tensor
    if not isinstance(loss, kind) or tuple(loss.shape) != ():
        found = f"shape {tuple(loss.shape)}" if hasattr(loss, "shape") else shown(loss)
        raise ValueError(f"{name} must return a scalar array, [], got {found}")
    here = str(loss.dtype).removeprefix("torch.")
    if here != str(dtype):
        raise TypeError(
            f"{name} must return the dtype of its parameters, {dtype}, got {here}: "
            "take out what casts on the way"
        )


def _check_optimizer(optimizer: Any, parameters: list) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "optimizers must have second a function of parameters that returns a torch "
            f"optimizer, but it returned {shown(optimizer)}"
        )
    ours = {id(p) for p in parameters}
    if not all(id(p) in ours for g in optimizer.param_groups for p in g["params"]):
        raise ValueError(
            "optimizers must have second a function that uses the parameters it is "
            "given, those of a copy of module, but it took others"
        )
