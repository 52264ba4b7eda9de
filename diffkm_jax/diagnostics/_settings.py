"""Records as arguments of a program: settings that are arrays, and all that is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._checks import as_real
from diffkm_jax.estimators._estimator import RANGES, Estimator, check_setting

ARRAYS = jax.Array, np.ndarray, np.generic, float


def split_settings(records: Any) -> tuple[list, tuple]:
    """The arrays among the settings of a tree of records, and the rest: static.

    A float is an array, so that another one compiles nothing; an integer or a string
    may say how to compute, and is none.
    """
    leaves, tree = jax.tree.flatten(records)
    arrays = [leaf for leaf in leaves if isinstance(leaf, ARRAYS)]
    others = tuple(None if isinstance(leaf, ARRAYS) else leaf for leaf in leaves)
    return arrays, (tree, others)


def with_settings(kind: tuple, arrays: list) -> Any:
    """The records of `split_settings`."""
    tree, others = kind
    rest = iter(arrays)
    leaves = [next(rest) if leaf is None else leaf for leaf in others]
    return jax.tree.unflatten(tree, leaves)


class Group(NamedTuple):
    """Records that differ in the numbers of their settings only: one program.

    Attributes:
        kind: All of a record but those numbers, as of `split_settings`.
        members: Where in the list of all records each of them stands.
        on_grid: Of every array, whether it has the axis of the grid.
    """

    kind: tuple
    members: tuple[int, ...]
    on_grid: tuple[bool, ...]

    @property
    def record(self) -> Estimator:
        """One of them, without its numbers."""
        return with_settings(self.kind, [None] * len(self.on_grid))

    def map(self, f: Callable[[Estimator], Any], arrays: list, size: int) -> Any:
        """A function of a record, of every member and point of a grid of some size.

        The results have two axes more, [members, size, ...].
        """

        def of_one(numbers: list) -> Any:
            return f(with_settings(self.kind, numbers))

        if any(self.on_grid):
            axes = [0 if on else None for on in self.on_grid]
            of_points = jax.vmap(of_one, in_axes=(axes,))
        else:

            def of_points(numbers: list) -> Any:
                return jax.tree.map(lambda a: a[None], of_one(numbers))

        found = (
            jax.vmap(of_points)(arrays)
            if len(self.members) > 1
            else jax.tree.map(lambda a: a[None], of_points(arrays))
        )

        def everywhere(a: jax.Array) -> jax.Array:
            return jnp.broadcast_to(a, (len(self.members), size, *a.shape[2:]))

        return jax.tree.map(everywhere, found)


def groups_of(
    records: Sequence[Estimator], names: Sequence[str]
) -> tuple[list[Group], list[list]]:
    """Records grouped by what they compile to, and the arrays of every group.

    The settings of some names have the axis of a grid.
    """
    grouped: dict[Any, list[tuple[int, list]]] = {}
    for i, record in enumerate(records):
        arrays, kind = split_settings(record)
        marks = {name: name in names for name in record.settings}
        marked = {n: _marks(record.settings[n], mark) for n, mark in marks.items()}
        on_grid = tuple(jax.tree.leaves(marked))
        types = tuple(map(jax.typeof, arrays))
        # A float has no dtype of its own, which it would have in an array of several.
        alone = i if any(t.weak_type for t in types) else None
        grouped.setdefault((kind, on_grid, types, alone), []).append((i, arrays))
    groups, stacked = [], []
    for (kind, on_grid, *_), found in grouped.items():
        groups.append(Group(kind, tuple(i for i, _ in found), on_grid))
        lists = [arrays for _, arrays in found]
        several = len(lists) > 1
        stacked.append(
            [jnp.stack(a) for a in zip(*lists, strict=True)] if several else lists[0]
        )
    return groups, stacked


def _marks(tree: Any, mark: bool) -> Any:
    """The mark in the place of every array of a setting, None of any other leaf."""
    return jax.tree.map(lambda a: mark if isinstance(a, ARRAYS) else None, tree)


def on_grid(
    records: Sequence[Estimator], grid: Mapping[str, Any]
) -> tuple[list[Estimator], int]:
    """The records with arrays over a grid in the place of some settings, and its size.

    Raises:
        TypeError: `grid` is no mapping, or its values are not real.
        ValueError: They are not one-dimensional and of one length, a number is out of
            range, or no record has a setting of that name.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise TypeError(
            "grid must map names of settings to arrays of their values, as in "
            f"{{'tau': [0.5, 1.0]}}, got {grid!r}"
        )
    values = {name: _values(name, grid[name]) for name in grid}
    sizes = {name: len(array) for name, array in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"grid must have as many values of every name, got {sizes}")
    known = {n for r in records for n, value in r.settings.items() if value is not None}
    for name in grid:
        if name not in known:
            raise ValueError(
                f"grid must name settings of the estimators, {sorted(known)}, got "
                f"{name!r}"
            )

    def over(record: Estimator) -> Estimator:
        has = {n: a for n, a in values.items() if record.settings.get(n) is not None}
        return replace(record, settings={**record.settings, **has})

    return [over(record) for record in records], next(iter(sizes.values()))


def _values(name: str, array: Any) -> jax.Array:
    leaves = jax.tree.leaves(array)
    if any(isinstance(leaf, str) for leaf in leaves):
        raise TypeError(f"grid[{name!r}] must be real, got {array!r}")
    values = as_real(f"grid[{name!r}]", array)
    if name in RANGES and not any(isinstance(leaf, jax.Array) for leaf in leaves):
        for value in np.ravel(np.asarray(array)):
            check_setting(name, value)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"grid must hold one-dimensional arrays with values, got {name} of shape "
            f"{values.shape}"
        )
    return values.astype(jax.dtypes.canonicalize_dtype(float))
