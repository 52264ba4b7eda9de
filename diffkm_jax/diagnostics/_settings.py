"""Records as arguments of a program: settings that are arrays, and all that is not."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

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
