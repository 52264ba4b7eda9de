"""Reports as tables for people and as lists for machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from diffkm_jax._printed import known

COLUMNS = (
    "estimator",
    "settings",
    "bias",
    "its error",
    "deviation",
    "cosine",
    "signal/noise",
    "found by",
)


def as_lists(tree: Any) -> Any:
    """A tree with Python numbers and nested lists in the place of arrays."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise ValueError("report must not be traced: return it from the program first")
    return jax.tree.map(lambda a: np.asarray(a).tolist(), tree)


def is_table(reports: Sequence[Any]) -> bool:
    """Whether there are numbers to print: not those of specs, or of other leaves."""
    return bool(reports) and all(map(_has_numbers, reports))


def _has_numbers(report: Any) -> bool:
    *fields, label = report
    settings = jax.tree.leaves(label.settings, is_leaf=lambda leaf: leaf is None)
    leaves = [*fields, *settings]
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return True  # The table says so.
    if known(*leaves) is None or any(getattr(a, "requires_grad", 0) for a in leaves):
        return False
    return np.ndim(report.exact) >= len(label.shape)


@np.errstate(over="ignore", invalid="ignore")
def table_of(reports: Sequence[Any]) -> str:
    """One line for every estimator and point of a grid, all problems as one vector."""
    leaves = jax.tree.leaves(list(reports))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        names = ", ".join(report.label.name for report in reports)
        return f"reports of {names}, traced: print what the program returns"
    lines = [COLUMNS, *(line for report in reports for line in _lines(report))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = "estimator", "settings", "found by"

    def row(cells: Iterable[str]) -> str:
        placed = (
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(COLUMNS, cells, widths, strict=True)
        )
        return "  ".join(placed).rstrip()

    return "\n".join([*map(row, lines), _note(reports)])


def _lines(report: Any) -> Iterable[tuple[str, ...]]:
    """The cells of a report, without those that a grid repeats."""
    axes = np.ndim(report.exact) - len(report.label.shape)
    points = np.shape(report.exact)[:axes]
    seen = None
    for point in np.ndindex(points):
        settings = _settings(report.label, point)
        line = report.label.name, settings, *_numbers(report, point)
        if line != seen:
            yield line
        seen = line


def _settings(label: Any, point: tuple) -> str:
    cells, ranks = [], dict(label.ranks)
    for name, value in label.settings.items():
        if name not in ranks:
            cells.append(f"{name} of {len(jax.tree.leaves(value))} arrays")
            continue
        array = np.asarray(value)
        array = array[point[: array.ndim - ranks[name]]]
        shown = f"={array.item():.4g}" if array.size == 1 else f" {array.shape}"
        cells.append(name + shown)
    cells += [f"{name}={value}" for name, value in label.fixed]
    return ", ".join(cells)


def _numbers(report: Any, point: tuple) -> tuple[str, ...]:
    found = lengths_of(report, point)
    how = "all draws" if found.pop("enumerated") else "samples"
    return *(f"{number:.3g}" for number in found.values()), how


def lengths_of(report: Any, point: tuple) -> dict[str, float]:
    """Lengths and angles at a point of a grid, all problems as one vector."""

    def vector(name: str) -> np.ndarray:
        return np.asarray(getattr(report, name))[point].astype(float)

    mean, exact = vector("mean"), vector("exact")
    length, deviation = np.linalg.norm(mean), np.sqrt(vector("variance").sum())
    lengths = length * np.linalg.norm(exact)
    cosine = float(np.sum(mean * exact) / lengths) if lengths else 0.0
    signal = 0.0 if not length else length / deviation if deviation else np.inf
    bias = np.linalg.norm(vector("bias"))
    enumerated = bool(np.asarray(report.enumerated)[point])
    # What a sum of estimates over all draws leaves of nothing.
    rounding = 64 * np.finfo(np.asarray(report.mean).dtype).eps
    if enumerated and bias < rounding * (np.linalg.norm(exact) + deviation):
        bias = 0.0
    return {
        "bias": float(bias),
        "bias_error": float(np.linalg.norm(vector("bias_error"))),
        "deviation": float(deviation),
        "cosine": min(cosine, 1.0),
        "snr": float(signal),
        "enumerated": enumerated,
    }


def _note(reports: Sequence[Any]) -> str:
    exact = np.asarray(reports[0].exact).astype(float)
    axes = exact.ndim - len(reports[0].label.shape)
    first = exact[(0,) * axes]
    reference = reports[0].label.reference
    what = f"gradient by {reference}" if reference else "exact gradient"
    return (
        f"Lengths of vectors in the unit of the cost; the {what} has "
        f"{np.linalg.norm(first):.3g}."
    )
