"""The comparison in one dtype: every array of both sides judged, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffkm_torch.agreement._diagnosis import likeness, who_is_wrong, who_rounds
from diffkm_torch.agreement._evaluations import Evaluator, Results, precision_of
from diffkm_torch.agreement._outputs import Outputs, check_same_outputs
from diffkm_torch.agreement._pairs import pair_of
from diffkm_torch.agreement._report import Pair
from diffkm_torch.agreement._rows import as_rows, difference, row_max
from diffkm_torch.agreement._seeds import seeds
from diffkm_torch.agreement._task import Key, Result, Side, Task, keys_of
from diffkm_torch.agreement._verdicts import DISAGREE, UNRESOLVED, Judgement, judge

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
        self.outputs, _ = self._outputs(dtype)
        base = self.evaluator.base(dtype)
        self._check_attached(base)
        self._check_repeatable(base, dtype)
        bases = {"": base}
        if eager and any(side.framework == "jax" for side in self.sides):
            bases["only without jit"] = self._eager(base, dtype)
        for key in self.keys:
            precision = self._precision(key, dtype, tolerances)
            judgements = {
                note: judge(
                    key, found, self.evaluator, dtype, precision, self._scale(key, base)
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
        """JAX's results without jit, of which two must be the same."""
        found = list(base)
        for i, side in enumerate(self.sides):
            if side.framework == "jax":
                found[i] = self.evaluator.once_more(i, dtype, jit=False)
        return found[0], found[1]

    def _scale(self, key: Key, base: Results) -> float:
        """The size of an output, over the spread of the inputs it is differentiated in.

            max|y| / ∏ std(x_i)

        A derivative well below it says that the output hardly depends on the input.
        """
        name, inputs = self.keys[key]
        size = row_max(as_rows(base[0]["value", name, ""])).max(initial=0)
        for i, moving in self.task.arguments.moving.items():
            array = self.evaluator.arrays[i]
            finite = array[np.isfinite(array)]
            spread = (np.std(finite) or np.abs(finite).max()) if finite.size else 1
            size /= float(spread or 1) ** inputs.count(moving)
        return float(size) if inputs else 0.0

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
        note = "; ".join(filter(None, remarks))
        wide = None if nearby is None else nearby.wide[0]
        return pair_of(dtype, key, base, wide, judgement, note)

    def _remarks(
        self, key: Key, dtype: str, base: Results, judgement: Judgement
    ) -> Iterator[str]:
        kind, output, name = key
        both = [np.asarray(result[key], np.float64) for result in base]
        yield likeness(self.names, *both, judgement.num_patterns)
        if kind == "gradient" and dtype == "float64" and not judgement.num_patterns:
            index = list(self.outputs.floating).index(output)
            with precision_of(dtype):
                yield who_is_wrong(
                    self.names,
                    [side.values for side in self.sides],
                    both,
                    self.task.arguments.arrays(dtype),
                    self.task.moving[self.task.inputs.index(name)],
                    index,
                    self.evaluator.seeds.cotangents[index],
                )

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

    def _check_repeatable(self, base: Results, dtype: str) -> None:
        for i, side in enumerate(self.sides):
            again = self.evaluator.once_more(i, dtype, jit=False)
            if side.framework == "jax" and self.jit:
                # Compiled, what NumPy draws is a constant: two calls without jit.
                first, again = again, self.evaluator.once_more(i, dtype, jit=False)
                self._check_same(side, first, again)
                continue
            self._check_same(side, base[i], again)

    def _check_same(self, side: Side, result: Result, again: Result) -> None:
        for (kind, name, _), array in result.items():
            if kind != "value":
                continue
            first, second = as_rows(array), as_rows(again[kind, name, ""])
            apart = np.abs(difference(first, second)).max(initial=0)
            if apart > REPEATABLE * row_max(first).max(initial=0):
                raise ValueError(
                    f"{side.whose} must return the same for the same arguments, but "
                    f"{name} changed by {apart:.3g}: {side.how_to_repeat()}"
                )
