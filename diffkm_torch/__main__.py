"""The command line: parity of the two packages, and a comparison of your own pair."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from torch import nn

from diffkm_jax._command_line.output import with_output
from diffkm_torch._checkpoints import (
    CheckpointError,
    read_arrays,
    read_tree,
    with_state,
)
from diffkm_torch._parity import Row, mirrored, rows
from diffkm_torch.agreement import compare_gradients

HELP = """\
the functions are module:name, found from this folder or installed; they take JAX
arrays, and torch tensors. A name may also be that of an nn.Module, of a callable tree
of JAX arrays, or of a class or a function without arguments that makes one of these.
With --frameworks they are of other frameworks; of NumPy's also a pair (fn, vjp).

files are .npz, state dicts of torch (.pt or .pth, read with weights_only=True) or
.safetensors. The arrays of --args are the arguments: arr_0, arr_1, ... or arg0, arg1,
... by position, others by keyword. --params makes nested dicts of names by dots, and
the JAX function is called as fn(params, *args); the gradient in every parameter is
compared. --state is loaded into the modules.

exit status: 0 they agree; 1 they do not; 2 wrong usage, or they cannot be compared;
3 nothing disagrees, but no value or no gradient could be judged: all NaN, infinite,
rounding or empty"""
POSITION = re.compile(r"(?:arg|arr_)(\d+)")


class CompareError(Exception):
    """Why two functions cannot be compared."""


def print_parity(options: argparse.Namespace) -> int:
    """Compares every mirrored function, prints a table; returns 1 on failure."""
    known = mirrored()
    for name in options.names:
        if name not in known:
            example = "as softmax or estimators.rloo is"
            raise CompareError(f"{name!r} must be a function of both, {example}")
    found = []
    width = 46
    head = "function", "value", "float64", "float32", "unjudged", "verdict"
    line = f"{{:<{width}}} {{:>8}} {{:>8}} {{:>8}} {{:>9}}  {{}}"
    if not options.json:
        print(
            "diffkm_jax beside diffkm_torch, on 16 of the embedded digits: the "
            "largest difference of\nvalues in float64, and of gradients in float64 and "
            "float32, over the largest entry.\n"
        )
        print(line.format(*head))
    for row in rows(options.names, order=options.order, jit=options.jit):
        found.append(row)
        if not options.json:
            print(line.format(*_cells(row)).rstrip(), flush=True)
    failed = [row for row in found if not row.passed]
    if options.json:
        print(json.dumps([_as_dict(row) for row in found]))
        return bool(failed)
    for row in failed:
        print(f"\n{row.name}\n{row.report or row.error}")
    print(f"\n{len(found) - len(failed)} pass, {len(failed)} fail")
    return bool(failed)


def _cells(row: Row) -> tuple[str, ...]:
    if row.report is None:
        return row.name, "-", "-", "-", "-", "FAIL"
    derivatives = "gradient", "second"
    sizes = (
        row.difference("float64", "value"),
        row.difference("float64", *derivatives),
        row.difference("float32", *derivatives),
    )
    unjudged = f"{100 * row.report.unjudged:.1f} %"
    verdict = "pass" if row.passed else "FAIL"
    return row.name, *(f"{size:.0e}" for size in sizes), unjudged, verdict


def _as_dict(row: Row) -> dict[str, Any]:
    report = None if row.report is None else row.report.to_dict()
    return {"name": row.name, "pass": row.passed, "error": row.error, "report": report}


def compare_pair(options: argparse.Namespace) -> int:
    """Compares two functions of a user, prints the report; returns the exit status."""
    sys.path.insert(0, "")
    functions = [find(name) for name in (options.jax_fn, options.torch_fn)]
    functions = prepared(functions, options.state, is_eval=options.eval)
    args, kwargs = read_arguments(options.args)
    wrt = [int(w) if w.isdigit() else w for w in options.wrt] if options.wrt else None
    params = None if options.params is None else read_tree(options.params)
    try:
        report = compare_gradients(
            *functions,
            *args,
            kwargs=kwargs,
            wrt=wrt,
            dtypes=options.dtypes,
            order=options.order,
            forward=options.forward,
            jit=options.jit,
            tol=options.tol,
            seed=options.seed,
            frameworks=options.frameworks,
            params=params,
            match=dict(options.match) if options.match else None,
        )
    except Exception as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        raise CompareError(f"{type(error).__name__}: {error}{notes}") from error
    print(json.dumps(report.to_dict()) if options.json else report)
    if report.disagreements:
        return 1
    return 3 if report.unresolved else 0


def find(name: str) -> Any:
    """The function of a name module:function, or what that makes if called."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise CompareError(f"{name!r} must be module:function")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        if _is_factory(found):
            found = found()
    except Exception as error:
        raise CompareError(f"{name}: {type(error).__name__}: {error}") from error
    is_pair = isinstance(found, tuple) and found and all(map(callable, found))
    if not callable(found) and not is_pair:
        raise CompareError(f"{name} must be a function, got {type(found).__name__}")
    return found


