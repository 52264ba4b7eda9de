"""Two trainings compared: every step judged, and what parts first explained."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from diffkm_torch.agreement.steps._hints import hints
from diffkm_torch.agreement.steps._lockstep import Lockstep, Taken, in_dtype
from diffkm_torch.agreement.steps._report import Parting, Step, StepsReport
from diffkm_torch.agreement.steps._scene import Scene
from diffkm_torch.agreement.steps._sides import (
    JaxSide,
    Key,
    Result,
    Task,
    TorchSide,
    TorchTraining,
)
from diffkm_torch.agreement.steps._verdicts import Results, worst_entry

Sides = tuple[JaxSide, TorchSide]

# Of a random loss the value changes by more than this share.
REPEATABLE = 1e-5


def run(
    sides: Sides, batches: list[tuple], dtype: str, tol: float, *, with_float32: bool
) -> StepsReport:
    """Judges in a dtype; shows each side's own error in float32 beside it."""
    task = sides[0].task
    steps: list[Step] = []
    parting, one_sided, compared = None, set(), set()
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        _check_repeatable(sides[1], task, batches[0], dtype)
        lockstep = Lockstep(sides, batches, dtype, tol)
        narrow = _Narrow(sides) if with_float32 else None
        for taken in lockstep.steps():
            if taken.step == 1:
                _check_finite(taken)
            one_sided |= taken.one_sided
            compared |= {field for _, field, _ in taken.verdicts}
            if parting is None and taken.parts:
                parting = _parting(lockstep, taken)
            errors = narrow.errors(batches[taken.step - 1], taken) if narrow else None
            steps.append(_step(taken, errors, has_parted=parting is not None))
    training = lockstep.base[1]
    return StepsReport(
        dtype=dtype,
        steps=tuple(steps),
        parting=parting,
        matches={m.path: m.name for m in (*task.matches, *task.held)},
        not_compared=tuple(sorted(_left_out(compared, one_sided, training))),
    )


def _left_out(
    compared: set[str], one_sided: set[tuple[str, str]], training: TorchTraining
) -> Iterator[str]:
    """Fields of a state that were not compared, by the names of their side."""
    names = {training.names[field] for field in compared if field in training.names}
    theirs = {training.names[field] for side, field in one_sided if side == "torch"}
    yield from (f"{name} of torch" for name in (theirs | training.left) - names)
    yield from (f"{field} of optax" for side, field in one_sided if side == "optax")


class _Narrow:
    """Both sides in float32, with x64 off."""

    def __init__(self, sides: Sides) -> None:
        with jax.enable_x64(False):
            start = sides[0].task.start
            self.trainings = [side.start(start, "float32") for side in sides]

    def errors(self, batch: tuple, taken: Taken) -> tuple[float, float]:
        """Of each side the distance of its parameters from those in float64."""
        found = []
        with jax.enable_x64(False):
            batch = in_dtype(batch, "float32")
            for training, wide in zip(self.trainings, taken.base, strict=True):
                result = training.step(batch)
                found.append(_distance(result, wide))
        return found[0], found[1]


def _distance(narrow: Result, wide: Result) -> float:
    """‖narrow − wide‖ / ‖wide‖ of all parameters together."""
    keys = [key for key in wide if key[0] == "parameter"]
    gap = sum(np.sum((narrow[key].astype(np.float64) - wide[key]) ** 2) for key in keys)
    size = sum(np.sum(wide[key] ** 2) for key in keys)
    return float(np.sqrt(gap / (size or 1)))


def _step(
    taken: Taken, errors: tuple[float, float] | None, *, has_parted: bool
) -> Step:
    scaled: dict[str, float] = {}
    for (kind, *_), found in taken.verdicts.items():
        scaled[kind] = max(scaled.get(kind, 0.0), found.scaled)
    rows = [found.unresolved for found in taken.verdicts.values()]
    verdict = "agree" if taken.is_resolved else "unresolved"
    losses = [float(result["loss", "", ""]) for result in taken.base]
    parameters = (f for key, f in taken.verdicts.items() if key[0] == "parameter")
    return Step(
        step=taken.step,
        jax_loss=losses[0],
        torch_loss=losses[1],
        scaled=scaled,
        floor=max((found.floor for found in parameters), default=0.0),
        num_rows=sum(len(r) for r in rows),
        num_unresolved=sum(int(r.sum()) for r in rows),
        jax_error=None if errors is None else errors[0],
        torch_error=None if errors is None else errors[1],
        verdict="parts" if has_parted else verdict,
    )


