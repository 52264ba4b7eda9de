"""The mirror, function by function: by how much each differs from its twin.

The functions are found by introspection, so that what is new is compared, or fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import diffkm_jax
import diffkm_torch
from diffkm_torch._calls import arguments, arrays, call, variants
from diffkm_torch.agreement import Report
from diffkm_torch.agreement._arguments import arguments as as_arguments
from diffkm_torch.agreement._compare import report
from diffkm_torch.agreement._sides import functions
from diffkm_torch.agreement._task import Task


@dataclass(frozen=True)
class Row:
    """One line of the table: a function, how it was called, and what came of it."""

    name: str
    report: Report | None
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the twins agree."""
        return self.report is not None and self.report.agree

    def difference(self, dtype: str, *kinds: str) -> float:
        """The largest difference, over the largest entry of its kind and output."""
        pairs = self.report.pairs if self.report else ()
        found = (p.scaled for p in pairs if p.dtype == dtype and p.kind in kinds)
        return max(found, default=0.0)


def rows(
    names: Collection[str] = (), *, order: int = 1, jit: bool = False
) -> Iterator[Row]:
    """A row for every mirrored function, or for those named, and for each variant.

    JAX's side is one program, which is not optimized; with `jit` it is, and runs
    uncompiled as well.
    """
    data = arrays()
    for name in mirrored():
        if names and name not in names:
            continue
        for variant in variants(name):
            options = ", ".join(f"{key}={value}" for key, value in variant.items())
            label = f"{name}({options})"
            try:
                both = [call(m, name, variant) for m in (diffkm_jax, diffkm_torch)]
                given = functions((both[0], both[1]), None, None, None)
                kwargs = arguments(name, variant, data)
                read = as_arguments((), kwargs, None, {}, (), given.frameworks)
                task = Task(read, order, forward=False, optimize=jit)
                found = report(given, task, jit=True, eager=jit)
            except Exception as error:
                yield Row(label, None, f"{type(error).__name__}: {error}")
            else:
                yield Row(label, found)


# Of integers alone, which have no gradient to compare.
OF_INTEGERS = {"finite_scalar_values", "lookup_free_values"}


def mirrored() -> list[str]:
    """The functions of arrays that both packages have: softmax, estimators.rloo, ..."""
    names = []
    for space in ("", "estimators."):
        ours, theirs = diffkm_jax, diffkm_torch
        if space:
            ours, theirs = ours.estimators, theirs.estimators
        for name in sorted({*ours.__all__} & {*theirs.__all__}):
            if inspect.isfunction(inspect.unwrap(getattr(ours, name))):
                names.append(space + name)
    return [name for name in names if name not in OF_INTEGERS]
