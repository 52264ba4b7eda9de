"""A torch function inside JAX.

    loss = torch_to_jax(torch_loss)
    jax.grad(loss, argnums=1)(points, centroids)  # of JAX arrays

It runs on the host, in a callback. Its gradient is torch's, in a second callback, which
runs the function again: between the two JAX keeps the arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, NamedTuple, overload

import jax
import numpy as np
from torch import Tensor, nn

from diffkm_torch._hints import shown
from diffkm_torch.bridge._callbacks import DTYPES, call_torch
from diffkm_torch.bridge._stateless import Stateless

Arrays = dict[str, jax.Array]


@overload
def torch_to_jax(  # type: ignore[overload-overlap]
    fn: nn.Module,
) -> tuple[Callable[..., Any], Arrays]: ...
@overload
def torch_to_jax(fn: Callable[..., Any]) -> Callable[..., Any]: ...
def torch_to_jax(fn: Any) -> Any:
    """Makes a function of JAX arrays of a torch function, or of a module.

    The value is that of `fn`; the gradient, of first order, is that of torch's autograd
    in those parameters and floating inputs that JAX asks for: eager, under `jax.jit`,
    `jax.grad`, `jax.vmap`, `jax.lax.scan`, `jax.checkpoint` and `jax.shard_map`. What
    `fn` detaches has gradient 0. `jax.vmap` is `torch.func.vmap` of `fn`, or, where
    torch cannot map it, a loop over the batch, in one callback.

    `fn` must return the same for the same arguments, and change nothing else. Shapes
    are found while JAX traces, by a call with fake tensors, or, where values decide
    what is computed, one with ones; such a call also finds random draws and edits of
    buffers. A function may edit its arguments, which are copies.

    What does not work: second derivatives and forward mode raise TypeError, and
    `jax.export` NotImplementedError. Everything is on the CPU: on an accelerator arrays
    go there and back. Autocast is off but where `fn` turns it on. A module that calls
    `torch.utils.checkpoint` has no gradient, but an error. The gradient in what all of
    a batch of `jax.vmap` shares is computed for each of it, then summed: where `fn`
    takes a whole batch, hand it in.

    A function of 16 numbers takes 70 µs under `jax.jit` (in torch 4), with its gradient
    0.24 ms (in torch 0.04), outside of `jax.jit` 1.3 ms: of two callbacks, each with a
    copy of all arguments, the second one runs the forward pass again. A batch of 1000
    takes 0.22 ms if torch can map, else 30 ms.

    Args:
        fn: A torch function of tensors and trees of them (tuples, lists, dicts, named
            tuples) to such, in any units, or a module.

    Returns:
        The same function of arrays of any shape. What is no array of JAX or NumPy
        (Python numbers, strings, None, functions) is static: `fn` has it as it is, it
        must be hashable, and another value is another program. Arrays of integers come
        as they are; where torch wants int64, `fn` must say `.long()`. Where x64 is off,
        results of int64 are int32. Of a module, a pair: the function of (params,
        *inputs), and params, a dict of copies of the parameters by torch's names, tied
        ones once. Buffers and parameters that need no gradient are constants, copied
        here and now, as is the mode (train or eval): the module itself is not used.

    Raises:
        TypeError: `fn` is no function; or, in a call: an argument is a tensor, or an
            array of complex numbers or random keys, or static and not hashable; or `fn`
            returns what is no dense and real tensor on the CPU; or the parameters of
            a module are left out; or a derivative is to be differentiated.
        ValueError: A module has a parameter without shape, or is not on the CPU; or, in
            a call: `fn` draws random numbers, or edits buffers (call `.eval()`), or
            params are not those of the module; or a tensor of float64 is met while
            JAX's x64 mode is off, which would round it.
        jax.errors.JaxRuntimeError: What `fn` raises while a program runs, with its
            message (of JAX, as ValueError, where nothing is waited for); so for shapes
            that depend on values, and integers beyond 32 bits where x64 is off.

    Example:
        >>> from diffkm_torch.bridge import torch_to_jax
        >>> x, c = jnp.array([[0.0], [1.0], [9.0], [10.0]]), jnp.array([[0.0], [10.0]])
        >>> slope = jax.jit(jax.grad(torch_to_jax(dt.kmeans_loss), argnums=1))
        >>> slope(x, c).tolist()
        [[-2.0], [2.0]]
        >>> layer, params = torch_to_jax(torch.nn.Linear(1, 2, bias=False))
        >>> ones = jnp.ones((4, 1), jnp.float32)
        >>> jax.grad(lambda p: layer(p, ones).sum())(params)
        {'weight': Array([[4.],
               [4.]], dtype=float32)}

    Source: JAX, "External callbacks",
        https://docs.jax.dev/en/latest/external-callbacks.html; PyTorch, "torch.func",
        https://docs.pytorch.org/docs/stable/func.html
    """
    if isinstance(fn, nn.Module):
        module = Stateless(fn)
        return _bridged(module, module.copied), module.parameters
    if not callable(fn):
        raise TypeError(f"fn must be a function or a module of torch, got {shown(fn)}")
    return _bridged(fn, lambda: fn)


def _bridged(
    fn: Callable[..., Any], make: Callable[[], Callable[..., Any]]
) -> Callable[..., Any]:
    # One program for each way of calling, or every call would compile.
    programs: dict[Any, Callable] = {}

    @wraps(fn, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        static = tuple(map(_static, leaves))
        arrays = [a for a, kind in zip(leaves, static, strict=True) if kind is ARRAY]
        if not _are_fit(arrays, static):
            _explain(args, kwargs)
        if (tree, static) not in programs:
            programs[tree, static] = _program(fn, make, tree, static)
        return programs[tree, static](*arrays)

    return call


class _Kind(NamedTuple):
    """What stands in the place of a leaf: its type, and its value if it is static."""

    type: type
    value: Any = None


ARRAY = _Kind(jax.Array)


def _static(leaf: Any) -> _Kind:
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return ARRAY
    # 0.0 and -0.0 are equal, NaN is not to itself: numbers are kept by their digits.
    if type(leaf) is float:
        return _Kind(float, leaf.hex())
    return _Kind(type(leaf), leaf)


def _program(
    fn: Callable, make: Callable[[], Callable], tree: Any, static: tuple[_Kind, ...]
) -> Callable:
    """The compiled function of the arrays among the leaves."""

    def of_tensors(called: Callable) -> Callable:
        def of_tensors(*tensors: Tensor) -> Any:
            rest = iter(tensors)
            leaves = [next(rest) if kind is ARRAY else _value(kind) for kind in static]
            args, kwargs = jax.tree.unflatten(tree, leaves)
            return called(*args, **kwargs)

        return of_tensors

    @jax.jit
    def program(*arrays: Any) -> Any:
        return call_torch(of_tensors(fn), lambda: of_tensors(make()), arrays)

    return program


def _value(kind: _Kind) -> Any:
    return float.fromhex(kind.value) if kind.type is float else kind.value


def _are_fit(arrays: list, static: tuple[_Kind, ...]) -> bool:
    rest = (kind.value for kind in static if kind is not ARRAY)
    can_cross = all(a.dtype in DTYPES for a in arrays)
    return can_cross and all(map(_can_be_static, rest))


def _can_be_static(value: Any) -> bool:
    # A tensor is hashable, as an object.
    return isinstance(value, Hashable) and not isinstance(value, Tensor)


def _explain(args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises what is wrong with the arguments, by name."""
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        name = ("args", "kwargs")[path[0].idx] + jax.tree_util.keystr(path[1:])
        if isinstance(leaf, Tensor):
            raise TypeError(
                f"{name} must be an array of JAX or NumPy, got {shown(leaf)}: pass "
                "jax.dlpack.from_dlpack(tensor.detach()), or call fn in torch"
            )
        if _static(leaf) is ARRAY and leaf.dtype not in DTYPES:
            raise TypeError(
                f"{name} must be an array of real numbers, got dtype {leaf.dtype}"
            )
        if _static(leaf) is not ARRAY and not _can_be_static(leaf):
            kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
            raise TypeError(f"{name} must be an array or hashable, got {kind}")