def _parting(lockstep: Lockstep, taken: Taken) -> Parting:
    task = lockstep.sides[0].task
    keys = taken.parts
    kind, field, path = key = keys[0]
    index = worst_entry(key, taken.base, taken.verdicts[key].parts)
    match = next((m for m in task.matches if m.path == path), None)
    there = index
    if match is not None and len(index) == len(match.shape):
        places = np.arange(np.prod(match.shape, dtype=int)).reshape(match.shape)
        at = np.argwhere(match.to_torch(places) == places[index])[0]
        there = tuple(int(i) for i in at)
    values = [float(result[key][index]) for result in taken.base]
    training = lockstep.base[1]
    return Parting(
        step=taken.step,
        kind=kind,
        path=path,
        name="" if match is None else match.name,
        field=field,
        torch_field=training.names.get(field, ""),
        index=index,
        torch_index=there,
        jax_value=values[0],
        torch_value=values[1],
        scaled=taken.verdicts[key].parted,
        others=tuple(dict.fromkeys(_named(k) for k in keys[1:] if k[0] == kind)),
        hint="; ".join(filter(None, _hints(lockstep, taken))),
    )


def _named(key: Key) -> str:
    return " ".join(filter(None, [key[1], key[2]]))


def _hints(lockstep: Lockstep, taken: Taken) -> list[str]:
    training = lockstep.base[1]
    if taken.parts[0][0] == "loss":
        return [_transposed(lockstep, taken.base)] if taken.step == 1 else []
    matches = lockstep.sides[0].task.matches
    starts = {m.path: a for m, a in zip(matches, lockstep.start, strict=False)}
    scene = Scene(
        step=taken.step,
        base=taken.base,
        before=taken.before,
        start=starts,
        groups=training.groups,
        keys=taken.parts,
        max_norm=lockstep.sides[1].max_norm,
        without_gradient=training.without_gradient,
    )
    return list(hints(scene))


def _transposed(lockstep: Lockstep, base: Results) -> str:
    """Whether the losses agree where torch's start has square matrices transposed."""
    task, side = lockstep.sides[0].task, lockstep.sides[1]
    square = [
        i
        for i, m in enumerate(task.matches)
        if len(m.shape) == 2 and len({*m.shape}) == 1
    ]
    wanted = float(base[0]["loss", "", ""])
    for which in [*([i] for i in square), square]:
        start = list(lockstep.start)
        for i in which:
            start[i] = start[i].T
        loss = side.start(start, lockstep.dtype).loss(lockstep.batches[0])
        if which and abs(float(loss.detach()) - wanted) <= lockstep.tol * abs(wanted):
            paths = ", ".join(task.matches[i].path for i in which)
            return f"with {paths} transposed the losses agree: the axes in match"
    return ""


def _check_repeatable(side: TorchSide, task: Task, batch: tuple, dtype: str) -> None:
    batch = in_dtype(batch, dtype)
    first, second = (
        float(side.start(task.start, dtype).loss(batch).detach()) for _ in range(2)
    )
    if abs(first - second) > REPEATABLE * abs(first):
        raise ValueError(
            "torch_loss must return the same for the same module and batch, but "
            f"returned {first:.9g} and {second:.9g}: module.eval() for dropout; draw "
            "what is random beforehand, into batches"
        )


def _check_finite(taken: Taken) -> None:
    for name, result in zip(("jax_loss", "torch_loss"), taken.base, strict=True):
        loss = float(result["loss", "", ""])
        if not np.isfinite(loss):
            raise ValueError(f"{name} must be finite at the start, got {loss}")
