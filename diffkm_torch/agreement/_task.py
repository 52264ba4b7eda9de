"""What is asked of both sides, and what each side can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from diffkm_torch.agreement._arguments import Arguments
from diffkm_torch.agreement._outputs import Outputs
from diffkm_torch.agreement._seeds import Arrays, Seeds

# (kind, output, input), as in ("gradient", "output['loss']", "arg0").
Key = tuple[str, str, str]
Result = dict[Key, np.ndarray]
DRAW_ONCE = "draw its noise once, by NumPy, and hand it in as an argument"


@dataclass(frozen=True)
class Task:
    """What is asked of both sides.

    Attributes:
        arguments: Of both.
        order: Of the derivatives.
        forward: Whether in forward mode, too.
        optimize: Whether JAX's programs are optimized, which takes most of the time of
            a comparison.
    """

    arguments: Arguments
    order: int
    forward: bool
    optimize: bool = True

    @property
    def moving(self) -> list[int]:
        """The inputs that are differentiated, by their index among all arrays."""
        return list(self.arguments.moving)

    @property
    def inputs(self) -> list[str]:
        """Their names."""
        return list(self.arguments.moving.values())


class Side(Protocol):
    """A function of arrays in one framework, and its derivatives.

    Attributes:
        framework: "jax", "torch" or "numpy".
        whose: The argument that the function was given as: "jax_fn" or "torch_fn".
        by_differences: Whether its gradients are differences of its values.
    """

    framework: str
    whose: str
    by_differences: bool

    def outputs(self, arrays: Arrays) -> tuple[Outputs, bool]:
        """What it returns, and whether any of that depends on the inputs."""
        ...

    def values(self, arrays: Arrays, *, jit: bool = True) -> Arrays:
        """The floating outputs."""
        ...

    def evaluate(
        self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key], *, jit: bool
    ) -> Result:
        """Outputs and derivatives; compiled, if the framework can and `jit` is set."""
        ...

    def remarks(self, arrays: Arrays) -> Iterator[str]:
        """What a reader of the report should know of the function."""
        ...

    def how_to_repeat(self) -> str:
        """What to do about a function that returns something else every time."""
        ...


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


@contextmanager
def error_notes(
    whose: str, arrays: Arrays, remarks: Iterable[str] = ()
) -> Iterator[None]:
    """Adds to an error whose function raised it, on what, and remarks on it."""
    try:
        yield
    except Exception as error:
        shapes = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
        error.add_note(f"This came of calling {whose} on arrays {shapes}.")
        for remark in remarks:
            error.add_note(remark)
        raise


def closed_over(fn: Any) -> Iterator[tuple[str, Any]]:
    """The names and values that a Python function holds beside its arguments."""
    while isinstance(fn, partial) or hasattr(fn, "__wrapped__"):
        if isinstance(fn, partial):
            yield from ((f"its argument {i}", a) for i, a in enumerate(fn.args))
            yield from fn.keywords.items()
        fn = fn.func if isinstance(fn, partial) else fn.__wrapped__
    code = getattr(fn, "__code__", None)
    if code is None:
        return
    cells = fn.__closure__ or ()
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # Not filled yet.
            continue
    for name in code.co_names:
        if name in fn.__globals__:
            yield name, fn.__globals__[name]
