"""Trainings of both sides in step: from the start, and from starts beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from diffkm_torch.agreement.steps._sides import (
    KINDS,
    Arrays,
    JaxSide,
    JaxTraining,
    Key,
    Result,
    TorchSide,
    TorchTraining,
)
from diffkm_torch.agreement.steps._verdicts import Results, Verdicts, judge

# Starts moved by one unit in the last place. What is only rounding may fall on the same
# side in a few of them, as a sign that Adam makes a whole step of: before rows are said
# to part, more are tried.
FEW, MORE = 3, 8

Trainings = tuple[JaxTraining, TorchTraining]


@dataclass(frozen=True)
class Taken:
    """A step that both sides took, and the verdicts on what it left.

    Attributes:
        step: Counted from 1.
        base: What both sides left.
        before: What they left in the step before, {} before the first.
        verdicts: Of every array that both have.
        num_lost: Rows that would part, had not a gradient been lost to rounding before.
        one_sided: Fields of a state that only one side has, each after its side.
    """

    step: int
    base: Results
    before: Results
    verdicts: dict[Key, Verdicts]
    num_lost: int
    one_sided: set[tuple[str, str]]

    @property
    def parts(self) -> list[Key]:
        """The arrays that part, in the order of a step."""
        keys = [key for key, found in self.verdicts.items() if found.parts.any()]
        return sorted(keys, key=lambda key: KINDS.index(key[0]))

    @property
    def is_resolved(self) -> bool:
        """Whether of losses, gradients and parameters some rows could be judged."""
        if self.num_lost:
            return False
        judged = dict.fromkeys((kind for kind in KINDS if kind != "state"), False)
        for (kind, *_), found in self.verdicts.items():
            if kind != "state":
                judged[kind] |= bool((~found.unresolved).any())
        return all(judged.values())


class Lockstep:
    """Both sides, trained side by side; what is kept is that of one step."""

    def __init__(
        self,
        sides: tuple[JaxSide, TorchSide],
        batches: Sequence[tuple],
        dtype: str,
        tol: float,
        seed: int = 0,
    ) -> None:
        self.sides, self.dtype, self.tol = sides, dtype, tol
        self.eps = float(np.finfo(dtype).eps)
        self.rng = np.random.default_rng(seed)
        self.start = [a.astype(dtype) for a in sides[0].task.start]
        self.batches = [in_dtype(batch, dtype) for batch in batches]
        self.base = self._trainings(self.start)
        self.moved: list[tuple[Trainings, int]] = []
        self.has_parted = self.is_lost = False
        self.scales: dict[str, float] = {}

    def steps(self) -> Iterator[Taken]:
        """Takes the steps; after the first that parts no rounding is followed."""
        self._move(FEW, 0)
        before: Results = ({}, {})
        for i, batch in enumerate(self.batches):
            base = self._take(self.base, batch)
            if i == 0:
                self.scales = _scales(base, self.base[1])
                base = base[0], self._scaled(base[1])
            results = self._moved_results(i)
            taken = self._taken(i, base, before, results)
            if taken.parts and not self.has_parted:
                results += self._moved_results_of_more(i)
                taken = self._taken(i, base, before, results)
            self.is_lost |= any(v.saturated.any() for v in taken.verdicts.values())
            self.has_parted |= bool(taken.parts)
            if self.has_parted:
                self.moved = []
            yield taken
            before = base

    def _trainings(self, arrays: Arrays) -> Trainings:
        ours, theirs = self.sides
        return ours.start(arrays, self.dtype), theirs.start(arrays, self.dtype)

    def _move(self, number: int, done: int) -> None:
        """Begins trainings from moved starts, on moved batches, up to a step."""
        for _ in range(number):
            seed = int(self.rng.integers(2**32))
            rng = np.random.default_rng(seed)
            trainings = self._trainings([self._by_unit(a, rng) for a in self.start])
            self.moved.append((trainings, seed))
            for i in range(done):
                self._advance(trainings, seed, i)

    def _advance(self, trainings: Trainings, seed: int, i: int) -> Results:
        rng = np.random.default_rng([seed, i])
        moved = jax.tree.map(lambda a: self._by_unit(a, rng), self.batches[i])
        return self._take(trainings, moved)

    def _moved_results(self, i: int) -> list[Results]:
        return [self._advance(trainings, seed, i) for trainings, seed in self.moved]

    def _moved_results_of_more(self, i: int) -> list[Results]:
        if len(self.moved) > FEW:
            return []
        self._move(MORE, i)
        return [self._advance(*moved, i) for moved in self.moved[FEW:]]

    def _by_unit(self, a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The array moved by one unit in the last place; zeros stay, for masks."""
        if a.dtype.kind != "f":
            return a
        return (a * (1 + self.eps * rng.choice([-1.0, 1.0], size=a.shape))).astype(
            a.dtype
        )

    def _take(self, trainings: Trainings, batch: Any) -> Results:
        ours, theirs = (training.step(batch) for training in trainings)
        return ours, self._scaled(theirs)

    def _scaled(self, result: Result) -> Result:
        if not self.scales:
            return result
        return {
            key: array * self.scales.get(key[2], 1.0) if key[1] == "trace" else array
            for key, array in result.items()
        }

    def _taken(
        self, i: int, base: Results, before: Results, results: list[Results]
    ) -> Taken:
        ours, theirs = base
        matches = self.sides[0].task.matches
        starts = {m.path: a for m, a in zip(matches, self.start, strict=False)}
        verdicts: dict[Key, Verdicts] = {}
        is_lost, num_lost = self.is_lost, 0
        for key in [key for key in ours if key in theirs]:
            kind, field, path = key
            start = starts[path] if kind == "parameter" else None
            precision = (0.0, 0.0) if field == "count" else (self.eps, self.tol)
            unit = self._unit(ours) if kind == "gradient" else 0.0
            found = judge(key, base, start, results, *precision, unit)
            if is_lost and found.parts.any():
                num_lost += int(found.parts.sum())
                found = found.without_parts()
            verdicts[key] = found
            is_lost |= bool(found.saturated.any())
        one_sided = _one_sided(ours, theirs)
        return Taken(i + 1, base, before, verdicts, num_lost, one_sided)

    def _unit(self, result: Result) -> float:
        """The unit roundoff of a gradient: eps · |loss| / largest |start|."""
        number = len(self.sides[0].task.matches)
        size = max(np.abs(a).max(initial=0) for a in self.start[:number])
        loss = abs(float(result["loss", "", ""]))
        return float(self.eps * loss / size) if size else 0.0


def in_dtype(batch: Any, dtype: str) -> Any:
    """The batch with its floating arrays in a dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, batch)


def _scales(base: Results, training: TorchTraining) -> dict[str, float]:
    """What torch's momentum is to be multiplied with, by path, {} if with nothing.

    Where optax has the learning rate before the momentum, as in `optax.rmsprop`, its
    trace is −lr times torch's.
    """
    ours, theirs = base
    found: dict[str, float] = {}
    for key in ours:
        _, field, path = key
        if field == "trace" and key in theirs and ours[key].any():
            found[path] = -float(training.groups[path]["lr"])
            if not np.allclose(ours[key], found[path] * theirs[key], atol=0):
                return {}
    return found


def _one_sided(ours: Result, theirs: Result) -> set[tuple[str, str]]:
    """Fields of the state that only one side has, each after its side."""
    mine, other = ({field for _, field, _ in r if field} for r in (ours, theirs))
    optax_only = {("optax", field) for field in mine - other}
    return optax_only | {("torch", field) for field in other - mine}
