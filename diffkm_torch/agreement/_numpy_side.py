"""The NumPy side: values, and gradients by hand or by differences of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
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

# The error of the differences is h⁴ from the fifth derivative and eps/h from rounding.
STEP = float(np.finfo(np.float64).eps) ** (1 / 5)
# Of the inputs together: each costs four calls.
MAX_ENTRIES = 4096


class NumpySide:
    """The NumPy function.

    Args:
        fn: Of (parameters, args, kwargs), the arguments NumPy arrays, to arrays.
        vjp: None, or the gradients by hand: of (cotangents, *args, **kwargs), the
            cotangents in the tree that `fn` returns, to a tree of the gradients.
        task: What is asked.
        whose: The argument that the function was given as.
    """

    framework = "numpy"

    def __init__(
        self, fn: Callable, vjp: Callable | None, task: Task, whose: str
    ) -> None:
        self.fn, self.vjp, self.task, self.whose = fn, vjp, task, whose
        self.by_differences = vjp is None

    def outputs(self, arrays: Arrays) -> tuple[Outputs, bool]:
        """What the function returns."""
        with error_notes(self.whose, arrays):
            leaves = self._leaves(self._output(arrays), arrays)
        return outputs_of(*leaves, lambda dtype: dtype.name), True

    def values(self, arrays: Arrays, *, jit: bool = True) -> Arrays:
        """The floating outputs."""
        with error_notes(self.whose, arrays):
            return self._floats(arrays)

    def evaluate(
        self, arrays: Arrays, seeds: Seeds, keys: Iterable[Key], *, jit: bool
    ) -> Result:
        """Outputs and gradients."""
        with error_notes(self.whose, arrays):
            output = self._output(arrays)
            floating, other = self._leaves(output, arrays)
            if self.vjp is None:
                gradients = self._differences(arrays, seeds.cotangents)
            else:
                gradients = self._by_hand(output, list(floating), arrays, seeds)
        found = [*floating.values(), *other.values(), *gradients]
        return dict(zip(keys, found, strict=True))

    def remarks(self, arrays: Arrays) -> Iterator[str]:
        """How its gradients were found."""
        if self.by_differences:
            yield "has its gradients by differences of its values, in float64"

    def how_to_repeat(self) -> str:
        """Noise is an argument."""
        return DRAW_ONCE

    def _output(self, arrays: Arrays) -> Any:
        return self.task.arguments.call(self.fn, [a.copy() for a in arrays])

    def _leaves(
        self, output: Any, arrays: Arrays
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The floating ones in the dtype of the arrays: NumPy widens what it will."""
        dtype = np.result_type(*(a for a in arrays if a.dtype.kind == "f"))
        floating, other = named_leaves(
            output,
            np.ndarray | np.generic,
            self.whose,
            "np.asarray",
            lambda leaf: leaf.dtype.kind == "f",
        )
        floating = {name: np.asarray(a, dtype) for name, a in floating.items()}
        return floating, {name: np.asarray(a) for name, a in other.items()}

    def _floats(self, arrays: Arrays) -> Arrays:
        return list(self._leaves(self._output(arrays), arrays)[0].values())

    def _differences(self, arrays: Arrays, cotangents: Arrays) -> Arrays:
        """Of each output in each input that moves.

        ∂f/∂x ≈ (8 (f(x + h) − f(x − h)) − (f(x + 2h) − f(x − 2h))) / 12 h
        """
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
        moving = self.task.moving
        num_entries = sum(wide[i].size for i in moving)
        if num_entries > MAX_ENTRIES:
            raise ValueError(
                f"args must hold at most {MAX_ENTRIES} entries for differences, got "
                f"{num_entries}: take smaller arrays, fewer of them by wrt, or give "
                "the gradients by hand, as (fn, vjp)"
            )
        found = [[np.zeros_like(wide[i]) for i in moving] for _ in cotangents]
        for place, i in enumerate(moving):
            for entry in np.ndindex(wide[i].shape):
                h = STEP * max(1.0, abs(float(wide[i][entry])))
                ends = [self._moved(wide, i, entry, s * h) for s in (1, -1, 2, -2)]
                for o, (ct, *values) in enumerate(zip(cotangents, *ends, strict=True)):
                    near, far = values[0] - values[1], values[2] - values[3]
                    found[o][place][entry] = np.sum(ct * (8 * near - far)) / (12 * h)
        return [
            gradient.astype(arrays[i].dtype)
            for of_output in found
            for gradient, i in zip(of_output, moving, strict=True)
        ]

    def _moved(self, arrays: Arrays, i: int, entry: tuple, step: float) -> Arrays:
        moved = arrays[i].copy()
        moved[entry] += step
        return self._floats(combine(arrays, [i], [moved]))

    def _by_hand(
        self, output: Any, floating: list[str], arrays: Arrays, seeds: Seeds
    ) -> Arrays:
        """What `vjp` returns, for each output with zeros for the others."""
        paths, tree = jax.tree_util.tree_flatten_with_path(output)
        names = [f"output{jax.tree_util.keystr(path)}" for path, _ in paths]
        zeros = [np.zeros_like(leaf) for _, leaf in paths]
        found = []
        for name, cotangent in zip(floating, seeds.cotangents, strict=True):
            leaves = combine(zeros, [names.index(name)], [cotangent])
            seed = jax.tree.unflatten(tree, leaves)

            def gradients(_: Any, args: tuple, kwargs: dict, seed: Any = seed) -> Any:
                assert self.vjp is not None
                return self.vjp(seed, *args, **kwargs)

            given = self.task.arguments.call(gradients, [a.copy() for a in arrays])
            found += self._checked(jax.tree.leaves(given), arrays)
        return found

    def _checked(self, leaves: list[Any], arrays: Arrays) -> Arrays:
        moving = [arrays[i] for i in self.task.moving]
        shapes, given = [a.shape for a in moving], [np.shape(a) for a in leaves]
        if given != shapes:
            raise ValueError(
                f"{self.whose}'s vjp must return the gradients in "
                f"{', '.join(self.task.inputs)}, of shapes {shapes}, got {given}"
            )
        found = zip(leaves, moving, strict=True)
        return [np.asarray(leaf, a.dtype) for leaf, a in found]
