"""The JAX half of the bridge: a function of flat arrays, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffkm_torch._leaves import combine

KINDS = jnp.floating, jnp.integer, jnp.bool_


def as_output(path: tuple, leaf: Any) -> Any:
    """The leaf as an array, checked."""
    if isinstance(leaf, bool | int | float):
        return jnp.asarray(leaf)
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in KINDS):
        found = type(leaf).__name__ if dtype is None else f"an array of {dtype}"
        where = f"fn(...){jax.tree_util.keystr(path)}"
        raise TypeError(
            f"fn must return arrays of real numbers, got {found} as {where}"
        )
    return leaf


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Input:
    """Stands for an input among the residuals, which torch keeps anyway."""

    index: int


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["kind"])
@dataclass(frozen=True)
class _Key:
    """Stands for random keys among the residuals, which torch cannot hold."""

    data: Any
    kind: str


def is_key(value: Any) -> bool:
    """Whether a value is a typed random key, or an array of some."""
    is_array = isinstance(value, jax.Array)
    return is_array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _is_floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _floating(tree: Any) -> tuple:
    return tuple(leaf for leaf in jax.tree.leaves(tree) if _is_floating(leaf))


class Program:
    """A function of (numbers, *arrays), and the programs of its derivatives.

    Numbers are floats and random keys, without derivative.

    Each is made once; `jax.jit` keeps what it compiles for other shapes.
    """

    def __init__(self, fn: Callable) -> None:
        self.fn = fn
        self.value = jax.jit(fn)
        self._made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _varied(self, numbers: tuple, arrays: Sequence, wanted: tuple) -> Callable:
        """The function of the wanted arrays: its floating outputs, and all of them."""

        def varied(*moving: Any) -> tuple[tuple, Any]:
            output = self.fn(numbers, *combine(arrays, wanted, moving))
            return _floating(output), output

        return varied

    def with_pullback(self, wanted: tuple[int, ...]) -> Callable:
        """The output, and its pullback to the wanted inputs as a tree of residuals."""

        def with_pullback(numbers: tuple, *arrays: Any) -> tuple[Any, Any]:
            varied = self._varied(numbers, arrays, wanted)
            _, pullback, output = jax.vjp(
                varied, *(arrays[i] for i in wanted), has_aux=True
            )
            index = {id(array): i for i, array in enumerate(arrays)}

            def kept(a: Any) -> Any:
                if is_key(a):
                    return _Key(jax.random.key_data(a), str(jax.random.key_impl(a)))
                return _Input(index[id(a)]) if id(a) in index else a

            return output, jax.tree.map(kept, pullback)

        return self._once(("pullback", wanted), lambda: jax.jit(with_pullback))

    def gradient(self, n: int, wanted: tuple[int, ...]) -> Program:
        """The program of (n inputs, cotangents): the gradients of the wanted inputs."""

        def gradient(numbers: tuple, *arrays: Any) -> tuple:
            varied = self._varied(numbers, arrays[:n], wanted)
            moving = [arrays[i] for i in wanted]
            return jax.vjp(varied, *moving, has_aux=True)[1](arrays[n:])

        return self._once(("gradient", n, wanted), lambda: Program(gradient))

    def tangent(self, n: int, wanted: tuple[int, ...]) -> Program:
        """The program of (n inputs, tangents of the wanted): those of the outputs."""

        def tangent(numbers: tuple, *arrays: Any) -> tuple:
            varied = self._varied(numbers, arrays[:n], wanted)
            moving = [arrays[i] for i in wanted]
            return jax.jvp(varied, moving, list(arrays[n:]), has_aux=True)[1]

        return self._once(("tangent", n, wanted), lambda: Program(tangent))

    def mapped(self, in_dims: tuple[int | None, ...]) -> Program:
        """The program of many problems, side by side along axes of the inputs."""

        def make() -> Program:
            return Program(jax.vmap(self.fn, in_axes=(None, *in_dims)))

        return self._once(("mapped", in_dims), make)


@partial(jax.jit, static_argnames="keep")
def pull_back(
    pullback: Any, inputs: list, cotangents: tuple, keep: tuple[int, ...]
) -> tuple:
    """Some of the gradients, by the residuals of a forward pass."""

    def restored(a: Any) -> Any:
        if isinstance(a, _Key):
            return jax.random.wrap_key_data(a.data, impl=a.kind)
        return inputs[a.index] if isinstance(a, _Input) else a

    whole = jax.tree.map(
        restored, pullback, is_leaf=lambda a: isinstance(a, _Input | _Key)
    )
    gradients = whole(cotangents)
    return tuple(gradients[i] for i in keep)
