"""The two public functions: a comparison, and an assertion of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffkm_torch._hints import shown
from diffkm_torch.agreement._arguments import Wrt, arguments
from diffkm_torch.agreement._comparison import Comparison
from diffkm_torch.agreement._evaluate import JaxSide, Task, TorchSide
from diffkm_torch.agreement._report import Pair, Report
from diffkm_torch.agreement._tolerances import TOLERANCE

DTYPES = "float64", "float32"


def compare_gradients(
    jax_fn: Callable[..., Any],
    torch_fn: Callable[..., Any],
    *args: Any,
    wrt: Wrt = None,
    dtypes: Sequence[str] = DTYPES,
    cotangent: Any = "random",
    jit: bool = True,
    tol: float | dict[str, float] | None = None,
    kwargs: dict[str, Any] | None = None,
    order: int = 1,
    forward: bool = False,
    seed: int = 0,
) -> Report:
    """Compares a JAX and a torch function: values, and the gradient of each output.

    Every output gets a cotangent and a backward pass of its own, so that a small output
    or a small input cannot hide behind a large one. Each row (along the last axis; of a
    vector each entry) is judged against its own rounding: the largest change of it, on
    either side, when all inputs move by one unit in the last place. Two rows agree
    when they differ by at most 1000 times that, or by `tol` times their largest entry.
    Rows in which 1000 times the rounding is more than 1 % are *unresolved*, and rows
    that such a move makes jump are at a *kink*: said so, never counted as agreement.
    So is a difference of less than 20 units roundoff (100 where float32 loses the row)
    of the output over the spread of the input: a saturated softmax has such, which no
    move of its inputs shows.
    Inputs that are tied exactly are judged in float64, because the tie rule is part of
    what a function promises. Integers are compared exactly. NaN must meet NaN, and an
    infinity the same one; a row of nothing else is unresolved, because they hide any
    factor, and one of both is judged by its finite numbers. The gradients are those
    that each framework returns, declared ones included.

    Both get the same arrays: draw noise once, by NumPy, and hand it in as an argument.

    Args:
        jax_fn: Function of JAX arrays and trees of them, to the same.
        torch_fn: The same function of torch tensors.
        *args: Arrays of NumPy, JAX or torch, of any shape, or trees (dicts, tuples,
            lists, named tuples) of them. Python floats are arrays, too. What is no
            array (integers, strings, None, functions) is handed to both as it is.
        wrt: Which arguments are differentiated: positions, or keywords of `kwargs`;
            None is every floating array.
        dtypes: Of the floating inputs, "float64" and "float32", one run for each.
        cotangent: "random" (standard normal), "ones", or an array for every floating
            output in the tree that the functions return.
        jit: Whether the JAX function is compiled; if so it runs uncompiled as well, and
            both are compared.
        tol: Tolerance relative to the largest entry of a row, no unit; one number, or
            one by dtype. None is 1e-10 in float64 and 1e-4 in float32.
        kwargs: Keyword arguments of both; in them only arrays are arrays.
        order: 2 compares the gradients of every gradient, too.
        forward: Whether to compare forward mode, too: the tangents of the outputs
            along a random tangent of each input.
        seed: Of cotangents and moves.

    Returns:
        A `Report`: prints as a table, `agree` is its verdict, `to_dict()` is for
        machines. Its numbers are relative, without a unit.

    Raises:
        TypeError: A function is none, or returns what is no array or an array of
            another dtype than the other one; an argument is a random key; `wrt` names
            what is not floating.
        ValueError: "float64" is asked for while JAX's x64 mode is off; the functions
            return different trees or shapes; nothing that torch_fn returns depends on
            its inputs while the gradients of jax_fn are not zero; torch_fn returns
            something else when it is called again; a tensor is not on the CPU; an
            option has a value that there is not.

    Example:
        >>> from diffkm_torch.agreement import compare_gradients
        >>> def doubled(points, centroids):
        ...     return 2 * dt.kmeans_loss(points, centroids)
        >>> x, c = np.array([[0.0], [1.0], [9.0]]), np.array([[2.0], [7.0]])
        >>> for port in (dt.kmeans_loss, doubled):  # float64 needs JAX's x64 mode.
        ...     compare_gradients(dk.kmeans_loss, port, x, c, dtypes=["float32"]).agree
        True
        False

    Source: the rule is this library's; the errors that it allows for are those of
        Higham, Accuracy and Stability of Numerical Algorithms, 2002,
        https://doi.org/10.1137/1.9780898718027
    """
    _check_options(jax_fn, torch_fn, dtypes, cotangent, order)
    task = Task(arguments(args, kwargs or {}, wrt), order, forward)
    tolerances = _tolerances(tol)
    sides = JaxSide(jax_fn, task), TorchSide(torch_fn, task)
    pairs: list[Pair] = []
    for dtype in dtypes:
        with np.errstate(all="ignore"):
            comparison = Comparison(sides, task, dtype, cotangent, seed, jit)
            pairs += comparison.pairs(tolerances)
    return Report(tuple(pairs), task.arguments.held, seed)


def assert_gradients_agree(
    jax_fn: Callable[..., Any],
    torch_fn: Callable[..., Any],
    *args: Any,
    max_unjudged: float | None = None,
    **options: Any,
) -> Report:
    """Raises AssertionError, with the table, unless the two functions agree.

    Args:
        jax_fn: Function of JAX arrays.
        torch_fn: The same function of torch tensors.
        *args: The arrays of both; the gradient in each floating one is compared.
        max_unjudged: The share of rows, 0 to 1, no unit, that rounding or a kink may
            leave without a verdict; None is any.
        **options: Those of `compare_gradients`.

    Returns:
        The `Report`.

    Raises:
        AssertionError: A value or a gradient disagrees, or no row of one kind of them,
            or too few of all, are judged.
        TypeError: As `compare_gradients`.
        ValueError: As `compare_gradients`.

    Example:
        >>> from diffkm_torch.agreement import assert_gradients_agree
        >>> x, y = np.array([3.0, 4.0]), np.array([1.0, 1.0])
        >>> pair = dk.squared_euclidean, dt.squared_euclidean
        >>> report = assert_gradients_agree(*pair, x, y, dtypes=["float32"])
        >>> report.agree, float(report.unjudged)
        (True, 0.0)

    Source: as `compare_gradients`.
    """
    report = compare_gradients(jax_fn, torch_fn, *args, **options)
    if not report.agree:
        raise AssertionError(f"\n{report}")
    if max_unjudged is not None and report.unjudged > max_unjudged:
        share = f"{report.unjudged:.3g} of the rows are not judged"
        raise AssertionError(f"{share}, more than {max_unjudged}\n{report}")
    return report


def _check_options(
    jax_fn: Any, torch_fn: Any, dtypes: Any, cotangent: Any, order: Any
) -> None:
    for name, fn in (("jax_fn", jax_fn), ("torch_fn", torch_fn)):
        if not callable(fn):
            raise TypeError(f"{name} must be a function, got {shown(fn)}")
    if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(DTYPES):
        raise ValueError(f"dtypes must be among {DTYPES}, got {dtypes!r}")
    if "float64" in dtypes and not jax.config.values["jax_enable_x64"]:
        raise ValueError(
            "dtypes has 'float64', but JAX's x64 mode is off, which would round to "
            'float32: before the first array, jax.config.update("jax_enable_x64", '
            "True); or take dtypes=('float32',)"
        )
    if isinstance(cotangent, str) and cotangent not in ("random", "ones"):
        raise ValueError(
            f"cotangent must be 'random', 'ones' or arrays, got {shown(cotangent)}"
        )
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")


def _tolerances(tol: float | dict[str, float] | None) -> dict[str, float]:
    """By dtype, those that are not given at their default."""
    if tol is None:
        return TOLERANCE
    given = tol if isinstance(tol, dict) else dict.fromkeys(DTYPES, tol)
    if not set(given) <= set(DTYPES) or not all(0 < t < 1 for t in given.values()):
        kinds = f"between 0 and 1, one for all or by dtype among {DTYPES}"
        raise ValueError(f"tol must be {kinds}, got {tol!r}")
    return TOLERANCE | given
