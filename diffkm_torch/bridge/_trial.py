"""What a torch function returns, found without its arguments, and what it must not do.

A fake tensor has a shape and a dtype, and no memory: operations on some cost next to
nothing. Where values decide what is computed there is a real call, of ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Arguments of operations that are random only if these are not 0, or True.
CHANCES = "p", "dropout_p"
TRAINING = "train", "training"


class Spec(NamedTuple):
    """The shape and the dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def outputs_of(
    make: Callable[[], Callable], inputs: Sequence[Spec]
) -> tuple[list[Spec], Any]:
    """The specs of what a function of tensors returns, and their tree.

    The function is made for the trial: of what it keeps, fake tensors may be a part.
    """
    watch, fn = _Watch(), make()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _NoMemory(), watch:
            leaves, structure = flat(fn(*(torch.empty(s, dtype=d) for s, d in inputs)))
    except Exception:
        watch.check()
        watch.is_fake, fn = False, make()
        with watch:
            leaves, structure = flat(fn(*map(_ones, inputs)))
    watch.check()
    return [Spec(tuple(leaf.shape), leaf.dtype) for leaf in leaves], structure


def flat(output: Any) -> tuple[list[Tensor], Any]:
    """The tensors of what a function returned, checked, and their tree."""
    plain = jax.tree.map(
        lambda leaf: tuple(leaf) if _is_torch_record(leaf) else leaf,
        output,
        is_leaf=_is_torch_record,
    )
    found, structure = jax.tree_util.tree_flatten_with_path(plain)
    return [_as_tensor(*pair) for pair in found], structure


def _is_torch_record(value: Any) -> bool:
    """Whether it is like the result of `torch.max`, which is no leaf of torch's."""
    return isinstance(value, tuple) and type(value).__module__ == "torch.return_types"


def _as_tensor(path: tuple, leaf: Any) -> Tensor:
    if isinstance(leaf, bool | int | float):
        return torch.as_tensor(leaf)
    is_tensor = isinstance(leaf, Tensor)
    if is_tensor and _is_dense(leaf):
        return leaf
    kind = type(leaf).__name__
    found = f"{leaf.dtype}, {leaf.layout}, {leaf.device}" if is_tensor else kind
    where = f"fn(...){jax.tree_util.keystr(path)}"
    raise TypeError(
        f"fn must return dense and real tensors on the CPU, got {found} as {where}"
    )


def _is_dense(tensor: Tensor) -> bool:
    is_strided = tensor.layout == torch.strided
    return is_strided and tensor.device.type == "cpu" and not tensor.is_complex()


def _ones(spec: Spec) -> Tensor:
    # Of integers zeros: they may be indices.
    make = torch.ones if spec.dtype.is_floating_point else torch.zeros
    return make(spec.shape, dtype=spec.dtype)


class _NoMemory(TorchFunctionMode):
    """Raises where a fake tensor is handed to another library: that would crash."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.__dlpack__, Tensor.data_ptr):
            raise TypeError("a fake tensor has no memory")
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Notes what makes two calls with the same arguments differ."""

    def __init__(self) -> None:
        super().__init__()
        self.is_fake, self.random, self.edits = True, "", ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        declared = func._schema.arguments
        values = {a.name: a.default_value for a in declared}
        values |= dict(zip(values, args, strict=False)) | kwargs
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(values):
            self.random = self.random or str(func)
        written = [a.name for a in declared if a.alias_info and a.alias_info.is_write]
        if _keeps_statistics(values) or any(
            map(self._is_outer, map(values.get, written))
        ):
            self.edits = self.edits or str(func)
        return func(*args, **kwargs)

    def _is_outer(self, value: Any) -> bool:
        """Whether it is a tensor from before the call: these alone are not fake."""
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.is_fake and is_real

    def check(self) -> None:
        """Raises ValueError if one of the operations is not to be."""
        if self.random:
            raise ValueError(
                f"fn must be a function of its arguments, and draws by {self.random}: "
                "call .eval() on modules with dropout, or hand in what is drawn"
            )
        if self.edits:
            raise ValueError(no_edits(self.edits))


def no_edits(what: str) -> str:
    """The message that something is edited which outlasts a call."""
    return (
        f"fn must change nothing that it is not given, and edits buffers, by {what}: "
        "call .eval() on modules that keep statistics, or return what changes"
    )


def _draws(values: dict[str, Any]) -> bool:
    never = any(values.get(name, 1) == 0 for name in CHANCES)
    return not never and not any(values.get(name) is False for name in TRAINING)


def _keeps_statistics(values: dict[str, Any]) -> bool:
    """Whether running statistics are edited: no schema of torch says that they are."""
    trained = any(values.get(name) is True for name in TRAINING)
    return trained and values.get("running_mean") is not None
