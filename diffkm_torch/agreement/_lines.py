"""What both sides return along a line through the inputs, as one number of another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffkm_torch._leaves import combine
from diffkm_torch.agreement._evaluations import Evaluator
from diffkm_torch.agreement._seeds import Arrays
from diffkm_torch.agreement._task import Side, Task

Line = Callable[[float], float]


class Lines:
    """The lines of a derivative, of both sides; all in float64.

    Attributes:
        input: What is differentiated in.
    """

    def __init__(
        self,
        task: Task,
        evaluator: Evaluator,
        what: tuple[str, tuple[str, ...]],
    ) -> None:
        self.task, self.evaluator = task, evaluator
        self.output, self.inputs = what
        self.number = task.inputs.index(self.inputs[-1])
        self.which = task.moving[self.number]
        self.input = evaluator.arrays[self.which]

    def along_input(self, direction: np.ndarray) -> list[Line]:
        """Of what a gradient is the gradient of, contracted with its seed."""
        seeds = self.evaluator.seeds
        number = self._output_number()
        if len(self.inputs) == 1:
            return self._lines(direction, seeds.cotangents[number], self._value)
        first = self.task.inputs.index(self.inputs[0])
        seed = seeds.second[number * len(self.task.inputs) + first]
        return self._lines(direction, seed, self._gradient)

    def along_tangent(self, weights: np.ndarray) -> list[Line]:
        """Of the output, contracted with weights, along the tangent of the input."""
        tangent = self.evaluator.seeds.tangents[self.number]
        return self._lines(tangent, weights, self._value)

    def _lines(
        self,
        direction: np.ndarray,
        seed: np.ndarray,
        of: Callable[[Side, Arrays], np.ndarray],
    ) -> list[Line]:
        def line(side: Side) -> Line:
            def at(distance: float) -> float:
                moved = self.input + distance * direction
                arrays = combine(self.evaluator.arrays, [self.which], [moved])
                return float(np.sum(seed * of(side, arrays)))

            return at

        return [line(side) for side in self.evaluator.sides]

    def _output_number(self) -> int:
        names = [name for kind, name, _ in self.evaluator.keys if kind == "value"]
        return names.index(self.output)

    def _value(self, side: Side, arrays: Arrays) -> np.ndarray:
        return side.values(arrays)[self._output_number()]

    def _gradient(self, side: Side, arrays: Arrays) -> np.ndarray:
        found = side.evaluate(
            arrays, self.evaluator.seeds, self.evaluator.keys, jit=self.evaluator.jit
        )
        return found["gradient", self.output, self.inputs[0]]
