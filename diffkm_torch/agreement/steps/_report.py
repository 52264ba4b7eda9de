"""What a comparison of trainings found: a table for people, a dict for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# Steps at either end of a long table, and around the one that parts.
ENDS, AROUND, MAX_LINES = 3, 2, 24
HEADS = "step", "loss jax", "loss torch"
COLUMNS = "loss", "gradient", "state", "parameter"


@dataclass(frozen=True)
class Step:
    """One step of both sides.

    Attributes:
        step: Counted from 1.
        jax_loss: Before the step.
        torch_loss: The same of torch.
        scaled: By kind ("loss", "gradient", "state", "parameter") the largest
            |jax − torch| over the largest entry of its row; of parameters over how far
            the row is from the start. Rows without a verdict are left out.
        floor: The largest noise floor of a row, in the same unit, of parameters.
        num_rows: Rows of all arrays.
        num_unresolved: Rows of which rounding may be more than 1 %: not judged.
        jax_error: ‖float32 − float64‖ / ‖float64‖ of all parameters of JAX; None unless
            both were run.
        torch_error: The same of torch.
        verdict: "agree"; "parts" from the first step that does; "unresolved" where of
            loss, gradients or parameters no row could be judged.
    """

    step: int
    jax_loss: float
    torch_loss: float
    scaled: dict[str, float]
    floor: float
    num_rows: int
    num_unresolved: int
    jax_error: float | None
    torch_error: float | None
    verdict: str


@dataclass(frozen=True)
class Parting:
    """The first array that differs by more than rounding.

    Attributes:
        step: Counted from 1.
        kind: "loss", "gradient", "state" or "parameter", in the order of a step.
        path: Of the array in JAX, "" of a loss.
        name: In torch.
        field: Of the state in optax, as "nu", else "".
        torch_field: The same in torch, as "exp_avg_sq".
        index: Of the worst entry in JAX's layout.
        torch_index: The same in torch's.
        jax_value: JAX's value there.
        torch_value: Torch's.
        scaled: |jax − torch| there, over the largest entry of the row, of a parameter
            over how far the row is from the start.
        others: Paths of further arrays of the kind that part in this step.
        hint: What the difference looks like, "" if that is not known.
    """

    step: int
    kind: str
    path: str
    name: str
    field: str
    torch_field: str
    index: tuple[int, ...]
    torch_index: tuple[int, ...]
    jax_value: float
    torch_value: float
    scaled: float
    others: tuple[str, ...]
    hint: str

    @property
    def what(self) -> str:
        """As gradient of Dense_0.kernel (0.weight in torch)."""
        if self.kind == "loss":
            return "loss"
        torch = self.name if self.name != self.path else ""
        what = self.kind
        if self.field:
            what = f"state {self.field}"
            torch = " of ".join(filter(None, [self.torch_field, torch]))
        return f"{what} of {self.path}" + (f" ({torch} in torch)" if torch else "")


@dataclass(frozen=True)
class StepsReport:
    """What `compare_steps` found; printed, it is a table.

    Attributes:
        dtype: In which the steps were judged.
        steps: One for every batch.
        parting: What parts first, None if nothing does.
        matches: The path in JAX and the name in torch of every parameter.
        not_compared: Fields of the optimizers' states that only one side has.
    """

    dtype: str
    steps: tuple[Step, ...]
    parting: Parting | None
    matches: dict[str, str]
    not_compared: tuple[str, ...]

    @property
    def agree(self) -> bool:
        """Whether no array parts, and no step is `unresolved`."""
        return self.parting is None and self.first_unresolved is None

    @property
    def first_step(self) -> int | None:
        """The first step that parts, counted from 1; None if none does."""
        return None if self.parting is None else self.parting.step

    @property
    def first_unresolved(self) -> int | None:
        """The first step that could not be judged, before any that parts."""
        found = (s.step for s in self.steps if s.verdict == "unresolved")
        return next(found, None)

    def to_dict(self) -> dict[str, Any]:
        """The report in numbers, strings, lists and dicts, as JSON wants it."""
        return {
            "agree": self.agree,
            "first_step": self.first_step,
            "first_unresolved": self.first_unresolved,
            "dtype": self.dtype,
            "steps": [asdict(step) for step in self.steps],
            "parting": None if self.parting is None else asdict(self.parting),
            "matches": dict(self.matches),
            "not_compared": list(self.not_compared),
        }

    def __repr__(self) -> str:
        """A line for every step, and what parts first."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield self._headline()
        line = "{:>5} {:>14} {:>14} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>7} {}"
        yield line.format(*HEADS, *COLUMNS, "floor", "err jax", "torch", "verdict")
        last = 0
        for s in self._shown():
            if s.step > last + 1:
                yield "  ..."
            last = s.step
            yield line.format(
                s.step,
                f"{s.jax_loss:.8g}",
                f"{s.torch_loss:.8g}",
                *(f"{s.scaled[k]:.1e}" if k in s.scaled else "-" for k in COLUMNS),
                f"{s.floor:.0e}",
                *(
                    "-" if e is None else f"{e:.0e}"
                    for e in (s.jax_error, s.torch_error)
                ),
                s.verdict,
            )
        yield from self._parting_lines()
        left_out = sum(s.num_unresolved for s in self.steps)
        if left_out:
            rows = sum(s.num_rows for s in self.steps)
            yield f"not judged: {left_out} of {rows} rows, rounding is all there is"
        if self.not_compared:
            yield f"not compared, one side only: {', '.join(self.not_compared)}"

    def _headline(self) -> str:
        number = len(self.steps)
        if self.parting is not None:
            where = f"STEPS PART at step {self.parting.step} of {number}"
            return f"{where}, first in {self.parting.what}"
        if self.first_unresolved is not None:
            judged = self.first_unresolved - 1
            return (
                f"No verdict from step {judged + 1} of {number} on: there rounding may "
                f"be more than 1 %; {judged} steps agree"
            )
        return f"Steps agree, all {number}"

    def _shown(self) -> list[Step]:
        if len(self.steps) <= MAX_LINES:
            return list(self.steps)
        middle = self.first_step or self.first_unresolved or 1
        last = len(self.steps) - ENDS

        def is_shown(step: int) -> bool:
            return step <= ENDS or step > last or abs(step - middle) <= AROUND

        return [s for s in self.steps if is_shown(s.step)]

    def _parting_lines(self) -> Iterator[str]:
        p = self.parting
        if p is None:
            return
        at = f"{list(p.index)}" if p.index else ""
        there = f", torch {list(p.torch_index)}" if p.index != p.torch_index else ""
        where = f" at {at}{there}" if at else ""
        values = f"jax {p.jax_value:.10g}, torch {p.torch_value:.10g}"
        yield f"first: {p.what}{where}: {values}, {p.scaled:.1e} of the row"
        if p.others:
            yield f"in the same step also {', '.join(p.others)}"
        if p.hint:
            yield f"hint: {p.hint}"
