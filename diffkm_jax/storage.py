"""States and results in files: written whole or not at all, and read without pickle."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffkm_jax._hints import hinted, shown
from diffkm_jax._writing import write_whole
from diffkm_jax.fitting import FitResult, State, Status
from diffkm_jax.optimizers import EmaState, MacQueenState
from diffkm_jax.streaming import StreamResult

__all__ = ["load", "save"]

FORMAT = 1
HEADER = "diffkm"
KINDS = {kind.__name__: kind for kind in (State, FitResult, StreamResult)}
CLASSES = KINDS | {kind.__name__: kind for kind in (EmaState, MacQueenState)}
# What reading a file raises that is not one of `save`, or is no longer.
_BROKEN = ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError
NUMBERS = {"bool": bool, "int": int, "float": float, "Status": Status}


@hinted
def save(path: str | os.PathLike, value: State | FitResult | StreamResult) -> None:
    """Writes a state or a result to one file, an .npz of NumPy's.

    The file is there as a whole or not at all: what is under that name stays until the
    new one is on the disk, also where the process is killed. Its numbers are those of
    the value, bit for bit; a file has no gradient.

    Args:
        path: Where to; the name is taken as it is, as `"fit.npz"`.
        value: A `State`, of any optimizer, a `FitResult` or a `StreamResult`, of arrays
            that this process has: of a fit over several hosts the state, which is the
            same on each, on one of them.

    Returns:
        None; numbers keep their units.

    Raises:
        TypeError: `value` is none of these, or holds what is no array.
        ValueError: An array is not on the devices of this process.
        OSError: The file cannot be written; what was there stays.

    Example:
        >>> import tempfile
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> result = dk.fit(x, x[:2], max_steps=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dk.save(f"{folder}/fit.npz", result)
        ...     again = dk.load(f"{folder}/fit.npz")
        >>> dk.fit(x, again.state).centroids.tolist()
        [[0.5], [9.5]]

    Source: the .npy format,
        https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    if not isinstance(value, tuple(KINDS.values())):
        kinds = "a State, a FitResult or a StreamResult"
        raise TypeError(f"value must be {kinds}, got {shown(value)}")
    arrays = arrays_of(value, "value")
    write_whole(Path(path), lambda file: np.savez(file, **arrays))


def arrays_of(value: Any, name: str) -> dict[str, Any]:
    """The arrays of a file that `load` reads, by name; further ones do no harm there.

    With an empty name those of a result have the names of its fields.
    """
    arrays: dict[str, Any] = {}
    tree = _encoded(value, name, arrays)
    header = json.dumps({"format": FORMAT, "tree": tree})
    return {HEADER: np.array(header), **arrays}


@hinted
def load(
    path: str | os.PathLike, like: State | FitResult | StreamResult | None = None
) -> State | FitResult | StreamResult:
    """Reads what `save` has written.

    Args:
        path: The file.
        like: What has the structure of the value, as `init(c, optimizer=optimizer)` of
            a saved `State`; needed only where an optimizer's state is of a class that
            neither optax nor this library has.

    Returns:
        The `State`, `FitResult` or `StreamResult`, bit for bit, on the default device.
        There is no gradient, and units are those of what was saved.

    Raises:
        OSError: There is no such file, or it may not be read.
        ValueError: The file is not whole, not one of `save`, or of a later version; it
            holds float64 and JAX's x64 mode is off; the optimizer's state is of an
            unknown class and there is no `like`, or `like` is of another structure.

    Example:
        >>> import tempfile
        >>> state = dk.init(jnp.zeros((2, 3)), optimizer=dk.macqueen())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dk.save(f"{folder}/state.npz", state)
        ...     dk.load(f"{folder}/state.npz").opt_state.counts.tolist()
        [0.0, 0.0]

    Source: the .npy format,
        https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    try:
        # NumPy leaves a file open that is no archive.
        with Path(path).open("rb") as raw:
            file: Any = np.load(raw, allow_pickle=False)
            header = json.loads(str(file[HEADER]))
            arrays = {name: file[name] for name in file.files if name != HEADER}
            missing = _names(header["tree"]) - {*arrays}
            if missing:
                raise KeyError(*missing)
    except (*_BROKEN, zipfile.BadZipFile) as error:
        raise ValueError(f"path must be a whole file of save, got {path}") from error
    if header["format"] > FORMAT:
        raise ValueError(
            f"path must be of format {FORMAT} or before, got {header['format']} in "
            f"{path}: install the diffkm that wrote it"
        )
    leaves: list[Any] = []
    tree = _decoded(header["tree"], arrays, leaves, path, known=like is None)
    if like is None:
        return tree
    found = [np.shape(a) for a in leaves]
    expected = [np.shape(a) for a in jax.tree.leaves(like)]
    if found != expected:
        raise ValueError(
            f"like must be as what was saved, whose arrays have shapes {found}, got "
            f"{expected}"
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _names(tree: Any) -> set[str]:
    """The names of all arrays of a tree."""
    if tree is None:
        return set()
    if "name" in tree:
        return {tree["name"]}
    parts = [*tree["fields"].values()] if "fields" in tree else tree["parts"]
    return set().union(*map(_names, parts))


def _encoded(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """The tree of a value, for JSON; its arrays go where they have their names."""
    if value is None:
        return None
    kind = type(value).__name__
    if hasattr(value, "_fields"):
        value = value._asdict()
    elif isinstance(value, dict):
        value = {key: value[key] for key in sorted(value)}
    start = f"{name}." if name else ""
    if isinstance(value, dict):
        items = value.items()
        fields = {key: _encoded(part, f"{start}{key}", arrays) for key, part in items}
        return {"class": kind, "fields": fields}
    if isinstance(value, tuple | list):
        parts = [_encoded(a, f"{start}{i}", arrays) for i, a in enumerate(value)]
        return {"class": kind, "parts": parts}
    if not isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise TypeError(f"{name} must be an array, got {shown(value)}")
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        raise ValueError(
            f"{name} must be on the devices of this process: save result.state, which "
            "is the same on all"
        )
    more = {}
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        more = {"key": str(jax.random.key_impl(value))}
        value = jax.random.key_data(value)
    array = np.asarray(value)
    dtype = jnp.dtype(array.dtype).name
    # NumPy has no name for dtypes like bfloat16.
    if array.dtype.kind == "V":
        array = array.view(f"u{array.dtype.itemsize}")
    arrays[name] = array
    return {"class": kind, "name": name, "dtype": dtype, **more}


def _decoded(tree: Any, arrays: dict, leaves: list, path: Any, *, known: bool) -> Any:
    """The value of a tree, and its leaves; a tuple for a class that is not known."""
    if tree is None:
        return None
    kind = tree["class"]
    if "name" in tree:
        leaves.append(_leaf(tree, arrays, path))
        return leaves[-1]

    def decoded(part: Any) -> Any:
        return _decoded(part, arrays, leaves, path, known=known)

    if "parts" in tree:
        parts = [decoded(part) for part in tree["parts"]]
        return parts if kind == "list" else tuple(parts)
    fields = {key: decoded(part) for key, part in tree["fields"].items()}
    if kind == "dict":
        return fields
    made = _class_of(kind, fields)
    if made is None and known:
        raise ValueError(
            f"like must be given for {path}, which holds a {kind} of an optimizer: "
            "init(centroids, optimizer=optimizer) of a State (of a result save "
            "result.state, which is all that goes on)"
        )
    return tuple(fields.values()) if made is None else made(**fields)


def _class_of(kind: str, fields: dict) -> Any:
    """The class of a tuple with these fields, of this library or of optax, or None."""
    for made in (CLASSES.get(kind), getattr(optax, kind, None)):
        if isinstance(made, type) and getattr(made, "_fields", None) == (*fields,):
            return made
    return None


def _leaf(tree: dict, arrays: dict, path: Any) -> Any:
    array, dtype = arrays[tree["name"]], jnp.dtype(tree["dtype"])
    if tree["class"] in NUMBERS:
        return NUMBERS[tree["class"]](array.item())
    array = array.view(dtype) if array.dtype != dtype else array
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"path must be read in JAX's x64 mode, got {dtype} in {path}: "
            'jax.config.update("jax_enable_x64", True)'
        )
    if "key" in tree:
        return jax.random.wrap_key_data(array, impl=tree["key"])
    return jnp.asarray(array)
