"""The comparison in one dtype: every array of both sides judged, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffkm_torch.agreement._diagnosis import likeness, who_is_wrong
from diffkm_torch.agreement._evaluate import JaxSide, Key, Task, TorchSide, keys_of
from diffkm_torch.agreement._evaluations import Evaluator
from diffkm_torch.agreement._outputs import check_same_outputs
from diffkm_torch.agreement._pairs import pair_of
from diffkm_torch.agreement._report import Pair
from diffkm_torch.agreement._rows import as_rows, difference, row_max
from diffkm_torch.agreement._seeds import seeds
from diffkm_torch.agreement._tolerances import Evaluations, Judgement, Results, judge
from diffkm_torch.agreement._verdicts import DISAGREE

# The inputs may be drawn from the same seed as the cotangents, and what is projected on
# its own input vanishes in many a gradient.
SALT = 0x6B6D
# Of a random torch_fn the values change by more than this share of the largest.
REPEATABLE = 1e-3


class Comparison:
    """The comparison in one dtype."""

    def __init__(
        self,
        sides: tuple[JaxSide, TorchSide],
        task: Task,
        dtype: str,
        cotangent: Any,
        seed: int,
        jit: bool,
    ) -> None:
        self.sides, self.task, self.dtype, self.jit = sides, task, dtype, jit
        self.arrays = task.arguments.arrays(dtype)
        self.outputs = sides[0].outputs(self.arrays)
        theirs, self.is_attached = sides[1].outputs(self.arrays)
        check_same_outputs(self.outputs, theirs)
        rng = np.random.default_rng([seed, SALT])
        shapes = {name: shape for name, (shape, _) in self.outputs.floating.items()}
        moving = [self.arrays[i] for i in task.moving]
        self.seeds = seeds(cotangent, shapes, moving, dtype, rng)
        self.keys = keys_of(task, self.outputs)
        self.evaluator = Evaluator(
            sides, self.arrays, self.seeds, list(self.keys), dtype, jit, rng
        )

    def pairs(self, tolerances: dict[str, float]) -> Iterator[Pair]:
        """A pair for every array, in the order of the keys."""
        self._check_attached()
        self._check_repeatable()
        base = self.evaluator.base
        bases = {"": base}
        if self.jit:
            bases["only without jit"] = self.evaluator.eager(), base[1]
        for key in self.keys:
            precision = self._precision(key, tolerances)
            judgements = {
                note: judge(key, self._evaluations(base), *precision)
                for note, base in bases.items()
            }
            bad = [n for n, found in judgements.items() if DISAGREE in found.verdicts]
            which = bad[0] if bad else ""
            note = "only under jit" if bad == [""] and self.jit else which
            yield self._pair(key, bases[which], judgements[which], note)

    def _evaluations(self, base: Results) -> Evaluations:
        return Evaluations(
            dtype=self.dtype,
            base=base,
            moved=self.evaluator.moved,
            second_look=lambda: self.evaluator.second_look,
            scale=self._scale,
        )

    def _scale(self, key: Key, all_noise: bool) -> float:
        """The size of an output, over the spread of the inputs it is differentiated in.

            max|y| / ∏ std(x_i)

        A derivative well below it says that the output hardly depends on the input. An
        output that is noise is the rest of numbers of the size of the inputs.
        """
        name, inputs = self.keys[key]
        output = self.evaluator.base[0]["value", name, ""]
        output = np.nan_to_num(np.asarray(output, np.float64))
        size = np.abs(output).max(initial=0)
        if all_noise:
            size = max(size, *(row_max(as_rows(a)).max(initial=0) for a in self.arrays))
        for i, moving in self.task.arguments.moving.items():
            finite = self.arrays[i][np.isfinite(self.arrays[i])]
            spread = (np.std(finite) or np.abs(finite).max()) if finite.size else 1
            size /= float(spread or 1) ** inputs.count(moving)
        return float(size) if inputs else 0.0

    def _precision(self, key: Key, tolerances: dict[str, float]) -> tuple[float, float]:
        """Unit roundoff and tolerance, by the narrowest dtype on the way."""
        name, _ = self.keys[key]
        if name in self.outputs.other:
            return 0.0, 0.0
        dtypes = self.outputs.floating[name][1], self.dtype
        eps = {dtype: float(jnp.finfo(dtype).eps) for dtype in dtypes}
        narrowest = max(eps, key=lambda dtype: eps[dtype])
        tol = tolerances.get(narrowest, 10 * eps[narrowest])
        return eps[narrowest], max(tol, tolerances[self.dtype])

    def _pair(self, key: Key, base: Results, judgement: Judgement, note: str) -> Pair:
        wide = self.evaluator.other if self.dtype == "float32" else None
        if DISAGREE in judgement.verdicts:
            remarks = self._remarks(key, base, judgement)
            note = "; ".join(filter(None, [note, *remarks]))
        return pair_of(self.dtype, key, base, wide, judgement, note)

    def _remarks(self, key: Key, base: Results, judgement: Judgement) -> Iterator[str]:
        kind, output, name = key
        both = [np.asarray(result[key], np.float64) for result in base]
        yield likeness(both[0], both[1], judgement.num_patterns)
        is_finite = not judgement.num_patterns
        if kind == "gradient" and self.dtype == "float64" and is_finite:
            index = list(self.outputs.floating).index(output)
            yield who_is_wrong(
                [side.values for side in self.sides],
                both,
                self.arrays,
                self.task.moving[self.task.inputs.index(name)],
                index,
                self.seeds.cotangents[index],
            )

    def _check_attached(self) -> None:
        arrays = self.evaluator.base[0].items()
        gradients = [a for (kind, *_), a in arrays if kind == "gradient"]
        if not self.is_attached and any(a.any() for a in gradients):
            raise ValueError(
                "torch_fn must return what depends on its inputs, but no output "
                "requires a gradient, and jax_fn's gradient is not zero: take out the "
                ".detach(), .data, .item(), .numpy(), torch.no_grad() or "
                "torch.tensor(...) on the way"
            )

    def _check_repeatable(self) -> None:
        again = self.evaluator.again()
        for (kind, name, _), array in self.evaluator.base[1].items():
            if kind != "value":
                continue
            first, second = as_rows(array), as_rows(again[kind, name, ""])
            apart = np.abs(difference(first, second)).max(initial=0)
            if apart > REPEATABLE * row_max(first).max(initial=0):
                raise ValueError(
                    f"torch_fn must return the same for the same arguments, but {name} "
                    f"changed by {apart:.3g}: draw its noise once, by NumPy, and hand "
                    "it in as an argument"
                )
