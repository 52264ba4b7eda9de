"""The JAX half of the bridge from JAX: a callback that has a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.experimental.buffer_callback import buffer_callback
from torch import Tensor

from diffkm_jax._mesh import vary_as
from diffkm_torch._leaves import combine
from diffkm_torch.bridge._host import Host, usual_settings
from diffkm_torch.bridge._trial import Spec, outputs_of

DTYPES = {
    jnp.dtype(name): getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}
OF_TORCH = {theirs: ours for ours, theirs in DTYPES.items()}
SECOND = (
    "fn, a torch function in JAX, has gradients of first order only: take the first "
    "derivative inside fn, by torch.func.grad"
)


Results = list[jax.ShapeDtypeStruct]


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """The inputs whose gradient is asked for."""

    indices: tuple[int, ...]


def call_torch(
    fn: Callable, make: Callable[[], Callable], arrays: Sequence[Any]
) -> Any:
    """The result of a torch function of arrays, as a tree of arrays.

    While JAX traces, what `make` makes, its like, is tried for the shapes of results.
    """
    arrays = vary_as(list(arrays), *arrays)
    inputs = [Spec(a.shape, DTYPES[a.dtype]) for a in arrays]
    # What of JAX is inside a function is computed in its trial, not traced.
    with jax.ensure_compile_time_eval(), usual_settings():
        outputs, structure = outputs_of(make, inputs)
    host = Host(fn, inputs, outputs)
    results = list(map(_result, outputs))
    return jax.tree.unflatten(structure, _differentiable(host, results)(*arrays))


def _result(spec: Spec) -> jax.ShapeDtypeStruct:
    """The array that a tensor becomes."""
    dtype = OF_TORCH.get(spec.dtype)
    if dtype is None:
        raise TypeError(f"fn must return real numbers, got a tensor of {spec.dtype}")
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if spec.dtype == torch.float64 and not wide:
        raise ValueError(
            "fn returns torch.float64, which JAX would round to 32 bits: before the "
            'first array, jax.config.update("jax_enable_x64", True); or return .float()'
        )
    narrow = dtype if wide else jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(spec.shape, narrow)


def _differentiable(host: Host, results: Results) -> Callable:
    """The function of arrays, with its gradient."""

    @jax.custom_vjp
    def call(*arrays: jax.Array) -> list[jax.Array]:
        return _on_host(host.value, results, arrays)

    def forward(*primals: Any) -> tuple[list[jax.Array], tuple]:
        arrays = [primal.value for primal in primals]
        wanted = [i for i, p in enumerate(primals) if p.perturbed and _is_real(p.value)]
        return call(*arrays), (_Wanted(tuple(wanted)), arrays)

    def backward(residuals: tuple, cotangents: list[Any]) -> tuple:
        wanted, arrays = residuals[0].indices, residuals[1]
        # Zeros are symbols, and so are all cotangents of integers.
        moving = tuple(
            i for i, c in enumerate(cotangents) if not isinstance(c, SymbolicZero)
        )
        # Symbols, not None: in jax 0.8 the tree of results must never change.
        zeros = [zero_from_primal(array, symbolic_zeros=True) for array in arrays]
        found: Sequence[Any] = [zeros[i] for i in wanted]
        if wanted and moving:
            likes = [
                jax.ShapeDtypeStruct(arrays[i].shape, arrays[i].dtype) for i in wanted
            ]
            gradient = _first_order(partial(host.gradient, wanted, moving), likes)
            found = gradient(*arrays, *(cotangents[i] for i in moving))
        return tuple(combine(zeros, wanted, found))

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call


def _is_real(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _first_order(gradient: Callable, results: Results) -> Callable:
    """The gradient as a function of arrays that raises where it is differentiated."""

    @jax.custom_jvp
    def once(*arrays: jax.Array) -> list[jax.Array]:
        return _on_host(gradient, results, arrays)

    @once.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        del primals, tangents
        raise TypeError(SECOND)

    return once


def _on_host(fn: Callable, results: Results, arrays: Sequence[Any]) -> list[jax.Array]:
    """The tensors of a function of tensors, as arrays.

    `jax.pure_callback` copies its arguments in a thread of the pool that callbacks run
    in. On the CPU, where it may have no other, it never returns: large arrays in two
    threads, on two devices, or on one core. There the memory itself is handed over.
    """
    if not results:
        return []
    how: dict[str, Any] = {"vmap_method": "expand_dims"}
    found = lax.platform_dependent(
        *arrays,
        cpu=buffer_callback(partial(_into_buffers, fn), results, **how),
        default=partial(
            jax.pure_callback, partial(_to_numpy, fn, results), results, **how
        ),
    )
    return vary_as(list(found), *arrays)


@usual_settings()
def _into_buffers(fn: Callable, context: Any, buffers: Sequence, *arrays: Any) -> None:
    del context
    for buffer, tensor in zip(
        buffers, fn(*map(torch.from_dlpack, arrays)), strict=True
    ):
        memory = torch.from_dlpack(buffer)
        memory.copy_(_narrowed(tensor, memory.dtype))


@usual_settings()
def _to_numpy(fn: Callable, results: Results, *arrays: Any) -> list[np.ndarray]:
    found = []
    for tensor, result in zip(
        fn(*map(torch.from_dlpack, arrays)), results, strict=True
    ):
        row = _narrowed(tensor, DTYPES[result.dtype]).reshape(-1)
        # By bytes, for NumPy has no bfloat16 of torch's.
        data = row.view(torch.uint8).numpy().view(result.dtype)
        found.append(data.reshape(tensor.shape))
    return found


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the dtype of the result: integers of 32 bits where x64 is off."""
    narrow = tensor.to(dtype)
    if narrow.dtype != tensor.dtype and not torch.equal(
        narrow.to(tensor.dtype), tensor
    ):
        raise ValueError(
            f"fn returns {tensor.dtype} beyond the range of {dtype}, which they are in "
            'JAX: before the first array, jax.config.update("jax_enable_x64", True)'
        )
    return narrow
