"""Cells of the campaign: what was tried, and what came of it, counted and printed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import pytest

OUTCOMES = "agreeing", "refused", "unresolved", "failing"


class Refused(Exception):
    """Raised by a check where a function refuses as its documentation says."""


class Unresolved(Exception):
    """Raised by a check where rounding explains any difference: nothing was judged."""


@dataclass(frozen=True)
class Cell:
    """One thing to try: a check that raises if it fails."""

    part: str
    kind: str
    label: str
    check: Callable[[], object]

    @property
    def group(self) -> str:
        """What shares programs: a function, of transforms at a dtype."""
        if self.part == "invariances":
            return ""
        return self.label if self.part == "transforms" else self.label.split()[0]

    @property
    def reproduction(self) -> str:
        """The command that runs this cell alone."""
        return (
            f"python -m tests.campaign {self.part} --only '{self.kind}: {self.label}'"
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a cell."""

    part: str
    kind: str
    label: str
    outcome: str
    message: str
    reproduction: str
    seconds: float


def run(cells: Iterator[Cell]) -> Iterator[Outcome]:
    """Tries cells one after another; any exception but the two above is a failure."""
    for cell in cells:
        outcome, message, begin = "agreeing", "", time.perf_counter()
        try:
            cell.check()
        except Refused:
            outcome = "refused"
        except Unresolved as error:
            outcome, message = "unresolved", str(error)
        except (Exception, pytest.fail.Exception) as error:
            outcome = "failing"
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
        yield Outcome(
            part=cell.part,
            kind=cell.kind,
            label=cell.label,
            outcome=outcome,
            message=message,
            reproduction=cell.reproduction,
            seconds=time.perf_counter() - begin,
        )


def sampled(cells: Iterator[Cell], groups: int, share: int) -> Iterator[Cell]:
    """A fixed part of the cells, drawn by their names.

    Of one in so many groups, which share programs, one in so many cells.
    """
    for cell in cells:
        if (
            _draw(cell.group) % groups
            == 0
            == _draw(f"{cell.kind} {cell.label}") % share
        ):
            yield cell


def _draw(name: str) -> int:
    return crc32(name.encode())


def print_table(outcomes: list[Outcome]) -> None:
    """Counts and times by part and kind, then every failure with its reproduction."""
    counts = Counter((o.part, o.kind, o.outcome) for o in outcomes)
    kinds = dict.fromkeys((o.part, o.kind) for o in outcomes)
    line = "{:<12} {:<28} {:>7} {:>9} {:>8} {:>11} {:>8} {:>7}"
    print(line.format("part", "kind", "tried", *OUTCOMES, "seconds"))
    for part, kind in kinds:
        cells = [counts[part, kind, outcome] for outcome in OUTCOMES]
        seconds = sum(o.seconds for o in outcomes if (o.part, o.kind) == (part, kind))
        print(line.format(part, kind, sum(cells), *cells, f"{seconds:.0f}"))
    cells = [sum(o.outcome == outcome for o in outcomes) for outcome in OUTCOMES]
    seconds = sum(o.seconds for o in outcomes)
    print(line.format("all", "", sum(cells), *cells, f"{seconds:.0f}"))
    for o in outcomes:
        if o.outcome == "failing":
            print(f"\n{o.part}: {o.kind}: {o.label}\n    {o.message}")
            print(f"    {o.reproduction}")


def write_json(outcomes: list[Outcome], path: Path) -> None:
    """All outcomes as a list of objects."""
    path.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
