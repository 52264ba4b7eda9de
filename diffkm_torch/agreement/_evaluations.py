"""Both sides at the inputs, at inputs a little away, and in the other precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from diffkm_torch.agreement._seeds import Arrays, Seeds
from diffkm_torch.agreement._task import Key, Result, Side

# Both sides'.
Results = tuple[Result, Result]
# Of the 53 bits of float64.
FEWER_BITS = 44, 40


@dataclass(frozen=True)
class Nearby:
    """What both sides return at inputs that float32 holds, in both precisions.

    Attributes:
        narrow: In float32: at the inputs rounded to it, and at those moved by one unit
            in its last place, there and back.
        wide: In float64 at the same.
    """

    narrow: Sequence[Results]
    wide: Sequence[Results]


@contextmanager
def precision_of(dtype: str) -> Iterator[None]:
    """JAX with float64 where that is asked for, else as it is."""
    if dtype == "float64":
        with jax.enable_x64(True):
            yield
    else:
        yield


class Evaluator:
    """Evaluates both sides, each thing once; arrays and seeds are in float64."""

    def __init__(
        self,
        sides: tuple[Side, Side],
        arrays: Arrays,
        seeds: Seeds,
        keys: Sequence[Key],
        jit: bool,
        rng: np.random.Generator,
    ) -> None:
        self.sides, self.arrays, self.seeds, self.keys = sides, arrays, seeds, keys
        self.jit = jit
        self._signs = int(rng.integers(2**32))
        self._bases: dict[str, Results] = {}
        self._moved: dict[str, list[Results]] = {}

    def base(self, dtype: str) -> Results:
        """At the inputs."""
        if dtype not in self._bases:
            self._bases[dtype] = self._at(dtype)
        return self._bases[dtype]

    def moved(self, dtype: str) -> list[Results]:
        """At inputs moved by one unit in the last place, there and back.

        Where there is a tie, one of the two breaks it.
        """
        if dtype not in self._moved:
            moves = [partial(self._move, number=n, dtype=dtype) for n in (1, -1)]
            self._moved[dtype] = [self._at(dtype, move) for move in moves]
        return self._moved[dtype]

    @cached_property
    def rounded(self) -> list[Results]:
        """In float64 at inputs with fewer bits, where exact ties stay ties."""
        return [self._at("float64", partial(_rounded, bits=b)) for b in FEWER_BITS]

    @cached_property
    def nearby(self) -> Nearby | None:
        """In both precisions, None where a function is of one only."""

        def moved(a: np.ndarray, number: int) -> np.ndarray:
            return _narrow(self._move(_narrow(a), number, "float32"))

        changes = _narrow, partial(moved, number=1), partial(moved, number=-1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wide = [self._at("float64", change) for change in changes]
                narrow = [self.base("float32")]
                narrow += [self._at("float32", change) for change in changes[1:]]
        except Exception:
            return None  # Nobody asked for it.
        return Nearby(narrow, wide)

    def uncompiled(self, side: int, dtype: str) -> Result:
        """One side at the inputs, without jit."""
        with precision_of(dtype):
            given = self._changed(dtype, lambda a: a)
            return self.sides[side].evaluate(*given, self.keys, jit=False)

    def _at(
        self,
        dtype: str,
        change: Callable[[np.ndarray], np.ndarray] = lambda a: a,
    ) -> Results:
        """With all floating inputs and seeds changed; every move has the same signs."""
        self._rng = np.random.default_rng(self._signs)
        given = self._changed(dtype, change)
        with precision_of(dtype):
            ours, theirs = (
                side.evaluate(*given, self.keys, jit=self.jit) for side in self.sides
            )
        return ours, theirs

    def _changed(
        self, dtype: str, change: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Arrays, Seeds]:
        def to(a: np.ndarray) -> np.ndarray:
            return change(a).astype(dtype) if a.dtype.kind == "f" else a

        return list(map(to, self.arrays)), self.seeds.mapped(to)

    def _move(self, a: np.ndarray, number: int, dtype: str) -> Any:
        eps = np.finfo(dtype).eps
        return a * (1 + number * eps * self._rng.choice([-1.0, 1.0], size=a.shape))


def _narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).astype(np.float64)


def _rounded(array: np.ndarray, bits: int) -> np.ndarray:
    """The array with so many bits of each number left."""
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)
