"""Extremes in every argument of every function, and extreme shapes, in float32.

What a result may then be is said in `_oracle`. Every value is tried in all entries of
an argument and in one, for the result and for its gradient, and against torch; scalars
are tried as Python numbers too, of which those without meaning must be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.campaign._bench import contracted, programs
from tests.campaign._cells import Cell, Refused, Unresolved
from tests.campaign._judged import wide
from tests.campaign._oracle import (
    EPS,
    FLAGGED,
    TINY,
    assert_labels,
    assert_not_silent,
    assert_status,
    assert_twins_agree,
    in_domain,
    is_named,
    k_of,
    sizes_of_gradient,
    sizes_of_value,
    undecided,
)
from tests.campaign._shapes import shape_cells
from tests.campaign._subjects import Subject, subjects, twins
from tests.campaign._torch_only import torch_cells

SIZES = {
    "0": 0.0,
    "subnormal": 1e-40,
    "1e-38": 1e-38,
    "smallest normal": float(np.finfo(np.float32).tiny),
    "1e-18": 1e-18,
    "1e18": 1e18,
    "1e38": 1e38,
    "inf": np.inf,
}
VALUES = SIZES | {f"-{name}": -value for name, value in SIZES.items()} | {"nan": np.nan}
WHERE = "all", "one"


def replaced(given: dict, name: str, value: float, where: str) -> dict:
    """Arrays in float32, with a value in all entries of one of them, or in one."""
    arrays = {
        key: a if a.dtype == bool else np.asarray(a, np.float32)
        for key, a in given.items()
    }
    changed = arrays[name].copy()
    changed[(...,) if where == "all" else (0,) * changed.ndim] = value
    return arrays | {name: changed}


class Judge:
    """Results of a subject in float32 and float64, and their gradients."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        held = programs(subject)

        @jax.jit
        def both(moved: dict) -> tuple:
            gradient = jax.grad(held.scalar)(moved) if subject.promised else {}
            return held.value(moved), gradient

        self.both = both
        self.results = cache(self._results)

    def _results(self, name: str, value: str, where: str) -> tuple:
        given = replaced(self.subject.arrays, name, VALUES[value], where)
        moved = {k: a for k, a in given.items() if a.dtype != bool}
        found = self.both(moved)
        exact = {k: a.astype(np.float64) for k, a in moved.items()}
        others = [self.both(moved) for moved in perturbed(exact)]
        return given, found, self.both(exact), others

    def check(self, which: int, name: str, value: str, where: str) -> None:
        """Judges the result (0) or its gradient (1)."""
        try:
            given, *sides, others = self.results(name, value, where)
        except Exception as error:
            if is_named(error, self.subject.name, self.subject.arrays):
                raise Refused from None
            raise
        if not in_domain(self.subject, name, VALUES[value]):
            assert_status(sides[0][0])
            return
        if reason := undecided(self.subject, name, VALUES[value]):
            raise Unresolved(reason)
        floats = [a for a in given.values() if a.dtype != bool]
        sizes = np.concatenate([np.abs(a).ravel() for a in floats])
        finite, used = np.isfinite(sizes).all(), sizes[sizes > 0]
        normal = finite and used.min(initial=1) > 5e-19 and used.max(initial=1) < 2e18
        for side in sides:
            assert_status(side[0])
            assert_labels(side[0], k_of(self.subject, given))
        found, truth, *others = [pair[: 1 + which] for pair in (*sides, *others)]
        of_value = sizes_of_value(self.subject, truth[0], given)
        sizes = {f"[0]{name}": size for name, size in of_value.items()}
        of_gradient = sizes_of_gradient(self.subject, truth[0], given)
        sizes |= {f"[1]['{key}']": size for key, size in of_gradient.items()}
        judge = partial(
            assert_not_silent,
            found,
            finite_inputs=bool(finite),
            normal_squares=bool(normal),
            sizes=sizes,
            may_be_nan=self.subject.base in FLAGGED,
        )
        if 0 < abs(VALUES[value]) < TINY:
            zero = self.results(name, "0", where)
            with suppress(AssertionError):
                judge(zero[2][: 1 + which], [o[: 1 + which] for o in zero[3]])
                return
        judge(truth, others)


def against_torch(
    subject: Subject, ours: Callable, theirs: Callable, given: dict, *at: str
) -> None:
    """Raises unless both packages give the same, and the same gradient."""
    argument, value, where = at
    if 0 < abs(VALUES[value]) < TINY:
        raise Unresolved("zero in XLA, and not in torch")
    arrays = replaced(given, argument, VALUES[value], where)
    fixed = {k: a for k, a in arrays.items() if a.dtype == bool}
    moved = {k: a for k, a in arrays.items() if a.dtype != bool}
    try:
        in_torch, gradient_in_torch = torch_side(theirs, moved, fixed)
    except Exception as error:
        if is_named(error, subject.name, given):
            raise Refused from None
        raise
    if not in_domain(subject, argument, VALUES[value]):
        return
    if subject.base != "rotation_trick" and undecided(subject, argument, VALUES[value]):
        raise Unresolved("rounding decides")
    program = _twin_program(ours)
    exact = {k: a.astype(np.float64) for k, a in moved.items()}
    found, truth = program(moved, fixed), program(exact, fixed)
    others = [program(moved, fixed) for moved in perturbed(exact)]
    pieces = zip(found, truth, *others, strict=True)
    (a, a_exact, *a_others), (b, b_exact, *b_others) = pieces
    sizes = sizes_of_value(subject, a, arrays)
    assert_twins_agree(a, in_torch, a_others, a_exact, sizes)
    floats = [leaf for leaf in wide(a) if leaf.dtype.kind == "f"]
    if subject.base == "fit" and (argument, where) == ("centroids", "all"):
        # All merged: no fit rests there, and its derivative means nothing.
        return
    if all(np.isfinite(leaf).all() for leaf in floats):
        by_name = sizes_of_gradient(subject, a, arrays)
        sizes = {f"[{i}]": by_name.get(k, 0.0) for i, k in enumerate(sorted(moved))}
        assert_twins_agree(b, gradient_in_torch, b_others, b_exact, sizes)


