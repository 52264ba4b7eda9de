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
from diffkm_torch.agreement import Report, compare_gradients


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
    """A row for every mirrored function, or for those named, and for each variant."""
    data = arrays()
    for name in mirrored():
        if names and name not in names:
            continue
        for variant in variants(name):
            options = ", ".join(f"{key}={value}" for key, value in variant.items())
            label = f"{name}({options})"
            try:
                report = compare_gradients(
                    call(diffkm_jax, name, variant),
                    call(diffkm_torch, name, variant),
                    kwargs=arguments(name, variant, data),
                    order=order,
                    jit=jit,
                )
            except Exception as error:
                yield Row(label, None, f"{type(error).__name__}: {error}")
            else:
                yield Row(label, report)


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
