"""The comparison in one dtype: what is evaluated where, and what is said of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_torch.agreement._diagnosis import likeness, who_is_wrong
from diffkm_torch.agreement._judge import (
    AGREE,
    DISAGREE,
    KINK,
    UNRESOLVED,
    Both,
    Evidence,
    Further,
    Judgement,
    as_rows,
    difference,
    judge,
    row_max,
)
from diffkm_torch.agreement._report import Pair
from diffkm_torch.agreement._sides import (
    Arrays,
    JaxSide,
    Key,
    Seeds,
    Task,
    TorchSide,
    check_same_outputs,
    origins_of,
)

# Choices of signs for the moves by one unit, each there and back: where there is a tie,
# one of the two breaks it.
NUM_MOVES = 2
SALT = 0x6B6D
OTHER = {"float64": "float32", "float32": "float64"}


class Run:
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
        self.task, self.dtype, self.jit = task, dtype, jit
        # Salted: the inputs may be drawn from the same seed, and what is projected on
        # its own input vanishes in many a gradient.
        self.rng = np.random.default_rng([seed, SALT])
        self.arrays = task.arguments.arrays(dtype)
        self.ours, self.theirs = sides
        self.outputs = self.ours.outputs(self.arrays)
        theirs, self.is_attached = self.theirs.outputs(self.arrays)
        check_same_outputs(self.outputs, theirs)
        self.seeds = self._seeds(cotangent)
        self.origins = origins_of(task, self.outputs)

    def _seeds(self, cotangent: Any) -> Seeds:
        moving = [self.arrays[i] for i in self.task.arguments.moving]

        def normal(shape: tuple[int, ...]) -> np.ndarray:
            return self.rng.normal(size=shape).astype(self.dtype)

        shapes = {name: s for name, (s, _) in self.outputs.floating.items()}
        if not isinstance(cotangent, str):
            cotangents = _given(cotangent, shapes, self.dtype)
        elif cotangent == "ones":
            cotangents = [np.ones(shape, self.dtype) for shape in shapes.values()]
        else:
            cotangents = [normal(shape) for shape in shapes.values()]
        second = [normal(a.shape) for _ in shapes for a in moving]
        return Seeds(cotangents, [normal(a.shape) for a in moving], second)

    def _changed(
        self, change: Callable[[np.ndarray], np.ndarray], dtype: str
    ) -> tuple[Arrays, Seeds]:
        def to(a: np.ndarray) -> np.ndarray:
            return change(a).astype(dtype) if a.dtype.kind == "f" else a

        return list(map(to, self.arrays)), self.seeds.mapped(to)

    def _at(
        self,
        change: Callable[[np.ndarray], np.ndarray] = lambda a: a,
        *,
        other: bool = False,
    ) -> Both:
        """What both return with all floating inputs and seeds changed."""
        if not other:
            return self._run(*self._changed(change, self.dtype))
        with jax.enable_x64(True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._run(*self._changed(change, OTHER[self.dtype]))

    def _run(self, arrays: Arrays, seeds: Seeds) -> Both:
        ours = self.ours.run(arrays, seeds, self.origins, jit=self.jit)
        return ours, self.theirs.run(arrays, seeds, self.origins)

    @cached_property
    def _other(self) -> Both | None:
        """What both return in the other precision, if they can be run in it."""
        try:
            return self._at(other=True)
        except Exception:
            # Nobody asked for it: a function may be of one precision only.
            return None

    def _by_units(self, numbers: Sequence[int], *, other: bool = False) -> list[Both]:
        """With everything moved by units in the last place, by one choice of signs."""
        eps, seed = np.finfo(self.dtype).eps, self.rng.integers(2**32)
        found = []
        for number in numbers:
            signs = np.random.default_rng(seed)

            def move(a: np.ndarray, number: int = number, signs: Any = signs) -> Any:
                return a * (1 + number * eps * signs.choice([-1.0, 1.0], size=a.shape))

            found.append(self._at(move, other=other))
        return found

    @cached_property
    def _base(self) -> Both:
        return self._at()

    @cached_property
    def _moved(self) -> list[Both]:
        return [found for _ in range(NUM_MOVES) for found in self._by_units((1, -1))]

    @cached_property
    def _further(self) -> Further:
        if self.dtype == "float64":
            far = [self._at(partial(_rounded, bits=bits)) for bits in (44, 40)]
            return Further(self._base, self._moved, far, self._other)
        wide = self._other is not None
        return Further(
            center=self._other or self._base,
            near=self._by_units((1, -1), other=wide),
            far=self._by_units((64, -64), other=wide),
            other=self._other,
        )

    def pairs(self, tolerances: dict[str, float]) -> Iterator[Pair]:
        """A pair for every array, in the order of the keys."""
        self._check_attached()
        self._check_repeatable()
        bases = {"": self._base}
        if self.jit:
            eager = self.ours.run(self.arrays, self.seeds, self.origins, jit=False)
            bases["only without jit"] = eager, self._base[1]
        for key in self.origins:
            precision = self._precision(key, tolerances)
            found = {}
            for note, base in bases.items():
                rest = self._moved, lambda: self._further, self._natural
                found[note] = judge(key, Evidence(self.dtype, base, *rest), *precision)
            bad = [n for n, judged in found.items() if DISAGREE in judged.verdicts]
            which = bad[0] if bad else ""
            note = "only under jit" if bad == [""] and self.jit else which
            yield self._pair(key, bases[which], found[which], note)

    def _natural(self, key: Key, all_noise: bool) -> float:
        """The size of an output, over the spread of the inputs it is differentiated in.

        A derivative well below it says that the output hardly depends on the input. An
        output that is noise is the rest of numbers of the size of the inputs.
        """
        root, inputs = self.origins[key]
        output = np.nan_to_num(np.asarray(self._base[0]["value", root, ""], np.float64))
        size = np.abs(output).max(initial=0)
        if all_noise:
            size = max(size, *(row_max(as_rows(a)).max(initial=0) for a in self.arrays))
        for i, name in self.task.arguments.moving.items():
            finite = self.arrays[i][np.isfinite(self.arrays[i])]
            spread = (np.std(finite) or np.abs(finite).max()) if finite.size else 1
            size /= float(spread or 1) ** inputs.count(name)
        return float(size) if inputs else 0.0

    def _precision(self, key: Key, tolerances: dict[str, float]) -> tuple[float, float]:
        """Unit roundoff and tolerance, by the narrowest dtype on the way."""
        root, _ = self.origins[key]
        if root in self.outputs.other:
            return 0.0, 0.0
        dtypes = self.outputs.floating[root][1], self.dtype
        eps = {dtype: float(jnp.finfo(dtype).eps) for dtype in dtypes}
        narrowest = max(eps, key=lambda dtype: eps[dtype])
        tol = tolerances.get(narrowest, 10 * eps[narrowest])
        return eps[narrowest], max(tol, tolerances[self.dtype])

    def _pair(self, key: Key, base: Both, judged: Judgement, note: str) -> Pair:
        kind, output, name = key
        shape = base[0][key].shape
        rows = [as_rows(found[key]) for found in base]
        delta = np.abs(difference(*rows))
        scale = max(
            row_max(as_rows(found[other])).max(initial=0)
            for found in base
            for other in found
            if other[:2] == key[:2]
        )
        errors: list[float | None] = [None, None]
        if self.dtype == "float32" and self._other is not None:
            pairs = zip(base, self._other, strict=True)
            wide = [
                np.abs(difference(as_rows(a[key]), as_rows(b[key]))) for a, b in pairs
            ]
            errors = [_over(float(e.max(initial=0)), scale) for e in wide]
        disagrees = DISAGREE in judged.verdicts
        if disagrees:
            note = "; ".join(filter(None, [note, *self._remarks(key, base, judged)]))
        worst = None
        if delta.any() or judged.off.any():
            # Where one side alone is finite the difference is larger than any.
            is_lone = np.isfinite(rows[0]) != np.isfinite(rows[1])
            size = np.where(is_lone, np.inf, delta)
            flat = int(np.where(judged.off, size, -1 if disagrees else size).argmax())
            worst = tuple(int(i) for i in np.unravel_index(flat, shape))
        verdicts = list(judged.verdicts)
        order = DISAGREE, KINK, UNRESOLVED
        norms = [float(np.linalg.norm(np.nan_to_num(r))) for r in rows]
        return Pair(
            dtype=self.dtype,
            kind=kind,
            output=output,
            input=name,
            shape=shape,
            difference=float(delta.max(initial=0)),
            scaled=_over(float(delta.max(initial=0)), scale),
            against_floor=judged.against_floor,
            cosine=float(np.vdot(*map(np.nan_to_num, rows)) / norms[0] / norms[1])
            if all(norms) and np.isfinite(norms).all()
            else None,
            num_off=int(judged.off.sum()),
            num_entries=delta.size,
            num_rows=len(verdicts),
            num_unresolved=verdicts.count(UNRESOLVED),
            num_kinks=verdicts.count(KINK),
            worst=worst,
            jax_value=None if worst is None else float(base[0][key][worst]),
            torch_value=None if worst is None else float(base[1][key][worst]),
            jax_error=errors[0],
            torch_error=errors[1],
            verdict=next((v for v in order if v in verdicts), AGREE),
            note=note,
        )

    def _remarks(self, key: Key, base: Both, judged: Judgement) -> Iterator[str]:
        kind, output, name = key
        both = [np.asarray(found[key], np.float64) for found in base]
        yield likeness(both[0], both[1], judged.num_patterns)
        if kind == "gradient" and self.dtype == "float64" and not judged.num_patterns:
            index = list(self.outputs.floating).index(output)
            moving = self.task.arguments.moving
            yield who_is_wrong(
                (self.ours.values, self.theirs.values),
                both,
                self.arrays,
                next(i for i in moving if moving[i] == name),
                index,
                self.seeds.cotangents[index],
            )

    def _check_attached(self) -> None:
        found = self._base[0].items()
        gradients = [a for (kind, *_), a in found if kind == "gradient"]
        if not self.is_attached and any(a.any() for a in gradients):
            raise ValueError(
                "torch_fn must return what depends on its inputs, but no output "
                "requires a gradient, and jax_fn's gradient is not zero: take out the "
                ".detach(), .data, .item(), .numpy(), torch.no_grad() or "
                "torch.tensor(...) on the way"
            )

    def _check_repeatable(self) -> None:
        again = self.theirs.run(self.arrays, self.seeds, self.origins)
        for (kind, name, _), array in self._base[1].items():
            if kind != "value":
                continue
            first, second = as_rows(array), as_rows(again[kind, name, ""])
            apart = np.abs(difference(first, second)).max(initial=0)
            if apart > 1e-3 * row_max(first).max(initial=0):
                raise ValueError(
                    f"torch_fn must return the same for the same arguments, but {name} "
                    f"changed by {apart:.3g}: draw its noise once, by NumPy, and hand "
                    "it in as an argument"
                )


def _given(cotangent: Any, shapes: dict[str, tuple[int, ...]], dtype: str) -> Arrays:
    """The cotangents of the user, one for every floating output."""
    found = {
        f"output{jax.tree_util.keystr(path)}": np.asarray(leaf, dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(cotangent)
    }
    given = {name: a.shape for name, a in found.items()}
    if given != shapes:
        raise ValueError(f"cotangent must have the shapes {shapes}, got {given}")
    return [found[name] for name in shapes]


def _rounded(array: np.ndarray, bits: int) -> np.ndarray:
    """The array with so many bits of each number left."""
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def _over(error: float, scale: float) -> float:
    return float(error / scale) if scale else error
