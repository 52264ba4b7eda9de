"""The torch half of the bridge: an autograd function that calls a JAX program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import torch
from torch import Tensor
from torch.autograd import Function

from diffkm_torch._leaves import combine
from diffkm_torch.bridge._programs import Program, pull_back

# Settings of JAX that belong to a thread, by the name of their context manager. A
# backward pass may run in another thread, and must find those of the forward pass.
SETTINGS = (
    "enable_x64",
    "default_matmul_precision",
    "default_device",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "debug_nans",
    "debug_infs",
)


@dataclass
class _Call:
    """One call: what torch does not hand from pass to pass."""

    program: Program
    numbers: tuple[float, ...]
    # The inputs whose gradient torch is going to ask for, as far as one can tell.
    wanted: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    structure: Any = None
    residuals: list[Tensor] = field(default_factory=list)
    residual_structure: Any = None


def apply(
    program: Program, numbers: tuple[float, ...], tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Any]:
    """The outputs of a program, with their derivatives, and their tree."""
    wanted: tuple[int, ...] = ()
    if torch.is_grad_enabled():
        wanted = tuple(i for i, t in enumerate(tensors) if t.requires_grad)
    call = _Call(program, numbers, wanted, _settings())
    outputs: Any = _Bridge.apply(call, *tensors)
    return outputs, call.structure


class _Bridge(Function):
    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        arrays = list(map(_to_jax, tensors))
        program, numbers = call.program, call.numbers
        if call.wanted:
            output, pullback = program.with_pullback(call.wanted)(numbers, *arrays)
            residuals, call.residual_structure = jax.tree.flatten(pullback)
            call.residuals = list(map(torch.from_dlpack, residuals))
        else:
            output = program.value(numbers, *arrays)
        leaves, call.structure = jax.tree.flatten(output)
        outputs = tuple(map(torch.from_dlpack, leaves))
        # Compiled, results are memory of their own; else they may be an argument's.
        is_compiled = not jax.config.jax_disable_jit  # type: ignore[attr-defined]
        return outputs if is_compiled else tuple(t.clone() for t in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        call, *tensors = inputs
        ctx.call, ctx.n = call, len(tensors)
        ctx.floating = [t.is_floating_point() for t in output]
        ctx.mark_non_differentiable(*(t for t in output if not t.is_floating_point()))
        ctx.save_for_backward(*tensors, *call.residuals)
        ctx.save_for_forward(*tensors)
        call.residuals = []

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        call, n = ctx.call, ctx.n
        # Read once: hooks of saved tensors run at every reading.
        saved = ctx.saved_tensors
        inputs, residuals = saved[:n], saved[n:]
        wanted = tuple(i for i in range(n) if ctx.needs_input_grad[1 + i])
        cts = [c for c, use in zip(cotangents, ctx.floating, strict=True) if use]
        with _settings_of(call):
            if torch.is_grad_enabled() or not set(wanted) <= set(call.wanted):
                program = call.program.gradient(n, wanted)
                found, _ = apply(program, call.numbers, [*inputs, *cts])
            else:
                found = _PullBack.apply(call, wanted, n, *inputs, *cts, *residuals)
        return None, *combine([None] * n, wanted, found)

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, _: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        call, n = ctx.call, ctx.n
        wanted = tuple(i for i, t in enumerate(tangents) if t is not None)
        moving = [t for t in tangents if t is not None]
        with _settings_of(call):
            program = call.program.tangent(n, wanted)
            found, _ = apply(program, call.numbers, [*ctx.saved_tensors[:n], *moving])
        floating = [i for i, use in enumerate(ctx.floating) if use]
        return tuple(combine([None] * len(ctx.floating), floating, found))

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple, call: _Call, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        program = call.program.mapped(in_dims[1:])
        outputs, call.structure = apply(program, call.numbers, tensors)
        return outputs, (0,) * len(outputs)


class _PullBack(Function):
    """The gradients by the residuals of the forward pass, without derivatives."""

    @staticmethod
    def forward(
        call: _Call, wanted: tuple[int, ...], n: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        arrays = list(map(_to_jax, tensors))
        end = len(arrays) - call.residual_structure.num_leaves
        pullback = jax.tree.unflatten(call.residual_structure, arrays[end:])
        keep = tuple(call.wanted.index(i) for i in wanted)
        found = pull_back(pullback, arrays[:n], tuple(arrays[n:end]), keep)
        return tuple(map(torch.from_dlpack, found))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        del ctx, inputs, output

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any,
        in_dims: tuple,
        call: _Call,
        wanted: tuple[int, ...],
        n: int,
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        end = len(tensors) - call.residual_structure.num_leaves
        program = call.program.gradient(n, wanted).mapped(in_dims[3 : 3 + end])
        found, _ = apply(program, call.numbers, tensors[:end])
        return found, (0,) * len(found)


def _to_jax(tensor: Tensor) -> jax.Array:
    try:
        return jax.dlpack.from_dlpack(tensor.detach().contiguous())
    except RuntimeError as error:
        if tensor.device.type == "cpu":
            raise
        platforms = sorted({device.platform for device in jax.devices()})
        raise ValueError(
            f"a tensor is on {tensor.device}, and JAX has only {platforms}: move it "
            "there, or install JAX for that device"
        ) from error


def _settings() -> dict[str, Any]:
    return {name: getattr(jax.config, f"jax_{name}") for name in SETTINGS}


@contextmanager
def _settings_of(call: _Call) -> Iterator[None]:
    """The settings of JAX as they were in the forward pass."""
    now = _settings()
    with ExitStack() as stack:
        for name, value in call.settings.items():
            if value != now[name]:
                stack.enter_context(getattr(jax, name)(value))
        yield
