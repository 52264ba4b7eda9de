"""Steps of optimizers: a training of torch against one of optax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from diffkm_torch.agreement._parameters import Rule
from diffkm_torch.agreement._verdicts import DTYPES, TOLERANCE
from diffkm_torch.agreement.steps._arguments import (
    check_functions,
    check_optimizers,
    check_options,
    read_batches,
    read_parameters,
)
from diffkm_torch.agreement.steps._report import StepsReport
from diffkm_torch.agreement.steps._run import run
from diffkm_torch.agreement.steps._sides import JaxSide, TorchSide


def compare_steps(
    jax_loss: Callable[..., Any],
    torch_loss: Callable[..., Any],
    params: Any,
    module: nn.Module,
    batches: Sequence[Any],
    *,
    optimizers: tuple[Any, Callable[..., torch.optim.Optimizer]],
    match: Rule = None,
    max_norm: float | None = None,
    scheduler: Callable[[Any], Any] | None = None,
    dtypes: Sequence[str] = DTYPES,
    tol: float | None = None,
    jit: bool = True,
) -> StepsReport:
    """Trains in JAX and in torch from the same start, and finds what parts first.

    One step for each batch, by optax and by torch.optim. After each, both losses, all
    gradients, the optimizers' states (moments and counts, found by name wherever they
    stand in a chain or in `optax.inject_hyperparams`) and all parameters are compared,
    in this order: the first that differs is where to look. It is judged row by row
    (along the last axis; of a vector each entry) against the row's own rounding: the
    largest change of it, on either side, after the same steps from a start and on
    batches that are moved by one unit in the last place, because training enlarges
    rounding. Two rows agree when they differ by at most 1000 times that, or by `tol`
    times their largest entry, of parameters times how far the row is from the start.
    Rows in which 1000 times the rounding is more than 1 % have no verdict, and a step
    of nothing else is `unresolved`: said so, never counted as agreement.

    The first of `dtypes` judges. In float32 each side runs once more, and its distance
    from itself in float64 is shown. JAX's x64 mode is switched on for as long as it is
    needed.

    Args:
        jax_loss: Function of the tree of parameters and the arrays of a batch to a
            scalar, [].
        torch_loss: The same function of a module and tensors.
        params: Tree of JAX, the start of both sides: of flax, an equinox module, any
            dict. Leaves that are no floating arrays are held.
        module: The `nn.Module`, on the CPU, of which copies are trained. An
            `nn.ParameterDict` is one. Buffers that `params` has start there, and are
            held in JAX.
        batches: An array, or a tuple of arrays or trees of them, for each step.
        optimizers: An optax transformation, and a function of the list of parameters to
            a torch optimizer, as partial(torch.optim.Adam, lr=0.1).
        match: From a path in `params`, or the head of one, to torch's name:
            {"Dense_0": "0"}; or a function of the path to a name or (name, axes). None
            is by the names of flax and equinox: a kernel is a transposed weight.
        max_norm: Torch's gradients are clipped by `clip_grad_norm_` to this norm before
            each step, as `optax.clip_by_global_norm` does in a chain.
        scheduler: Function of torch's optimizer to a scheduler, stepped after it.
        dtypes: "float64", "float32" or both.
        tol: Tolerance relative to the largest entry of a row, no unit; None is 1e-10 in
            float64 and 1e-4 in float32.
        jit: Whether the step of JAX is compiled.

    Returns:
        A `StepsReport`: prints as a table, `agree` is its verdict, `first_step` the
        first step that parts, `parting` what does, `to_dict()` is for machines. Its
        numbers are relative, without a unit.

    Raises:
        TypeError: A function is none; `module` is no module; `optimizers` are none, or
            the other way round; `batches` hold what is no array; a loss has another
            dtype than its parameters.
        ValueError: A loss is no scalar, not finite at the start, does not depend on the
            parameters or changes when it is called again (dropout); `params` or
            `batches` hold NaN; there is no batch; names or shapes of `params` and
            `module` do not match; the torch optimizer holds other parameters; a tensor
            of `module` is not on the CPU; an option has a value that there is not.

    Example:
        >>> from functools import partial
        >>> from diffkm_torch.agreement import compare_steps
        >>> start = {"centroids": np.array([[2.0], [7.0]])}
        >>> report = compare_steps(
        ...     lambda p, x: dk.kmeans_loss(x, p["centroids"]),
        ...     lambda m, x: dt.kmeans_loss(x, m["centroids"]),
        ...     start,
        ...     torch.nn.ParameterDict({"centroids": torch.zeros(2, 1)}),
        ...     [np.array([[0.0], [1.0], [9.0]])] * 3,
        ...     optimizers=(optax.adam(0.1), partial(torch.optim.Adam, lr=0.2)),
        ... )
        >>> report.agree, report.first_step, report.parting.hint.partition(":")[0]
        (False, 1, "torch's whole step is 2 times JAX's")

    Source: optax, https://optax.readthedocs.io; torch.optim,
        https://docs.pytorch.org/docs/stable/optim.html
    """
    check_functions(jax_loss, torch_loss, scheduler)
    check_optimizers(optimizers)
    check_options(dtypes, tol, max_norm)
    task = read_parameters(params, module, match)
    sides = (
        JaxSide(jax_loss, optimizers[0], task, jit=jit),
        TorchSide(torch_loss, module, optimizers[1], scheduler, max_norm, task),
    )
    dtype = "float64" if "float64" in dtypes else "float32"
    tol = TOLERANCE[dtype] if tol is None else tol
    both = len(set(dtypes)) > 1
    return run(sides, read_batches(batches), dtype, tol, with_float32=both)
