"""Leaves of a parameter tree of JAX: what torch calls them, how it lays them out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]
Axes = tuple[int, ...] | None

# Of flax, and of plain trees; torch's own names stay. Two of them are buffers.
NAMES = {
    "kernel": "weight",
    "w": "weight",
    "scale": "weight",
    "embedding": "weight",
    "b": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# These end in (..., in, out), where torch has (out, in, ...).
KERNELS = "kernel", "w"
# Flax's collections, which are no modules.
COLLECTIONS = "params", "batch_stats"


@dataclass(frozen=True)
class Leaf:
    """A floating array of a tree.

    Attributes:
        path: As "layers.0.kernel".
        index: Of the leaf among `jax.tree.leaves` of the tree.
        shape: Of the array.
    """

    path: str
    index: int
    shape: Shape

    @property
    def module(self) -> str:
        """The path without the leaf's own name, "" at the root."""
        return self.path.rpartition(".")[0]

    @property
    def key(self) -> str:
        """The leaf's own name."""
        return self.path.rpartition(".")[2]


def floating_leaves(tree: Any) -> list[Leaf]:
    """The floating arrays of a tree, in its order."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [
        Leaf(_path(path), i, tuple(leaf.shape))
        for i, (path, leaf) in enumerate(paths)
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]


def _path(path: tuple) -> str:
    keys = list(path)
    # The box that flax has around an array.
    boxed = isinstance(keys[-1], jax.tree_util.GetAttrKey) if len(keys) > 1 else False
    if boxed and keys[-1].name == "value":
        keys = keys[:-1]
    return without_collection(".".join(map(_key, keys)).replace("/", "."))


def _key(key: Any) -> str:
    for field in ("key", "idx", "name"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)


def without_collection(path: str) -> str:
    """The path without flax's "params" at its head."""
    head, _, rest = path.partition(".")
    return rest if head in COLLECTIONS else path


def names_of(key: str, module: str) -> Iterator[str]:
    """What torch may call a leaf of a module: first by its own name."""
    for name in dict.fromkeys([key, NAMES.get(key, key)]):
        yield f"{module}.{name}" if module else name


def axes_of(key: str, name: str, rank: int) -> Axes:
    """The permutation from JAX's axes to torch's; None if they are the same.

    Args:
        key: The leaf's own name in JAX.
        name: That of torch.
        rank: Number of axes.
    """
    if key not in KERNELS or name.rpartition(".")[2] == key or rank < 2:
        return None
    return kernel_axes(rank)


def kernel_axes(rank: int) -> tuple[int, ...]:
    """From (spatial..., in, out) to (out, in, spatial...)."""
    return (rank - 1, rank - 2, *range(rank - 2))


def permuted(shape: Shape, axes: Axes) -> Shape:
    """The shape with its axes in torch's order."""
    return shape if axes is None else tuple(shape[i] for i in axes)


def fits(shape: Shape, axes: Axes, there: Shape) -> bool:
    """Whether an array can be laid out in a shape: but for axes of length 1."""
    if axes is not None and sorted(axes) != list(range(len(shape))):
        return False
    here = permuted(shape, axes)
    return [n for n in here if n != 1] == [n for n in there if n != 1]


def in_order(text: str) -> list[tuple[int, int | str]]:
    """A key for sorting in which Dense_2 comes before Dense_10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(p)) if p.isdigit() else (1, p) for p in parts if p]
