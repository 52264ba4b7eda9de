"""The torch half of the bridge from JAX: a function of flat tensors, and its gradient.

Tensors may have leading batch axes, as `jax.vmap` hands them over: all the same number,
of the size of the batch, or of size 1 where a tensor is the same in all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor

from diffkm_torch.bridge._trial import Spec, flat

Batch = tuple[int, ...]


@contextmanager
def usual_settings() -> Iterator[None]:
    """Those of a thread of torch that has set none: JAX calls in any thread.

    With gradients in a forward pass, too: a function may differentiate inside.
    """
    on = torch.is_autocast_enabled("cpu")
    autocast = torch.autocast("cpu", enabled=False) if on else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), autocast:
        yield


class Host:
    """A function of tensors, of which the shapes of inputs and outputs are known."""

    def __init__(
        self, fn: Callable, inputs: Sequence[Spec], outputs: Sequence[Spec]
    ) -> None:
        self.fn, self.inputs, self.outputs = fn, inputs, outputs
        self._can_map = True

    def value(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs."""
        outputs = self._batched(tensors, _batch(tensors, self.inputs))
        return [output.detach() for output in outputs]

    def gradient(
        self, wanted: tuple[int, ...], moving: tuple[int, ...], *tensors: Tensor
    ) -> Sequence[Tensor]:
        """The gradients in the wanted inputs, by cotangents of the moving outputs."""
        n = len(self.inputs)
        specs = [*self.inputs, *(self.outputs[i] for i in moving)]
        batch = _batch(tensors, specs)
        inputs = list(tensors[:n])
        for i in wanted:
            # What is the same in all of a batch has a gradient in each of it.
            inputs[i] = inputs[i].expand(batch + self.inputs[i].shape).detach()
            inputs[i].requires_grad_()
        leaves = [inputs[i] for i in wanted]
        outputs = self._batched(inputs, batch)
        cotangents = {
            i: cotangent.expand(batch + self.outputs[i].shape)
            for i, cotangent in zip(moving, tensors[n:], strict=True)
            if outputs[i].requires_grad
        }
        if not cotangents:
            return [torch.zeros_like(leaf) for leaf in leaves]
        return torch.autograd.grad(
            [outputs[i] for i in cotangents],
            leaves,
            list(cotangents.values()),
            allow_unused=True,
            materialize_grads=True,
        )

    def _batched(self, tensors: Sequence[Tensor], batch: Batch) -> Sequence[Tensor]:
        if 0 in batch:
            return [torch.zeros(batch + s.shape, dtype=s.dtype) for s in self.outputs]
        if batch and self._can_map:
            try:
                return self._mapped(tensors, len(batch))
            except Exception:
                # torch.func cannot map it, or else the loop meets the error again.
                self._can_map = False
        if batch:
            return self._looped(tensors, batch)
        return self._once(*tensors)

    def _mapped(self, tensors: Sequence[Tensor], depth: int) -> Sequence[Tensor]:
        if depth == 0:
            return self._once(*tensors)
        dims = tuple(None if t.shape[0] == 1 else 0 for t in tensors)
        inner = [
            t[0] if dim is None else t for t, dim in zip(tensors, dims, strict=True)
        ]
        if not any(dim == 0 for dim in dims):
            return [t[None] for t in self._mapped(inner, depth - 1)]

        def level(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._mapped(tensors, depth - 1))

        return torch.func.vmap(level, in_dims=dims)(*inner)

    def _looped(self, tensors: Sequence[Tensor], batch: Batch) -> Sequence[Tensor]:
        depth = len(batch)
        rows = [t.expand(batch + t.shape[depth:]) for t in tensors]
        found = [
            self._once(*(row[index] for row in rows))
            for index in product(*map(range, batch))
        ]
        return [
            torch.stack(column).reshape(batch + spec.shape)
            for column, spec in zip(zip(*found, strict=True), self.outputs, strict=True)
        ]

    def _once(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # Copies, for they are memory of JAX, and a function may edit its arguments.
        leaves, _ = flat(self.fn(*(t.clone() for t in tensors)))
        found = [Spec(tuple(leaf.shape), leaf.dtype) for leaf in leaves]
        if found != self.outputs:
            raise ValueError(
                "fn must return shapes and dtypes that follow from its arguments', "
                f"got {_shown(found)}, and {_shown(self.outputs)} in the trial"
            )
        return tuple(leaves)


def _batch(tensors: Sequence[Tensor], specs: Sequence[Spec]) -> Batch:
    """The leading axes, beyond those that the tensors have."""
    axes = [
        tensor.shape[: tensor.ndim - len(spec.shape)]
        for tensor, spec in zip(tensors, specs, strict=True)
    ]
    return tuple(torch.broadcast_shapes(*axes)) if axes else ()


def _shown(specs: Any) -> str:
    """Dtypes and shapes in a message: float32[3, 2]."""
    return ", ".join(
        f"{str(dtype).removeprefix('torch.')}{list(shape)}" for shape, dtype in specs
    )
