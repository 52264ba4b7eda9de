"""When two trees of numbers agree: the rounding of a dtype, and what it does to inputs.

An entry may differ from the truth, which is float64 at the same inputs, by

    FACTOR[dtype] · ε · max(|leaf|, 0.01) + 4 · floor

where ε is that of the dtype of the leaf and `floor` the largest change of the leaf in
float64 when inputs move by one unit in the last place of their dtype, or of float32 if
that is less. Integers and flags must be equal. A leaf of which this allows a tenth
judges nothing: `Unresolved`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.campaign._cells import Unresolved

# Sums of some hundred terms; what is returned in half precision is rounded once.
FACTOR = {"float64": 200, "float32": 200, "bfloat16": 4, "float16": 4}
SMALL = 0.01
# Of a certificate: they bound the rounding of a dtype.
BOUNDS = "label_radius", "point_radius", "eigenvalue_error", "num_undecided"


def leaves(tree: Any) -> list[tuple[str, Any]]:
    """The arrays of a tree with their paths; keys of random numbers have none."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), jnp.asarray(leaf)) for path, leaf in found]


def wide(tree: Any) -> list[np.ndarray]:
    """The leaves as NumPy arrays, floating ones in float64."""
    found = []
    for _, leaf in leaves(tree):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        found.append(np.asarray(leaf, np.float64 if floating else None))
    return found


def largest_change(base: Any, others: list[Any]) -> list[np.ndarray]:
    """Entry by entry, how far the others are from the base."""
    sides = [wide(other) for other in others]
    floors = []
    for i, leaf in enumerate(wide(base)):
        if leaf.dtype.kind != "f":
            floors.append(np.zeros(leaf.shape))
            continue
        with np.errstate(invalid="ignore"):
            changes = [np.abs(side[i] - leaf) for side in sides]
        floors.append(np.nan_to_num(np.max(changes, axis=0), posinf=np.inf))
    return floors


def assert_near(
    found: Any,
    truth: Any,
    floors: list[np.ndarray],
    *,
    least: str = "float64",
    factor: int = 1,
) -> None:
    """Raises AssertionError where a leaf is off, Unresolved where none could be.

    Args:
        found: A tree, in any dtype.
        truth: The same in float64.
        floors: Of the truth, from `largest_change`.
        least: A dtype to which values were rounded inside, whatever the leaf's.
        factor: How much more rounding there is.
    """
    names, truths = leaves(found), wide(truth)
    assert len(names) == len(truths), "another number of leaves"
    unresolved = []
    for (name, leaf), mine, right, floor in zip(
        names, wide(found), truths, floors, strict=True
    ):
        assert mine.shape == right.shape, f"{name}: {mine.shape}, not {right.shape}"
        if name.endswith(BOUNDS):
            continue
        if mine.dtype.kind != "f" or not mine.size:
            assert (mine == right).all(), f"{name}: {mine} is not {right}"
            continue
        eps, dtype = max(
            (float(jnp.finfo(d).eps), jnp.dtype(d).name) for d in (leaf.dtype, least)
        )
        finite = np.isfinite(right)
        size = np.abs(right[finite]).max(initial=SMALL)
        limit = factor * FACTOR[dtype] * eps * size + 4 * floor.max()
        if limit > 0.1 * size:
            unresolved.append(name)
            continue
        with np.errstate(invalid="ignore"):
            same = (mine == right) | (np.isnan(mine) & np.isnan(right))
            bad = ~same & ~(np.abs(mine - right) <= limit)
        where = tuple(np.argwhere(bad)[0]) if bad.any() else ()
        assert not bad.any(), (
            f"{name}{[int(i) for i in where]} is {mine[where]}, not {right[where]} "
            f"(at most {limit:.1e} off; {bad.sum()} of {bad.size})"
        )
    if unresolved:
        raise Unresolved(f"rounding explains a tenth of {unresolved}")
