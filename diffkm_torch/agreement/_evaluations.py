"""Both sides at the inputs, at inputs a little away, and in the other precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from diffkm_torch.agreement._evaluate import JaxSide, Key, Result, TorchSide
from diffkm_torch.agreement._seeds import Arrays, Seeds
from diffkm_torch.agreement._tolerances import Results, SecondLook
from diffkm_torch.agreement._verdicts import FAR_MOVE

# Choices of signs for the moves by one unit, each there and back: where there is a tie,
# one of the two breaks it.
NUM_MOVES = 2
# Of the 53 bits of float64.
FEWER_BITS = 44, 40
OTHER = {"float64": "float32", "float32": "float64"}


class Evaluator:
    """Evaluates both sides in one dtype, each thing once."""

    def __init__(
        self,
        sides: tuple[JaxSide, TorchSide],
        arrays: Arrays,
        seeds: Seeds,
        keys: Sequence[Key],
        dtype: str,
        jit: bool,
        rng: np.random.Generator,
    ) -> None:
        self.ours, self.theirs = sides
        self.arrays, self.seeds, self.keys = arrays, seeds, keys
        self.dtype, self.jit, self.rng = dtype, jit, rng

    @cached_property
    def base(self) -> Results:
        """At the inputs."""
        return self._at()

    @cached_property
    def moved(self) -> list[Results]:
        """At inputs moved by one unit in the last place, several times."""
        return [found for _ in range(NUM_MOVES) for found in self._by_units((1, -1))]

    @cached_property
    def other(self) -> Results | None:
        """At the inputs in the other precision, if both can be run in it."""
        try:
            return self._at(other=True)
        except Exception:
            # Nobody asked for it: a function may be of one precision only.
            return None

    @cached_property
    def second_look(self) -> SecondLook:
        """Further away."""
        if self.dtype == "float64":
            far = [self._at(partial(_rounded, bits=bits)) for bits in FEWER_BITS]
            return SecondLook(self.base, self.moved, far, self.other)
        wide = self.other is not None
        return SecondLook(
            center=self.other or self.base,
            near=self._by_units((1, -1), other=wide),
            far=self._by_units((FAR_MOVE, -FAR_MOVE), other=wide),
            other=self.other,
        )

    def eager(self) -> Result:
        """Of JAX at the inputs, without jit."""
        return self.ours.evaluate(self.arrays, self.seeds, self.keys, jit=False)

    def again(self) -> Result:
        """Of torch at the inputs, once more."""
        return self.theirs.evaluate(self.arrays, self.seeds, self.keys)

    def _at(
        self,
        change: Callable[[np.ndarray], np.ndarray] = lambda a: a,
        *,
        other: bool = False,
    ) -> Results:
        """With all floating inputs and seeds changed, or in the other precision."""
        if not other:
            return self._evaluate(change, self.dtype)
        with jax.enable_x64(True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._evaluate(change, OTHER[self.dtype])

    def _evaluate(
        self, change: Callable[[np.ndarray], np.ndarray], dtype: str
    ) -> Results:
        def to(a: np.ndarray) -> np.ndarray:
            return change(a).astype(dtype) if a.dtype.kind == "f" else a

        arrays, seeds = list(map(to, self.arrays)), self.seeds.mapped(to)
        ours = self.ours.evaluate(arrays, seeds, self.keys, jit=self.jit)
        return ours, self.theirs.evaluate(arrays, seeds, self.keys)

    def _by_units(
        self, numbers: Sequence[int], *, other: bool = False
    ) -> list[Results]:
        """With everything moved by units in the last place, by one choice of signs."""
        eps, seed = np.finfo(self.dtype).eps, self.rng.integers(2**32)
        found = []
        for number in numbers:
            signs = np.random.default_rng(seed)

            def move(a: np.ndarray, number: int = number, signs: Any = signs) -> Any:
                return a * (1 + number * eps * signs.choice([-1.0, 1.0], size=a.shape))

            found.append(self._at(move, other=other))
        return found


def _rounded(array: np.ndarray, bits: int) -> np.ndarray:
    """The array with so many bits of each number left."""
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)
