"""Arrays by name from files: .npz, state dicts of torch, .safetensors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffkm_torch.agreement._arguments import as_numpy

STATE_DICT = "state_dict"
MAX_LISTED = 4


class CheckpointError(Exception):
    """What is wrong with a file, in one line."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name, by the ending of its own: nothing in it is run."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        endings = ", ".join(READERS)
        raise CheckpointError(f"{path}: its name must end in one of {endings}")
    try:
        found = READERS[suffix](path)
    except CheckpointError:
        raise
    except ImportError as error:
        missing = f"{suffix} needs the package safetensors: pip install safetensors"
        raise CheckpointError(f"{path}: {missing}") from error
    except pickle.UnpicklingError as error:
        what = "holds more than tensors, or is damaged; save a state_dict()"
        raise CheckpointError(
            f"{path}: cannot be read as {suffix} with weights_only=True: it {what}"
        ) from error
    except Exception as error:  # A damaged file may raise anything in its reader.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as {suffix}: {reason}"
        ) from error
    if not found:
        raise CheckpointError(f"{path}: it must hold at least one array, got none")
    return found


def _npz(path: Path) -> dict[str, Tensor]:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array, without a name")
    with found as file:
        return {name: torch.as_tensor(array) for name, array in file.items()}


def _state_dict(path: Path) -> dict[str, Tensor]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, Mapping) and isinstance(found.get(STATE_DICT), Mapping):
        found = found[STATE_DICT]
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise CheckpointError(f"{path}: it must hold a state dict, got {kind}")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise CheckpointError(
                f"{path}: it must hold a state dict, or one as {STATE_DICT!r}, but "
                f"{name!r} is {kind}"
            )
    return {str(name): value for name, value in found.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npz": _npz,
    ".pt": _state_dict,
    ".pth": _state_dict,
    ".safetensors": _safetensors,
}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The same in NumPy; bfloat16 becomes float32, which holds it."""
    return {name: as_numpy(tensor) for name, tensor in read_tensors(path).items()}


def read_tree(path: Path) -> dict[str, Any]:
    """The arrays of a file as nested dicts: "a.b" is ["a"]["b"]."""
    tree: dict[str, Any] = {}
    for name, array in read_arrays(path).items():
        *heads, last = name.split(".")
        branch = tree
        for head in heads:
            branch = branch.setdefault(head, {})
            if not isinstance(branch, dict):
                break
        if not isinstance(branch, dict) or last in branch:
            raise CheckpointError(
                f"{path}: names must be those of a tree, but {name!r} is both an array "
                "and the head of another"
            )
        branch[last] = array
    return tree


def with_state(module: nn.Module, path: Path) -> nn.Module:
    """A copy of a module with the tensors of a file, in the dtype of the file."""
    module, given = copy.deepcopy(module), read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    expected = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    if shapes != expected:
        only_in_file = sorted({*shapes.items()} - {*expected.items()})
        only_there = sorted({*expected.items()} - {*shapes.items()})
        raise CheckpointError(
            f"{path}: names and shapes must be those of the module's state dict: only "
            f"the file has {_listed(only_in_file)}, only the module "
            f"{_listed(only_there)}"
        )
    module.load_state_dict(given, assign=True)
    return module


def _listed(items: list[tuple[str, tuple[int, ...]]]) -> str:
    listed = [f"{name} {shape}" for name, shape in items]
    more = len(listed) - MAX_LISTED
    rest = f" and {more} more" if more > 0 else ""
    return (", ".join(listed[:MAX_LISTED]) or "none") + rest