def perturbed(exact: dict) -> list[dict]:
    """Arrays moved by one unit of float32 in the last place, in four ways."""
    rng = np.random.default_rng(0)
    return [
        {k: a * (1 + EPS * rng.choice([-1, 1], a.shape)) for k, a in exact.items()}
        for _ in range(4)
    ]


def torch_side(theirs: Callable, moved: dict, fixed: dict) -> tuple[list, list]:
    """What a torch function returns, and the gradients of a weighted sum of it."""
    tensors = {k: torch.tensor(a) for k, a in {**moved, **fixed}.items()}
    wanted = [tensors[key].requires_grad_() for key in sorted(moved)]
    outputs = torch_leaves(theirs(**tensors))
    total = torch_contracted(outputs)
    grads = [torch.zeros_like(t) for t in wanted]
    if total.requires_grad:
        grads = torch.autograd.grad(total, wanted, materialize_grads=True)
    return [o.detach().numpy() for o in outputs], [g.numpy() for g in grads]


@cache
def _twin_program(ours: Callable) -> Callable:
    @jax.jit
    def both(moved: dict, fixed: dict) -> tuple:
        def outputs(moved: dict) -> list:
            return jax.tree.leaves(ours(**moved, **fixed))

        def scalar(moved: dict) -> jax.Array:
            floats = [
                x for x in outputs(moved) if jnp.issubdtype(x.dtype, jnp.floating)
            ]
            return contracted(floats)

        gradient = jax.grad(scalar)(moved)
        return outputs(moved), [gradient[key] for key in sorted(moved)]

    return both


def torch_leaves(tree: Any) -> list[torch.Tensor]:
    """The tensors of what a torch function returns, in JAX's order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = [tree[k] for k in sorted(tree)] if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in torch_leaves(part)]


def torch_contracted(outputs: list[torch.Tensor]) -> torch.Tensor:
    """As `contracted`, of the floating outputs."""
    rng, total = np.random.default_rng(2), torch.zeros((), dtype=torch.float64)
    for leaf in outputs:
        if leaf.dtype.is_floating_point:
            weight = (2 * rng.integers(0, 4, tuple(leaf.shape)) - 3) / 4
            total = total + (leaf.double() * torch.as_tensor(weight)).sum()
    return total


def number(subject: Subject, name: str, value: str, module: str) -> None:
    """Raises unless a Python number without meaning is refused by name."""
    _, ours, theirs, given = next(t for t in twins() if t[0] == subject.name)
    make = jnp.asarray if module == "jax" else torch.tensor
    arrays = {
        key: make(a if a.dtype == bool else a.astype(np.float32))
        for key, a in given.items()
    }
    arrays[name] = VALUES[value]
    call = partial(ours if module == "jax" else theirs, **arrays)
    if in_domain(subject, name, VALUES[value]):
        call()
        return
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        call()
    raise Refused


def cells() -> Iterator[Cell]:
    """Subject by subject; those of one share their programs and their results."""
    pairs = {name: rest for name, *rest in twins()}
    for subject in subjects():
        judge = cache(partial(Judge, subject))
        for name, a in subject.arrays.items():
            if a.dtype == bool or not a.size:
                continue
            for value in VALUES:
                for where in WHERE[: 1 + bool(a.ndim)]:
                    at = name, value, where
                    label = f"{subject.name} {name} {where} {value}"

                    def check(which: int, at: tuple = at, judge: Any = judge) -> None:
                        judge().check(which, *at)

                    yield Cell("extremes", "value", label, partial(check, 0))
                    if subject.promised:
                        yield Cell("extremes", "gradient", label, partial(check, 1))
                    if subject.name in pairs:
                        twin = partial(
                            against_torch, subject, *pairs[subject.name], *at
                        )
                        yield Cell("extremes", "twin", label, twin)
                if not a.ndim and name not in ("baseline",) and subject.name in pairs:
                    for module in ("jax", "torch"):
                        label = f"{subject.name} {name} {value} {module}"
                        check = partial(number, subject, name, value, module)
                        yield Cell("extremes", "number", label, check)
        programs.cache_clear()
        _twin_program.cache_clear()
        jax.clear_caches()
    yield from shape_cells()
    yield from torch_cells()