def _is_factory(found: Any) -> bool:
    """Whether it is a class, or a function that needs no argument."""
    if isinstance(found, type):
        return True
    if not inspect.isfunction(found):
        return False
    parameters = inspect.signature(found).parameters.values()
    return all(p.default is not p.empty for p in parameters)


def prepared(functions: list[Any], state: Path | None, *, is_eval: bool) -> list[Any]:
    """With a state loaded into the modules, and those in evaluation mode if asked."""
    are_modules = [isinstance(fn, nn.Module) for fn in functions]
    for option, is_given in (("--state", state), ("--eval", is_eval)):
        if is_given and not any(are_modules):
            raise CompareError(f"{option} must go with an nn.Module, got none")
    found = []
    for fn in functions:
        if isinstance(fn, nn.Module):
            fn = fn if state is None else with_state(fn, state)
            fn = fn.eval() if is_eval else fn
        found.append(fn)
    return found


def read_arguments(path: Path) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The arrays of a file: positional ones, and those by keyword."""
    arrays = read_arrays(path)
    matches = {name: POSITION.fullmatch(name) for name in arrays}
    placed = {int(m[1]): arrays[name] for name, m in matches.items() if m}
    if sorted(placed) != list(range(sum(m is not None for m in matches.values()))):
        names = sorted(name for name, m in matches.items() if m)
        raise CompareError(f"{path}: positions must be 0, 1, 2, ..., got {names}")
    keywords = {name: arrays[name] for name, m in matches.items() if not m}
    return [placed[i] for i in sorted(placed)], keywords


def renaming(text: str) -> tuple[str, str]:
    """OLD=NEW as a pair."""
    old, sign, new = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"must be OLD=NEW, got {text!r}")
    return old, new


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; no command at all asks for the parity table."""
    parser = argparse.ArgumentParser(prog="python -m diffkm_torch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    text = "compare every function that both packages have (default)"
    parity = commands.add_parser("parity", help=text, description=text)
    text = "only these: softmax, estimators.rloo, ... (all)"
    parity.add_argument("names", nargs="*", metavar="NAME", help=text)
    parity.add_argument("--jit", action="store_true", help="optimized, and uncompiled")
    parity.set_defaults(run=print_parity)

    text = "compare a JAX function and a torch function of yours"
    pair = commands.add_parser("compare", help=text, description=text, epilog=HELP)
    pair.formatter_class = argparse.RawDescriptionHelpFormatter
    pair.add_argument("jax_fn", metavar="module:jax_fn")
    pair.add_argument("torch_fn", metavar="module:torch_fn")
    add = pair.add_argument
    file = {"type": Path, "metavar": "FILE"}
    add("--args", required=True, help="the arrays that both get", **file)
    add("--params", help="parameters of the JAX function, its first argument", **file)
    add("--state", help="the state dict of the modules", **file)
    text = "names in --params and in the module, or their beginnings"
    add("--match", nargs="+", type=renaming, metavar="OLD=NEW", help=text)
    add("--eval", action="store_true", help="modules in evaluation mode")
    text = "of the two: jax, torch or numpy (jax torch)"
    kinds = {"choices": ("jax", "torch", "numpy"), "metavar": ("FIRST", "SECOND")}
    add("--frameworks", nargs=2, help=text, **kinds)
    text = "positions, keywords or parameters to differentiate (all floats)"
    add("--wrt", nargs="+", help=text)
    dtypes = "float64", "float32"
    add("--dtypes", nargs="+", choices=dtypes, default=dtypes, help="(both)")
    add("--forward", action="store_true", help="forward mode, too")
    add("--no-jit", dest="jit", action="store_false", help="do not compile")
    add("--tol", type=float, help="relative to a row (1e-10, 1e-4)")
    add("--seed", type=int, default=0, help="of cotangents and moves (%(default)s)")
    pair.set_defaults(run=compare_pair)

    for command in (parity, pair):
        text = "2: gradients of gradients, too (%(default)s)"
        command.add_argument("--order", type=int, choices=(1, 2), default=1, help=text)
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv or ["parity"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0 to 3, as in its help."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0].startswith("--") and argv[0] != "--help":
        argv = ["parity", *argv]

    def run() -> int:
        options = parse(argv)
        with jax.enable_x64(True):
            try:
                return int(options.run(options))
            except (CompareError, CheckpointError) as error:
                print(f"diffkm: error: {error}", file=sys.stderr)
                return 2

    return with_output(run)


if __name__ == "__main__":
    sys.exit(main())
