"""The cost of an estimator: what it must be, and how a program is kept for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from diffkm_jax._checks import as_array, check_callable, check_floating
from diffkm_jax._mesh import varying_axes
from diffkm_jax.assignments import hard

Cost = Callable[[jax.Array], jax.Array]


class HashablePartial(partial):
    """A function with arguments fixed, equal to another of the same: static in jit."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashablePartial) and self._held() == other._held()

    def __hash__(self) -> int:
        return hash(self._held())

    def _held(self) -> tuple:
        return self.func, self.args, frozenset(self.keywords.items())


class CheckedCost:
    """A cost whose result is checked wherever it is evaluated, the shapes noted."""

    def __init__(self, f: Cost) -> None:
        check_callable("f", f)
        self.f = f
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __call__(self, rows: jax.Array) -> jax.Array:
        """The costs of rows, [*batch]."""
        costs = as_array("the costs of f", self.f(rows))
        prefix = rows.shape[: costs.ndim]
        if costs.ndim >= rows.ndim or costs.shape != prefix:
            raise ValueError(
                "f must return costs [*batch], their shape a prefix of the rows' "
                f"{rows.shape} without k, got shape {costs.shape}"
            )
        check_floating("the costs of f", costs)
        self.seen.append((rows.shape, costs.shape))
        return costs

    def shape(self, logits: jax.Array) -> tuple[int, ...]:
        """That of the costs of rows like the logits."""
        for rows, costs in self.seen:
            more = len(rows) - logits.ndim
            if more >= 0 and rows[more:] == logits.shape:
                return costs[more:]
        return self(hard(logits)).shape


class _Equations:
    """What a cost computes, static in jit: equal if of one function and the same."""

    def __init__(self, f: Cost, jaxpr: Jaxpr) -> None:
        self.f, self.jaxpr = f, jaxpr
        # A method is a new object whenever it is looked up, as a cost of bernoulli.
        function = getattr(f, "__func__", f), getattr(f, "__self__", None)
        if isinstance(f, HashablePartial):
            function = f.func, *f.args
        # Arrays inside a jitted part are in the program, but not in the text.
        self.held = [*function, *_inner_arrays(jaxpr)]
        self.key = tuple(map(id, self.held)), str(jaxpr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Equations) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _inner_arrays(jaxpr: Jaxpr) -> Iterator[Any]:
    kinds = ClosedJaxpr, Jaxpr
    for equation in jaxpr.eqns:
        parameters = list(equation.params.values())
        for leaf in jax.tree.leaves(parameters, is_leaf=lambda x: isinstance(x, kinds)):
            if isinstance(leaf, ClosedJaxpr):
                yield from leaf.consts
                yield from _inner_arrays(leaf.jaxpr)
            elif isinstance(leaf, Jaxpr):
                yield from _inner_arrays(leaf)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["equations", "num_axes", "kind"],
)
@dataclass(frozen=True)
class TracedCost:
    """A cost as a pytree, so that a program compiled for it is found again.

    The arrays that it closes over are leaves, its equations static. They are traced at
    every call, because a function may close over what has changed. Of the rows, of some
    kind, the costs keep `num_axes` leading axes.
    """

    arrays: list[Any]
    equations: _Equations
    num_axes: int
    kind: tuple

    def __call__(self, rows: jax.Array) -> jax.Array:
        """The costs of rows, [*batch]."""
        if _kind(rows) != self.kind:
            return self.equations.f(rows)
        closed = ClosedJaxpr(self.equations.jaxpr, self.arrays)
        # A cost that is a number is one of Python's here.
        return jnp.asarray(jaxpr_as_fun(closed)(rows)[0])


def traced_cost(f: Cost, logits: jax.Array) -> TracedCost:
    """The equations of a cost at rows of the shape and dtype of the logits."""
    cost = CheckedCost(f.f if isinstance(f, CheckedCost) else f)
    # A function of its own, for which nothing is cached.
    closed = jax.make_jaxpr(lambda rows: cost(rows))(logits)
    arrays = list(map(jnp.asarray, closed.consts))
    equations = _Equations(cost.f, closed.jaxpr)
    num_axes = len(closed.out_avals[0].shape)
    return TracedCost(arrays, equations, num_axes, _kind(logits))


def _kind(rows: jax.Array) -> tuple:
    """What equations are for: a shape, a dtype, and the axes of a mesh they vary on."""
    return rows.shape, rows.dtype, varying_axes(rows)
