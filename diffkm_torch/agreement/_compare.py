"""The two public functions: a comparison, and an assertion of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffkm_torch._hints import shown
from diffkm_torch.agreement._arguments import Wrt, arguments
from diffkm_torch.agreement._comparison import Comparison
from diffkm_torch.agreement._evaluations import precision_of
from diffkm_torch.agreement._report import Pair, Report
from diffkm_torch.agreement._sides import Functions, functions
from diffkm_torch.agreement._task import Side, Task
from diffkm_torch.agreement._verdicts import DTYPES, TOLERANCE


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
    frameworks: Sequence[str] | None = None,
    params: Any = None,
    match: Any = None,
) -> Report:
    """Compares two functions: values, and the gradient of each output in each input.

    One side is JAX's, the other torch's, or any two of JAX, torch and NumPy. Every
    output gets a cotangent and a backward pass of its own, so that a small output or a
    small input cannot hide behind a large one. The gradients are those that each
    framework returns, declared ones included; NumPy's are given by hand, as a pair of
    functions, or are differences of its values.

    float64 decides; it is switched on for the comparison alone. Each row (along the
    last axis; of a vector each entry) is judged against its own rounding: how much it
    changes, on either side, when all inputs move by one unit in the last place, and how
    far a side's float32 is from its own float64. Two rows agree when they differ by at
    most 1000 times that, or by `tol` times their largest entry. Rows in which 1000
    times the rounding is more than 1 % are *unresolved*, with the side that rounds
    named, and rows that a move makes jump are at a *kink*: said so, never counted as
    agreement. At exact ties the rule is part of what a function promises, and is
    compared. Integers are compared exactly. NaN must meet NaN, and an infinity the same
    one; a row of nothing else is unresolved, because they hide any factor.

    In float32 the report shows the error of each side against its own float64. There a
    row disagrees where it does in float64, or where one side is off its own float64 by
    an error that is no rounding, as it stays the same when last bits change.

    Both get the same arrays: draw noise once, by NumPy, and hand it in as an argument.
    Where functions of a module close over arrays, those stay as they are, and are
    listed.

    Args:
        jax_fn: Function of JAX arrays and trees of them, to the same; or a function of
            another framework, by `frameworks`. A callable tree with arrays in it, as
            equinox's modules are, is JAX's.
        torch_fn: The same function of torch tensors, or an `nn.Module`, which is copied
            in the dtype under test and left as it is.
        *args: Arrays of NumPy, JAX or torch, of any shape, or trees (dicts, tuples,
            lists, named tuples) of them. Python floats are arrays, too. What is no
            array (integers, strings, None, functions) is handed to both as it is.
        wrt: Which arguments are differentiated: positions, keywords of `kwargs`, or
            names of parameters; None is every floating array.
        dtypes: Of the floating inputs, "float64" and "float32", one run for each.
        cotangent: "random" (standard normal), "ones", or an array for every floating
            output in the tree that the functions return.
        jit: Whether the JAX function is compiled; if so it runs uncompiled as well, in
            the first of `dtypes`, and both are compared.
        tol: Tolerance relative to the largest entry of a row, no unit; one number, or
            one by dtype. None is 1e-10 in float64 and 1e-4 in float32; of differences
            of values it is 1e-6.
        kwargs: Keyword arguments of both; in them only arrays are arrays.
        order: 2 compares the gradients of every gradient, too.
        forward: Whether to compare forward mode, too: the tangents of the outputs
            along a random tangent of each input.
        seed: Of cotangents and moves.
        frameworks: Of the two functions, as ("torch", "torch") or ("numpy", "jax");
            None is ("jax", "torch"), where modules and trees tell their own. NumPy's
            may be (fn, vjp): vjp(cotangents, *args) returns the gradients by hand, a
            tree in the order of the arrays that are differentiated.
        params: The parameters of the JAX function, a tree of arrays that it takes
            first: jax_fn(params, *args). The module gets the same numbers, and the
            gradient in every parameter is compared, in torch's layout. Buffers that are
            among them (flax's batch statistics) are given to both, too.
        match: How names of parameters are found: a mapping from paths in `params`, or
            their beginnings, to the module's, as {"Dense_0": "0"}; or a function of a
            path to a name or to (name, permutation of the axes). None is by equal
            paths, where a kernel is a weight transposed.

    Returns:
        A `Report`: prints as a table, `agree` is its verdict, `to_dict()` is for
        machines. Its numbers are relative, without a unit.

    Raises:
        TypeError: A function is none, or returns what is no array or an array of
            another dtype than the other one; an argument is a random key, and one side
            is not JAX's; `wrt` names what is not floating.
        ValueError: The functions return different trees or shapes; nothing that one
            returns depends on its inputs while the gradients of the other are not zero;
            a function returns something else when it is called again; a tensor is not
            on the CPU; parameters have no match, or another shape; differences of more
            than 4096 entries, or of second order, are asked for; an option has a value
            that there is not.

    Example:
        >>> from diffkm_torch.agreement import compare_gradients
        >>> def doubled(points, centroids):
        ...     return 2 * dt.kmeans_loss(points, centroids)
        >>> x, c = np.array([[0.0], [1.0], [9.0]]), np.array([[2.0], [7.0]])
        >>> for port in (dt.kmeans_loss, doubled):
        ...     compare_gradients(dk.kmeans_loss, port, x, c).agree
        True
        False
        >>> def layer(params, x):
        ...     return x @ params["kernel"] + params["bias"][None]
        >>> params = {"kernel": np.ones((3, 2)), "bias": np.zeros(2)}
        >>> x = np.array([[1.0, 2.0, 3.0]])
        >>> compare_gradients(layer, torch.nn.Linear(3, 2), x, params=params).agree
        True

    Source: the rule is this library's; the errors that it allows for are those of
        Higham, Accuracy and Stability of Numerical Algorithms, 2002,
        https://doi.org/10.1137/1.9780898718027
    """
    kwargs = {} if kwargs is None else kwargs
    _check_options(dtypes, cotangent, order, seed, kwargs)
    given = functions((jax_fn, torch_fn), frameworks, params, match)
    if "numpy" in given.frameworks and (order == 2 or forward):
        raise ValueError("order must be 1, and forward False, for a NumPy function")
    kinds = given.frameworks
    read = arguments(args, kwargs, wrt, given.parameters, given.held, kinds)
    task, tolerances = Task(read, order, forward), _tolerances(tol)
    return report(given, task, dtypes, cotangent, seed, tolerances, jit=jit, eager=jit)


def report(
    given: Functions,
    task: Task,
    dtypes: Sequence[str] = DTYPES,
    cotangent: Any = "random",
    seed: int = 0,
    tolerances: Mapping[str, float] = TOLERANCE,
    *,
    jit: bool,
    eager: bool,
) -> Report:
    """What both functions return, judged."""
    sides, kinds = given.sides(task), given.frameworks
    names = kinds if kinds[0] != kinds[1] else (f"{kinds[0]} 1", f"{kinds[1]} 2")
    pairs: list[Pair] = []
    with np.errstate(all="ignore"):
        comparison = Comparison(sides, names, task, dtypes[0], cotangent, seed, jit)
        for dtype in dtypes:
            uncompiled = eager and dtype == dtypes[0]
            pairs += comparison.pairs(dtype, tolerances, eager=uncompiled)
    arrays = task.arguments.arrays(dtypes[0])
    remarks = given.remarks + tuple(_remarks(sides, arrays, dtypes[0]))
    return Report(tuple(pairs), task.arguments.held, seed, names, remarks)


def _remarks(
    sides: tuple[Side, Side], arrays: list[np.ndarray], dtype: str
) -> Iterator[str]:
    with precision_of(dtype):
        for side in sides:
            yield from (f"{side.whose} {remark}" for remark in side.remarks(arrays))


def assert_gradients_agree(
    jax_fn: Callable[..., Any],
    torch_fn: Callable[..., Any],
    *args: Any,
    max_unjudged: float | None = None,
    **options: Any,
) -> Report:
    """Raises AssertionError, with the table, unless the two functions agree.

    Args:
        jax_fn: Function of JAX arrays, or of another framework.
        torch_fn: The same function of torch tensors, or a module.
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
    __tracebackhide__ = True
    report = compare_gradients(jax_fn, torch_fn, *args, **options)
    if not report.agree:
        raise AssertionError(str(report))
    if max_unjudged is not None and report.unjudged > max_unjudged:
        share = f"{report.unjudged:.3g} of the rows are not judged"
        raise AssertionError(f"{share}, more than {max_unjudged}\n{report}")
    return report


def _check_options(
    dtypes: Any, cotangent: Any, order: Any, seed: Any, kwargs: Any
) -> None:
    if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(DTYPES):
        raise ValueError(f"dtypes must be among {DTYPES}, got {dtypes!r}")
    if isinstance(cotangent, str) and cotangent not in ("random", "ones"):
        raise ValueError(
            f"cotangent must be 'random', 'ones' or arrays, got {shown(cotangent)}"
        )
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be an integer, 0 or more, got {seed!r}")
    if not isinstance(kwargs, dict):
        raise TypeError(f"kwargs must be a dict, got {shown(kwargs)}")


def _tolerances(tol: float | dict[str, float] | None) -> dict[str, float]:
    """By dtype, those that are not given at their default."""
    if tol is None:
        return TOLERANCE
    given = tol if isinstance(tol, dict) else dict.fromkeys(DTYPES, tol)
    is_real = all(isinstance(t, float | np.floating) for t in given.values())
    if not (
        set(given) <= {*DTYPES} and is_real and all(0 < t < 1 for t in given.values())
    ):
        kinds = f"between 0 and 1, one for all or by dtype among {DTYPES}"
        raise ValueError(f"tol must be {kinds}, got {tol!r}")
    return TOLERANCE | given
