"""What a comparison found: a table for people, a dict for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """One array of both sides: an output, or the derivative of one in one input.

    Attributes:
        dtype: Of the inputs of this run, "float64" or "float32".
        kind: "value"; "gradient", by reverse mode; "tangent", by forward mode; or
            "second", the gradient of a gradient.
        output: Path of the output; of a second derivative, of the gradient.
        input: Path of the input, "" for a value.
        shape: Of the array.
        difference: The largest |first − second side|, in the unit of the array.
        scaled: That over the largest entry among all arrays of this kind and output.
        against_floor: The largest difference over the noise floor of its row.
        cosine: Of the two arrays as vectors; None where one is zero.
        num_off: Entries that differ by more than rounding explains.
        num_entries: All entries.
        num_rows: Rows, each of which is judged by itself.
        num_unresolved: Rows of which rounding may be more than 1 %, or that hold no
            finite number: not judged.
        num_kinks: Rows that jump where an input moves by rounding: not judged.
        worst: Index of the worst entry, None if all are equal.
        values: Of both sides there.
        errors: Of each side the largest |it − the same function in float64|, scaled
            as `scaled`; None in float64 and where that could not be run.
        verdict: "disagree" if a row does; else "kink" or "unresolved" if a row is;
            else "agree". An array without entries is "unresolved".
        note: What the difference looks like, and who is wrong if that shows; or whose
            rounding leaves a row without a verdict.
    """

    dtype: str
    kind: str
    output: str
    input: str
    shape: tuple[int, ...]
    difference: float
    scaled: float
    against_floor: float
    cosine: float | None
    num_off: int
    num_entries: int
    num_rows: int
    num_unresolved: int
    num_kinks: int
    worst: tuple[int, ...] | None
    values: tuple[float, float] | None
    errors: tuple[float, float] | None
    verdict: str
    note: str = ""

    @property
    def name(self) -> str:
        """What was compared, as d output / d arg0."""
        if self.kind == "value":
            return self.output
        arrow = "along" if self.kind == "tangent" else "/"
        return f"d {self.output} {arrow} d {self.input}"


@dataclass(frozen=True)
class Report:
    """What `compare_gradients` found; printed, it is a table.

    Attributes:
        pairs: One for every dtype, output and input.
        held: Arguments that were given as they are, by name: not arrays.
        seed: Of the cotangents and of the perturbations.
        names: Of the two sides: "jax" and "torch", or as "torch 1" and "torch 2".
        remarks: On the functions: arrays that they close over, parameters that are
            held, gradients that are differences.
    """

    pairs: tuple[Pair, ...]
    held: dict[str, str]
    seed: int
    names: tuple[str, str] = ("jax", "torch")
    remarks: tuple[str, ...] = ()

    @property
    def agree(self) -> bool:
        """Whether no pair disagrees, and nothing is `unresolved`.

        Single rows that are not judged are counted in `unjudged`.
        """
        return not self.disagreements and not self.unresolved

    @property
    def unresolved(self) -> tuple[str, ...]:
        """The kinds, "gradient" for one, of which no row could be judged.

        Values are among them only if no derivative could be judged either.
        """
        judged: dict[str, int] = {}
        for p in self.pairs:
            rows = p.num_rows - p.num_unresolved - p.num_kinks
            judged[p.kind] = judged.get(p.kind, 0) + rows
        nothing = not any(judged.values())
        return tuple(
            k for k, n in judged.items() if not n and (k != "value" or nothing)
        )

    @property
    def disagreements(self) -> tuple[Pair, ...]:
        """The pairs that disagree."""
        return tuple(p for p in self.pairs if p.verdict == "disagree")

    @property
    def unjudged(self) -> float:
        """The share of rows without a verdict; 1 where there is no row."""
        rows = sum(p.num_rows for p in self.pairs)
        left_out = sum(p.num_unresolved + p.num_kinks for p in self.pairs)
        return left_out / rows if rows else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The report in numbers, strings, lists and dicts, as JSON wants it."""
        return {
            "agree": self.agree,
            "unjudged": self.unjudged,
            "seed": self.seed,
            "sides": list(self.names),
            "held": dict(self.held),
            "remarks": list(self.remarks),
            "pairs": [asdict(pair) | {"name": pair.name} for pair in self.pairs],
        }

    def __repr__(self) -> str:
        """A table: a line for every pair, and one more where there is a remark."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        bad, total = len(self.disagreements), len(self.pairs)
        judged = f"{100 * (1 - self.unjudged):.3g} % of the rows judged"
        verdict = "Gradients agree in"
        if bad:
            verdict = f"GRADIENTS DISAGREE in {bad} of"
        elif self.unresolved:
            what = "Nothing" if self.unjudged == 1 else f"No {self.unresolved[0]}"
            verdict = f"{what} could be judged in"
        yield f"{verdict} {total} comparisons; {judged}"
        width = max([len(p.name) for p in self.pairs] + [4])
        line = f"{{:<7}} {{:<{width}}} {{:<11}} {{:>8}} {{:>8}} {{:>8}} {{:>8}} {{:>7}}"
        line += " {:>7} {:>7} {}"
        yield line.format(
            "dtype", "what", "shape", "max|Δ|", "scaled", "/floor", "cosine", "off",
            f"err {self.names[0]}", self.names[1], "verdict",
        )  # fmt: skip
        for p in self.pairs:
            yield line.format(
                p.dtype,
                p.name,
                str(p.shape).replace(" ", ""),
                f"{p.difference:.1e}",
                f"{p.scaled:.1e}",
                f"{p.against_floor:.1e}",
                "-" if p.cosine is None else f"{p.cosine:.5f}",
                p.num_off,
                *("-" if e is None else f"{e:.0e}" for e in p.errors or (None, None)),
                p.verdict,
            ).rstrip()
            yield from _remarks(p, self.names)
        yield from self.remarks
        if self.held:
            held = ", ".join(f"{name} = {value}" for name, value in self.held.items())
            yield f"held constant: {held}"


def _remarks(pair: Pair, names: tuple[str, str]) -> Iterator[str]:
    if pair.verdict == "disagree" and pair.values is not None:
        both = zip(names, pair.values, strict=True)
        values = ", ".join(f"{name} {value:.9g}" for name, value in both)
        yield f"        worst at {pair.worst}: {values}"
    if pair.num_unresolved or pair.num_kinks:
        counts = f"{pair.num_unresolved} unresolved, {pair.num_kinks} at a kink"
        yield f"        of {pair.num_rows} rows {counts}"
    if pair.note:
        yield f"        {pair.note}"
