"""The comparison in one dtype: every array of both sides judged, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffkm_torch.agreement._diagnosis import (
    likeness,
    lone_entries,
    who_is_not_finite,
    who_is_wrong,
    who_rounds,
)
from diffkm_torch.agreement._evaluations import Evaluator, Results, precision_of
from diffkm_torch.agreement._lines import Lines
from diffkm_torch.agreement._outputs import Outputs, check_same_outputs
from diffkm_torch.agreement._pairs import pair_of
from diffkm_torch.agreement._report import Pair
from diffkm_torch.agreement._rows import as_rows, difference, row_max
from diffkm_torch.agreement._seeds import seeds
from diffkm_torch.agreement._task import Key, Side, Task, keys_of
from diffkm_torch.agreement._verdicts import (
    DISAGREE,
    NOISE,
    UNRESOLVED,
    Judgement,
    errors_of,
    judge,
)

# The inputs may be drawn from the same seed as the cotangents, and what is projected on
# its own input vanishes in many a gradient.
SALT = 0x6B6D
# Of a random function the values change by more than this share of the largest.
REPEATABLE = 1e-3
# Differences of values are judged no closer than that, of the largest entry of a row.
DIFFERENCES = 1e-6


class Comparison:
    """The comparison of two sides; `names` are what they are called in a report."""

    def __init__(
        self,
        sides: tuple[Side, Side],
        names: tuple[str, str],
        task: Task,
        dtype: str,
        cotangent: Any,
        seed: int,
        jit: bool,
    ) -> None:
        self.sides, self.names, self.task, self.jit = sides, names, task, jit
        self.first = dtype
        self.outputs, self.is_attached = self._outputs(dtype)
        rng = np.random.default_rng([seed, SALT])
        arrays = task.arguments.arrays("float64")
        shapes = {name: shape for name, (shape, _) in self.outputs.floating.items()}
        moving = [arrays[i] for i in task.moving]
        self.keys = keys_of(task, self.outputs)
        self.evaluator = Evaluator(
            sides,
            arrays,
            seeds(cotangent, shapes, moving, rng),
            list(self.keys),
            jit,
            rng,
        )

    def pairs(
        self, dtype: str, tolerances: Mapping[str, float], *, eager: bool
    ) -> Iterator[Pair]:
        """A pair for every array, in the order of the keys."""
        if dtype != self.first:
            self.outputs, _ = self._outputs(dtype)
        base = self.evaluator.base(dtype)
        self._check_attached(base)
        bases = {"": base}
        if eager and any(side.framework == "jax" for side in self.sides):
            bases["only without jit"] = self._eager(base, dtype)
        self._check_repeatable(bases, dtype)
        for key in self.keys:
            judgements = {
                note: judge(
                    key,
                    found,
                    self.evaluator,
                    dtype,
                    self._precision(key, dtype, tolerances),
                    partial(self._scale, key, base),
                )
                for note, found in bases.items()
            }
            bad = [n for n, found in judgements.items() if DISAGREE in found.verdicts]
            which = bad[0] if bad else ""
            note = "only under jit" if bad == [""] and len(bases) > 1 else which
            yield self._pair(key, dtype, bases[which], judgements[which], note)

    def _outputs(self, dtype: str) -> tuple[Outputs, tuple[bool, bool]]:
        arrays = self.task.arguments.arrays(dtype)
        with precision_of(dtype):
            (ours, mine), (theirs, other) = (
                side.outputs(arrays) for side in self.sides
            )
        check_same_outputs(ours, theirs)
        return ours, (mine, other)

    def _eager(self, base: Results, dtype: str) -> Results:
        """The results with JAX's without jit."""
        found = list(base)
        for i, side in enumerate(self.sides):
            if side.framework == "jax":
                found[i] = self.evaluator.uncompiled(i, dtype)
        return found[0], found[1]

    def _scale(self, key: Key, base: Results) -> float:
        """The size of a derivative, by those of its output and inputs.

            max|y| · ∏ max|x_i| / std(x_i)²

        A derivative well below it says that the output hardly depends on the input. An
        output that float32 loses is the rest of numbers of the size of the inputs.
        """
        name, inputs = self.keys[key]
        value = "value", name, ""
        size = row_max(as_rows(base[0][value])).max(initial=0)
        nearby = self.evaluator.nearby
        if (
            nearby is not None
            and errors_of(value, nearby).max(initial=0) > NOISE * size
        ):
            arrays = map(as_rows, self.evaluator.arrays)
            size = max(size, *(row_max(a).max(initial=0) for a in arrays))
        for i, moving in self.task.arguments.moving.items():
            spread, array = _spread(self.evaluator.arrays[i]), self.evaluator.arrays[i]
            largest = row_max(as_rows(array)).max(initial=0) or spread
            size *= (largest / spread**2) ** inputs.count(moving)
        return float(size)

    def _precision(
        self, key: Key, dtype: str, tolerances: Mapping[str, float]
    ) -> tuple[float, float]:
        """Unit roundoff and tolerance, by the narrowest dtype on the way."""
        name, _ = self.keys[key]
        if name in self.outputs.other:
            return 0.0, 0.0
        dtypes = self.outputs.floating[name][1], dtype
        eps = {dtype: float(jnp.finfo(dtype).eps) for dtype in dtypes}
        narrowest = max(eps, key=lambda dtype: eps[dtype])
        tol = tolerances.get(narrowest, 10 * eps[narrowest])
        if key[0] == "gradient" and any(s.by_differences for s in self.sides):
            tol = max(tol, DIFFERENCES)
        return eps[narrowest], max(tol, tolerances[dtype])

    def _pair(
        self, key: Key, dtype: str, base: Results, judgement: Judgement, note: str
    ) -> Pair:
        nearby = self.evaluator.nearby if dtype == "float32" else None
        remarks = [note]
        if DISAGREE in judgement.verdicts:
            remarks += self._remarks(key, dtype, base, judgement)
        elif UNRESOLVED in judgement.verdicts:
            remarks.append(who_rounds(self.names, judgement.rounding))
        if judgement.num_hidden:
            remarks.append(
                f"{judgement.num_hidden} entries are NaN or infinite in both"
            )
        note = "; ".join(filter(None, remarks))
        wide = None if nearby is None else nearby.wide[0]
        return pair_of(dtype, key, base, wide, judgement, note)

    def _remarks(
        self, key: Key, dtype: str, base: Results, judgement: Judgement
    ) -> Iterator[str]:
        kind, *_ = key
        both = [np.asarray(result[key], np.float64) for result in base]
        yield likeness(self.names, both[0], both[1], judgement.num_patterns)
        if kind != "value" and dtype == "float64":
            with precision_of(dtype):
                yield self._who(key, both, judgement.num_patterns)

    def _who(self, key: Key, both: list[np.ndarray], num_patterns: int) -> str:
        """Who is wrong, by the slopes of either side's own values."""
        lines = Lines(self.task, self.evaluator, self.keys[key])
        scale = _spread(lines.input)
        if num_patterns and key[0] == "tangent":
            return ""
        if num_patterns:
            along = lines.along_input(lone_entries(both))
            return who_is_not_finite(self.names, along, both, scale)
        delta = both[0] - both[1]
        length = float(np.linalg.norm(delta))
        direction = delta / (length or 1.0)
        expected = [float(np.sum(array * direction)) for array in both]
        is_tangent = key[0] == "tangent"
        along = (lines.along_tangent if is_tangent else lines.along_input)(direction)
        return who_is_wrong(self.names, along, expected, length, scale)

    def _check_attached(self, base: Results) -> None:
        has_gradient = [
            any(a.any() for (kind, *_), a in result.items() if kind == "gradient")
            for result in base
        ]
        for i, side in enumerate(self.sides):
            if not self.is_attached[i] and has_gradient[1 - i]:
                other = self.sides[1 - i].whose
                raise ValueError(
                    f"{side.whose} must return what depends on its inputs, but no "
                    f"output requires a gradient, and {other}'s gradient is not zero: "
                    "take out the .detach(), .data, .item(), .numpy(), "
                    "torch.no_grad() or torch.tensor(...) on the way"
                )

    def _check_repeatable(self, bases: dict[str, Results], dtype: str) -> None:
        """Compiled, what NumPy draws is a constant: JAX is called without jit."""
        arrays = self.task.arguments.arrays(dtype)
        for i, side in enumerate(self.sides):
            if side.framework == "jax" and self.jit and len(bases) == 1:
                continue
            first = list(bases.values())[-1][i]
            with precision_of(dtype):
                again = side.values(arrays, jit=False)
            for name, array in zip(self.outputs.floating, again, strict=True):
                rows = as_rows(first["value", name, ""])
                apart = np.abs(difference(rows, as_rows(array))).max(initial=0)
                if apart > REPEATABLE * row_max(rows).max(initial=0):
                    raise ValueError(
                        f"{side.whose} must return the same for the same arguments, "
                        f"but {name} changed by {apart:.3g}: {side.how_to_repeat()}"
                    )


def _spread(array: np.ndarray) -> float:
    """The standard deviation of an array; if that is 0 its largest entry, or 1."""
    finite = array[np.isfinite(array)]
    spread = (np.std(finite) or np.abs(finite).max()) if finite.size else 1
    return float(spread or 1)
