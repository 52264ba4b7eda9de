"""A JAX function inside torch autograd, and a torch function inside JAX.

    loss = jax_to_torch(diffkm_jax.soft_kmeans_loss)
    loss(points, centroids, temperature=0.5).backward()  # of torch tensors
    jax.grad(torch_to_jax(diffkm_torch.kmeans_loss))(points, centroids)  # of arrays

Tensors cross over by DLPack, without a copy where the memory allows it. A backward pass
uses the residuals of the forward pass, as torch's own does; a derivative that is to be
differentiated again is a JAX function, and crosses by the same bridge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from functools import update_wrapper
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

try:
    import jax
except ImportError as error:
    raise ImportError(
        "diffkm_torch.bridge calls JAX, which is not installed: pip install diffkm"
    ) from error

from diffkm_torch._hints import shown
from diffkm_torch._public import show_public
from diffkm_torch.bridge._autograd import apply
from diffkm_torch.bridge._programs import Program, as_output, is_key
from diffkm_torch.bridge._torch_to_jax import torch_to_jax

__all__ = ["jax_to_torch", "torch_to_jax"]

show_public(__name__)

PLATFORMS = "cpu", "cuda"
WIDE = torch.float64, torch.int64


def jax_to_torch(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of torch tensors of a JAX function.

    The value is that of `jax.jit(fn)`. Its gradient is `fn`'s own in JAX, declared ones
    included, of any order: by `backward`, `torch.autograd.grad` and `torch.func`. A
    function that is reverse mode only raises in forward mode, as in JAX. What is
    compiled is kept, by the shapes and dtypes of the tensors and by what is static, so
    that a call compiles nothing that an earlier one did: build the bridge once and keep
    it.

    A tensor that is edited in place between the two passes is found, as everywhere in
    torch. JAX's settings (x64, matmul precision, default device, promotion, debugging)
    are in the backward pass those of the thread and of the moment of the forward pass.
    Under `torch.compile` a call is a break in the graph.

    Args:
        fn: A function that JAX can trace, of arrays and trees of them (tuples, lists,
            dicts, named tuples) to arrays and trees of them.

    Returns:
        The same function, in the units of `fn`, of tensors of any shape, all on one
        device, where the results are too. Python floats and random keys
        (`jax.random.key`) are traced: another value compiles nothing, and has no
        gradient. What is neither (integers, strings, None, functions) is static, and
        must be hashable. Results that are integers or booleans have no gradient. Where
        `fn` can be pickled or copied, so can this, and compiles again.

    Raises:
        TypeError: `fn` is not a function; or, in a call: an argument is an array of
            NumPy or JAX, or static and not hashable, or a tensor that is not dense and
            real; or `fn` returns what is not an array.
        ValueError: In a call: no argument is a tensor; tensors are on several devices,
            or on one that JAX does not have; or one has 64 bits while JAX's x64 mode is
            off, which would round it.

    Example:
        >>> from diffkm_torch.bridge import jax_to_torch
        >>> loss = jax_to_torch(dk.kmeans_loss)
        >>> centroids = torch.tensor([[0.0], [10.0]], requires_grad=True)
        >>> loss(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), centroids).backward()
        >>> centroids.grad.tolist()
        [[-2.0], [2.0]]

    Source: DLPack, https://dmlc.github.io/dlpack/latest/; PyTorch, "Extending PyTorch",
        https://docs.pytorch.org/docs/stable/notes/extending.html
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {shown(fn)}")
    return _Bridged(fn)


class _Bridged:
    """A JAX function of tensors; its copies compile for themselves."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        update_wrapper(self, fn, updated=())
        self._fn = fn
        self._programs: dict[Any, Program] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Any = self._call
        return call(args, kwargs)

    @torch.compiler.disable
    def _call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        static = tuple(map(_static, leaves))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = tuple(
            float(leaf) if isinstance(leaf, float) else leaf
            for leaf, kind in zip(leaves, static, strict=True)
            if kind == NUMBER
        )
        if not _is_fit(tensors):
            _explain(args, kwargs)
        try:
            program = self._programs.get((tree, static))
        except TypeError:
            _explain(args, kwargs)
            raise
        if program is None:
            program = Program(_of_arrays(self._fn, tree, static))
            self._programs[tree, static] = program
        outputs, structure = apply(program, numbers, tensors)
        return jax.tree.unflatten(structure, outputs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> Any:
        # What decorates a function has its name, by which pickle finds it.
        path = getattr(self._fn, "__qualname__", "")
        found: Any = sys.modules.get(self._fn.__module__)
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is self:
            return path
        return jax_to_torch, (self._fn,)


class _Kind(NamedTuple):
    """What stands in the place of a leaf: its type, and its value if it is static."""

    type: type
    value: Any = None


TENSOR, NUMBER = _Kind(Tensor), _Kind(float)


def _static(leaf: Any) -> _Kind:
    if isinstance(leaf, Tensor):
        return TENSOR
    if isinstance(leaf, float) or is_key(leaf):
        return NUMBER
    return _Kind(type(leaf), leaf)


def _of_arrays(fn: Callable, tree: Any, static: tuple[_Kind, ...]) -> Callable:
    """The function of (numbers, *arrays), with the static arguments filled in."""

    def of_arrays(numbers: tuple, *arrays: Any) -> Any:
        rest = {TENSOR: iter(arrays), NUMBER: iter(numbers)}
        leaves = [next(rest[kind]) if kind in rest else kind.value for kind in static]
        args, kwargs = jax.tree.unflatten(tree, leaves)
        return jax.tree_util.tree_map_with_path(as_output, fn(*args, **kwargs))

    return of_arrays


def _is_fit(tensors: Sequence[Tensor]) -> bool:
    """Whether all can cross: the check of every call, which must not take long."""
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    return bool(tensors) and all(
        t.device == tensors[0].device
        and t.device.type in PLATFORMS
        and t.layout == torch.strided
        and not t.is_complex()
        and not isinstance(t, FakeTensor)
        and (wide or t.dtype not in WIDE)
        for t in tensors
    )


def _explain(args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises what is wrong with the arguments, by name."""
    first = None
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        name = ("args", "kwargs")[path[0].idx] + jax.tree_util.keystr(path[1:])
        if isinstance(leaf, Tensor):
            first = first or (name, leaf.device)
            _explain_tensor(name, leaf, *first)
        elif not isinstance(leaf, Hashable) and not is_key(leaf):
            kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
            hint = "hand an array in as a tensor, or close over it"
            raise TypeError(f"{name} must be a tensor or hashable, got {kind}: {hint}")
    if first is None:
        raise ValueError("args must hold at least one tensor, got none")


def _explain_tensor(name: str, tensor: Tensor, first: str, device: Any) -> None:
    is_fake = isinstance(tensor, FakeTensor)
    if tensor.is_complex() or tensor.layout != torch.strided or is_fake:
        found = "a fake tensor" if is_fake else f"{tensor.dtype}, {tensor.layout}"
        raise TypeError(f"{name} must be dense and real, got {found}")
    if tensor.device.type not in PLATFORMS:
        raise ValueError(f"{name} must be on cpu or cuda, got device {tensor.device}")
    if tensor.device != device:
        devices = f"{first} is on {device}, {name} on {tensor.device}"
        raise ValueError(f"args must be on one device: {devices}")
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if tensor.dtype in WIDE and not wide:
        raise ValueError(
            f"{name} is {tensor.dtype}, which JAX would round to 32 bits: before the "
            'first array, jax.config.update("jax_enable_x64", True); or hand in 32 bits'
        )
