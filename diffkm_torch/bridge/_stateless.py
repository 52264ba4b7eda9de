"""A module of torch as a function of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diffkm_torch.bridge._trial import no_edits


class Stateless:
    """A module as a function of its parameters, which it does not keep."""

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        for name, tensor in [*named.items(), *module.named_buffers()]:
            _check_held(name, tensor)
        trained = {name: p for name, p in named.items() if p.requires_grad}
        self.parameters = {name: _array(p) for name, p in trained.items()}
        self._shapes = {name: tuple(p.shape) for name, p in trained.items()}
        # Of no elements: where these are read, and not what stands for them in a call,
        # torch raises. (Of tensors on "meta" it makes matrix products of any numbers.)
        gone = {id(p): nn.Parameter(p.detach().new_empty(0)) for p in trained.values()}
        self._places = _places(module)
        self._module = copy.deepcopy(module, gone)
        self._lock = RLock()
        self.__name__ = self.__qualname__ = type(module).__name__

    def copied(self) -> Callable[..., Any]:
        """The same function of a copy of the module, which checks the parameters."""
        with self._lock:
            module = copy.deepcopy(self._module)

        def call(params: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(params, Mapping):
                raise TypeError(
                    "params must come first: the dictionary that torch_to_jax returned "
                    "beside the function"
                )
            found = {name: tuple(p.shape) for name, p in params.items()}
            if found != self._shapes:
                expected = f"those of the module, {self._shapes}"
                raise ValueError(f"params must have {expected}, got {found}")
            return self._called(module, params, args, kwargs)

        return call

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        # One call at a time: in it the module holds the parameters.
        with self._lock:
            return self._called(self._module, params, args, kwargs)

    def _called(self, module: nn.Module, params: Any, args: tuple, kwargs: dict) -> Any:
        """The output, of a module whose buffers stay what they are."""
        before = {name: (b, b._version) for name, b in module.named_buffers()}
        state = {place: p for name, p in params.items() for place in self._places[name]}
        # Tied ones by name: by itself torch leaves what a module is called with in it,
        # where a part of the module is there twice.
        output = torch.func.functional_call(
            module, state, args, kwargs, tie_weights=False
        )
        after = dict(module.named_buffers())
        for name, (buffer, version) in before.items():
            if after.get(name) is not buffer or buffer._version != version:
                raise ValueError(no_edits(name))
        return output


def _places(module: nn.Module) -> dict[str, list[str]]:
    """The names of all places in a module that a parameter stands in, by its first."""
    firsts: dict[int, str] = {}
    places: dict[str, list[str]] = {}
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(
            prefix, recurse=False, remove_duplicate=False
        ):
            first = firsts.setdefault(id(parameter), name)
            places.setdefault(first, []).append(name)
    return places


def _check_held(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise ValueError(
            f"fn must have parameters with shapes, and {name} has none: call it"
        )
    if tensor.device.type != "cpu":
        raise ValueError(
            f"fn must be on the CPU, and {name} is on {tensor.device}: fn.cpu()"
        )
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if tensor.requires_grad and tensor.dtype == torch.float64 and not wide:
        raise ValueError(
            f"fn has {name} in torch.float64, which JAX would round to 32 bits: before "
            'the first array, jax.config.update("jax_enable_x64", True); or fn.float()'
        )


def _array(parameter: nn.Parameter) -> jax.Array:
    # A copy: training in torch would go on in the array.
    return jnp.array(jax.dlpack.from_dlpack(parameter.detach().contiguous()))
