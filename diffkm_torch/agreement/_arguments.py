"""The arguments of both sides: which are arrays, which move, what they are called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from diffkm_torch._leaves import combine

Wrt = int | str | Sequence[int | str] | None


@dataclass(frozen=True)
class Arguments:
    """Positional and keyword arguments as a flat list, of which some are arrays.

    Attributes:
        leaves: NumPy arrays where there are arrays, else what is handed on as it is.
        names: Paths of the leaves, as arg0['scale'].
        is_array: Which leaves are arrays.
        moving: Names of the arrays that are differentiated, by their index among
            all arrays; parameters come last.
        tree: The structure of (args, kwargs).
        parameters: Of a module, by name.
    """

    leaves: list[Any]
    names: list[str]
    is_array: list[bool]
    moving: dict[int, str]
    tree: Any
    parameters: Mapping[str, np.ndarray]

    @property
    def held(self) -> dict[str, str]:
        """Names and values of the leaves that are no arrays."""
        found = zip(self.names, self.leaves, self.is_array, strict=True)
        return {n: _short(v) for n, v, is_array in found if not is_array}

    def arrays(self, dtype: str) -> list[np.ndarray]:
        """All arrays, the floating ones in a dtype."""
        found = zip(self.leaves, self.is_array, strict=True)
        arrays = [leaf for leaf, is_array in found if is_array]
        arrays += self.parameters.values()
        return [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]

    def call(self, fn: Callable, arrays: Sequence[Any]) -> Any:
        """A function of (parameters, args, kwargs), with the arrays in their places."""
        places = [i for i, is_array in enumerate(self.is_array) if is_array]
        n = len(places)
        leaves = combine(self.leaves, places, arrays[:n])
        args, kwargs = jax.tree.unflatten(self.tree, leaves)
        return fn(dict(zip(self.parameters, arrays[n:], strict=True)), args, kwargs)


def arguments(
    args: tuple,
    kwargs: dict[str, Any],
    wrt: Wrt,
    parameters: Mapping[str, np.ndarray],
    held: Collection[str],
    frameworks: Collection[str],
) -> Arguments:
    """Reads the arguments, and finds those that move: all but the parameters held."""
    paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    tops = [_top(path) for path, _ in paths]
    names = [_name(path) for path, _ in paths]
    leaves = [
        _as_leaf(name, leaf, isinstance(top, int), frameworks)
        for name, top, (_, leaf) in zip(names, tops, paths, strict=True)
    ]
    is_array = [isinstance(leaf, np.ndarray) for leaf in leaves]
    arrays = [i for i in range(len(leaves)) if is_array[i]]
    moving = {
        position: names[i]
        for position, i in enumerate(arrays)
        if leaves[i].dtype.kind == "f"
        if wrt is None or tops[i] in _chosen(wrt)
    }
    moving |= {
        position: name
        for position, (name, array) in enumerate(parameters.items(), len(arrays))
        if array.dtype.kind == "f" and name not in held
        if wrt is None or name in _chosen(wrt)
    }
    if wrt is not None:
        movable = [name for name in parameters if name not in held]
        there = [*range(len(args)), *kwargs, *movable]
        _check_wrt(_chosen(wrt), tops, names, leaves, there)
    if not moving:
        raise ValueError("args must hold at least one floating array, got none")
    return Arguments(leaves, names, is_array, moving, tree, parameters)


def _chosen(wrt: Wrt) -> list[int | str]:
    if not isinstance(wrt, Sequence | None) or isinstance(wrt, str):
        return [wrt]
    return list(wrt or [])


def _check_wrt(
    chosen: list[int | str],
    tops: list[int | str],
    names: list[str],
    leaves: list[Any],
    there: list[int | str],
) -> None:
    if not all(isinstance(which, int | str) for which in chosen):
        raise TypeError(f"wrt must be positions or names, got {chosen!r}")
    if not chosen:
        raise ValueError("wrt must name at least one argument, got none")
    for which in chosen:
        if which not in there:
            raise ValueError(f"wrt must be among {there}, got {which!r}")
        for top, name, leaf in zip(tops, names, leaves, strict=True):
            if top != which or getattr(leaf, "dtype", np.dtype("O")).kind == "f":
                continue
            found = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(
                f"wrt must name floating arrays, but {name} is {found}: hand in an "
                "array of floats, or leave it out of wrt"
            )


def _top(path: tuple) -> int | str:
    """The position or the keyword of the argument that a leaf is in."""
    return path[1].idx if path[0].idx == 0 else path[1].key


def _name(path: tuple) -> str:
    top = _top(path)
    rest = jax.tree_util.keystr(path[2:])
    return f"arg{top}{rest}" if isinstance(top, int) else f"{top}{rest}"


def _as_leaf(
    name: str, leaf: Any, is_positional: bool, frameworks: Collection[str]
) -> Any:
    if isinstance(leaf, torch.Tensor):
        if leaf.device.type != "cpu":
            where = f"it is on device {leaf.device}: hand in .cpu()"
            raise ValueError(f"{name} must be on the CPU, but {where}")
        leaf = as_numpy(leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        if set(frameworks) == {"jax"}:
            return leaf
        raise TypeError(
            f"{name} is a random key, of which only JAX can draw: draw the noise once, "
            "by NumPy, and hand the array to both"
        )
    if is_positional and isinstance(leaf, float):
        leaf = np.asarray(leaf, np.float64)
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
        return leaf
    leaf = as_numpy(leaf)
    check_real(name, leaf)
    return leaf


def as_numpy(array: Any) -> np.ndarray:
    """An array of any framework in NumPy; bfloat16 becomes float32, which holds it."""
    if isinstance(array, torch.Tensor):
        array = array.float() if array.dtype == torch.bfloat16 else array
        # By force, because torch has zeros that are not stored.
        return array.numpy(force=True)
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def check_real(name: str, array: np.ndarray) -> None:
    """Raises TypeError unless the array holds real numbers or booleans."""
    if array.dtype.kind not in "fbiu":
        kinds = "floating, integer or boolean"
        raise TypeError(f"{name} must be {kinds}, got dtype {array.dtype}")


def _short(value: Any) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
