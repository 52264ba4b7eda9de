"""The JAX side: a function of arrays, compiled once for each program that it is."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_torch._leaves import combine
from diffkm_torch.agreement._outputs import Outputs, named_leaves, outputs_of
from diffkm_torch.agreement._seeds import Arrays, Seeds
from diffkm_torch.agreement._task import (
    DRAW_ONCE,
    Key,
    Result,
    Task,
    error_notes,
)

# What is compiled is kept by the text of the program, constants included, and not by
# the function: one that reads a variable that changed is another program.
MAX_PROGRAMS = 128
UNOPTIMIZED = {"xla_backend_optimization_level": 0}
_programs: OrderedDict[bytes, Callable] = OrderedDict()


class JaxSide:
    """The JAX function; its arrays and seeds are arguments of what is compiled."""

    framework = "jax"
    by_differences = False

    def __init__(self, fn: Callable, task: Task, whose: str) -> None:
        self.fn, self.task, self.whose = fn, task, whose
        self._programs: dict[tuple, Callable] = {}

    def outputs(self, arrays: Arrays) -> tuple[Outputs, bool]:
        """What the function returns, found without running it."""
        traced: list[Outputs] = []

        def trace(arrays: list) -> None:
            traced.append(outputs_of(*self._call(arrays), lambda dtype: dtype.name))

        with error_notes(self.whose, arrays):
            jax.eval_shape(trace, _arrays(arrays))
        return traced[0], True

    def values(self, arrays: Arrays, *, jit: bool = True) -> Arrays:
        """The floating outputs."""
        given = _arrays(arrays)
        found = (self._compiled(self._floats, given) if jit else self._floats)(given)
        return list(map(np.asarray, found))

    def evaluate(
        self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key], *, jit: bool
    ) -> Result:
        """Outputs and derivatives."""
        every = arrays, seeds.cotangents, seeds.tangents, seeds.second
        lists = tuple(map(_arrays, every))
        with error_notes(self.whose, arrays):
            call = self._compiled(self._evaluate, *lists) if jit else self._evaluate
            found = call(*lists)
        return dict(zip(keys, map(np.asarray, found), strict=True))

    def remarks(self, arrays: Arrays) -> Iterator[str]:
        """Arrays that the function closes over and that stay as they are."""
        closed = jax.make_jaxpr(self._floats)(_arrays(arrays))
        dtype = max((a.dtype for a in arrays if a.dtype.kind == "f"), key=_bits)
        for constant in _constants(closed):
            there = getattr(constant, "dtype", None)
            if there is None or not jnp.issubdtype(there, jnp.floating):
                continue
            if np.ndim(constant) and _bits(there) < _bits(dtype):
                shape = list(np.shape(constant))
                yield f"closes over {there.name}{shape}: an argument would be {dtype}"

    def how_to_repeat(self) -> str:
        """Noise is an argument."""
        return DRAW_ONCE

    def _compiled(self, function: Callable, *arguments: list) -> Callable:
        dtypes = tuple(a.dtype for arrays in arguments for a in arrays)
        if (function, dtypes) not in self._programs:
            # Of an argument that is not used nothing would be in the text.
            lowered = jax.jit(function, keep_unused=True).lower(*arguments)
            options = {} if self.task.optimize else UNOPTIMIZED
            self._programs[function, dtypes] = _program(lowered, options)
        return self._programs[function, dtypes]

    def _call(self, arrays: list) -> tuple[dict[str, Any], dict[str, Any]]:
        kind = jax.Array | np.ndarray | np.generic
        return named_leaves(
            self.task.arguments.call(self.fn, arrays),
            kind,
            self.whose,
            "jnp.asarray",
            lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating),
        )

    def _floats(self, arrays: list) -> list:
        return list(self._call(arrays)[0].values())

    def _evaluate(
        self, arrays: list, cotangents: list, tangents: list, second: list
    ) -> list:
        def function(moving: list) -> tuple[list, list]:
            leaves = self._call(combine(arrays, self.task.moving, moving))
            floating, other = (list(named.values()) for named in leaves)
            return floating, other

        def gradients(moving: list) -> tuple[list, list]:
            return _vjps(function, moving, cotangents)[1:]

        moving = [arrays[i] for i in self.task.moving]
        values, first, other = _vjps(function, moving, cotangents)
        found = [*values, *other, *first]
        if self.task.forward:
            zeros = [jnp.zeros_like(a) for a in moving]
            for i, tangent in enumerate(tangents):
                along = combine(zeros, [i], [tangent])
                found += jax.jvp(function, (moving,), (along,), has_aux=True)[1]
        if self.task.order == 2:
            found += _vjps(gradients, moving, second)[1]
        return found


def _arrays(arrays: Arrays) -> list[Any]:
    return list(map(jnp.asarray, arrays))


def _bits(dtype: Any) -> int:
    return jnp.finfo(dtype).bits


def _vjps(function: Callable, moving: list, seeds: list) -> tuple[list, list, list]:
    """The values, of each of them the gradients, and the rest.

    The function returns what is differentiated, by seed · d value / d moving, and what
    is not.
    """
    values, pullback, rest = jax.vjp(function, moving, has_aux=True)
    zeros = [jnp.zeros_like(value) for value in values]
    gradients = []
    for i, seed in enumerate(seeds):
        seed = seed.astype(values[i].dtype)
        gradients += pullback(combine(zeros, [i], [seed]))[0]
    return values, gradients, rest


def _program(lowered: Any, options: dict[str, Any]) -> Callable:
    """What is lowered, compiled by an earlier comparison or now."""
    text = lowered.as_text()
    # A callback is a number in the text, another function may have the same.
    if "callback" in text:
        return lowered.compile(options)
    key = hashlib.sha256(f"{options}{text}".encode()).digest()
    if key not in _programs:
        _programs[key] = lowered.compile(options)
        if len(_programs) > MAX_PROGRAMS:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


def _constants(closed: Any) -> Iterator[Any]:
    """The constants of a jaxpr, and of those inside it."""
    yield from getattr(closed, "consts", ())
    for equation in getattr(closed, "jaxpr", closed).eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "eqns"):
                    yield from _constants(inner)
