"""The options of the command line, and what of them does not go together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffkm_jax._by_name import COUNTING, DISTANCES, WITHOUT_RATE
from diffkm_jax._command_line.arguments import (
    Parser,
    checked,
    integer,
    path,
    positive,
)

STATUS = """\
exit status: 0 done, also where a fit did not converge (a warning, and its status, say
so); 2 wrong usage, or a file that cannot be used or written; 3 the fit ended in NaN or
infinity, and nothing is written; 130 interrupted; 141 the reader of its output has gone
"""
FILES = """\
files of points [n, d]: .npy; .npz (--key); .csv, .tsv and .txt of numbers, a first line
without any number is a header; .parquet, .feather and .arrow with pyarrow installed
"""
FIT = f"""\
{FILES}
learning rates (gradients are of the sum over the n points, or over a batch):
  sgd   default 0.75 / n under squared_euclidean, stable however the points fall; the
        limit is 1 / (number of points in the largest cluster)
  adam  default 0.05 times the root mean variance of the columns; in data units
  newton (Lloyd's algorithm, or EM at a temperature), macqueen, ema, lbfgs: none
  any other optimizer of optax, as rmsprop or lion: no default

{STATUS}"""
PREDICT = f"{FILES}\n{STATUS}"
INITIALIZERS = {
    "k-means++": "kmeans_plus_plus",
    "k-means||": "kmeans_parallel",
    "random": "random_points",
}
TEXTS = ".csv", ".tsv", ".txt"
TABLES = *TEXTS, ".parquet", ".feather", ".arrow"
PICTURES = ".png", ".pdf", ".svg"
OUTPUTS = ".npz", ".npy", ".csv"
QUOTES = "\"'+-._\r\n"
SEED, LIMIT = integer(0, 2**63 - 1), 1_000_000


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; no argument at all asks for the table."""
    parser = Parser(prog="diffkm", description=__doc__, epilog=STATUS)
    parser.description = "K-means as gradient descent, from a shell."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=version("diffkm"))
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, epilog: str | None = None) -> Parser:
        added = commands.add_parser(name, help=text, description=text, epilog=epilog)
        added.formatter_class = argparse.RawDescriptionHelpFormatter
        return added

    fit = command("fit", "fit k centroids to the points in a file", FIT)
    add_reading(fit)
    add_fit(fit)
    predict = command("predict", "assign the points in a file to a fit", PREDICT)
    add_reading(predict)
    add_predict(predict)
    text = "fit digits by every optimizer and print the losses (default)"
    table = command("table", text)
    table.add_argument("--seed", type=SEED, default=1, help="default: %(default)s")

    options = parser.parse_args(argv or ["table"])
    check = {"fit": check_fit, "predict": check_predict}.get(options.command)
    if check is not None:
        of_command = fit if options.command == "fit" else predict
        check_reading(of_command, options)
        check(of_command, options)
    return options


def add_reading(parser: Parser) -> None:
    """What says how a file is read."""
    add = parser.add_argument_group("points").add_argument
    parser.add_argument("file", metavar="FILE", type=Path, help="points, [n, d]")
    add("--key", metavar="NAME", help="array of the .npz (its only one, or 'points')")
    add("--header", action="store_true", help="skip a first line of numbers too")
    text = "what is between fields ('tab'; a comma in .csv, white space in .txt)"
    delimiter = checked(str, is_delimiter, "one sign, or 'tab'")
    add("--delimiter", type=delimiter, metavar="CHAR", help=text)
    text = "of a table: those to read, by name or number from 0, as 'x,y' (all)"
    add("--columns", metavar="A,B,...", help=text)
    text = "column of the table, or .npy file, of weights of points"
    add("--weights", metavar="COLUMN", help=text)


def is_delimiter(text: str) -> bool:
    """Whether a text is a sign that no number and no quote has, or 'tab'."""
    return text == "tab" or (
        len(text) == 1 and not text.isalnum() and text not in QUOTES
    )


def add_fit(parser: Parser) -> None:
    """What says how a file is fitted."""
    add = parser.add_argument
    add("-k", type=integer(1, LIMIT), required=True, help="number of clusters")
    add = parser.add_argument_group("method").add_argument
    add(
        "--distance",
        metavar="NAME",
        choices=[*DISTANCES],
        default="squared_euclidean",
        help=f"{', '.join(DISTANCES)} (%(default)s)",
    )
    text = "soft k-means; in the unit of the distance, as squared data units"
    add(
        "--temperature",
        metavar="T",
        type=positive("; without it the assignment is hard"),
        help=text,
    )
    text = "newton, macqueen, ema, or any of optax by its name (newton, or adam where "
    add("--optimizer", metavar="NAME", help=text + "the distance has no means)")
    add(
        "--learning-rate",
        metavar="RATE",
        type=positive(),
        help="of the optimizer; see below",
    )
    text = "leave empty clusters, or move them to the farthest points (%(default)s)"
    add("--empty", choices=["keep", "farthest"], default="keep", help=text)
    text = "of points and centroids (%(default)s)"
    add("--dtype", choices=["float64", "float32"], default="float64", help=text)
    add = parser.add_argument_group("start and end").add_argument
    text = f"{', '.join(INITIALIZERS)}, or a file of k starts (%(default)s)"
    add("--init", metavar="HOW", default="k-means++", help=text)
    text = "fits from different starts, of which the best is kept (%(default)s)"
    add("--restarts", metavar="N", type=integer(1, LIMIT), default=1, help=text)
    add(
        "--seed",
        metavar="N",
        type=SEED,
        default=0,
        help="of starts and batches (%(default)s)",
    )
    text = "limit of steps; 0 evaluates the start (300)"
    add("--max-steps", metavar="N", type=integer(0, LIMIT), help=text)
    text = "of the residual, relative to the mean variance (1e-4)"
    not_negative = checked(float, lambda v: 0 <= v < float("inf"), "at least 0, finite")
    add("--tol", type=not_negative, help=text)
    group = parser.add_argument_group("batches, as of a .npy larger than memory")
    text = "steps by so many points, drawn at random; ten times k or more"
    group.add_argument("--batch-size", type=integer(1, 2**31 - 1), help=text)
    either = group.add_mutually_exclusive_group()
    text = "number of them (those of four epochs, at least 100)"
    either.add_argument("--batches", type=integer(1, 2**31 - 1), help=text)
    text = "as many as have so many times n points"
    either.add_argument("--epochs", type=positive(), help=text)
    add = parser.add_argument_group("output").add_argument
    text = "write the result (.npz), or the labels (.npy, .csv), to this file"
    add("--out", metavar="FILE", type=path(*OUTPUTS), help=text)
    text = "picture of the clusters in the plane; of one column, of the loss by step"
    add("--plot", type=path(*PICTURES), metavar="FILE.png", help=text)
    add("--json", action="store_true", help="print one JSON object")
    text = "loss and residual on stderr during long work (if that is a terminal)"
    add("--progress", action=argparse.BooleanOptionalAction, help=text)


def add_predict(parser: Parser) -> None:
    """What says how a file is assigned."""
    add = parser.add_argument
    npz = path(".npz")
    text = "a result of diffkm fit"
    add("--fit", type=npz, required=True, metavar="RESULT.npz", help=text)
    text = "write labels to this file (.npz, .npy or .csv)"
    add("--out", metavar="FILE", type=path(*OUTPUTS), help=text)
    text = "memberships [n, k] too, of a fit with a temperature; in .npy instead"
    add("--proba", action="store_true", help=text)
    add("--json", action="store_true", help="print one JSON object")


def check_reading(parser: Parser, options: Any) -> None:
    """Ends where an option is not one of such a file."""
    suffix = options.file.suffix.lower()
    for name, suffixes in (
        ("key", (".npz",)),
        ("header", TEXTS),
        ("delimiter", TEXTS),
        ("columns", TABLES),
    ):
        if getattr(options, name) and suffix not in suffixes:
            kinds = " or ".join(suffixes)
            parser.error(f"argument --{name}: only for {kinds}, got {options.file}")
    column = options.weights and not options.weights.endswith(".npy")
    if column and suffix not in TABLES:
        parser.error("argument --weights: only a table has columns: give a .npy")


def check_fit(parser: Parser, options: Any) -> None:
    """Ends where options of `fit` do not go together; sets what is by default."""
    has_means = DISTANCES[options.distance]
    if options.optimizer is None and not (has_means and options.batch_size):
        options.optimizer = "newton" if has_means else "adam"
    name, rate = options.optimizer, options.learning_rate
    if name in COUNTING and not has_means:
        means = ", ".join(name for name, has in DISTANCES.items() if has)
        parser.error(
            f"argument --optimizer: {name} takes distances with means: {means}"
        )
    if rate is not None and (name is None or name in WITHOUT_RATE):
        parser.error(f"argument --learning-rate: {name or 'the default'} has none")
    starts = Path(options.init)
    if options.init not in INITIALIZERS:
        if not starts.suffix:
            known = ", ".join(INITIALIZERS)
            parser.error(f"argument --init: must be {known} or a file, got {starts}")
        if options.restarts > 1:
            parser.error("argument --restarts: of a file of starts there is one fit")
    for option in ("batches", "epochs"):
        if getattr(options, option) is not None and options.batch_size is None:
            parser.error(f"argument --{option}: only with --batch-size")
    for option in ("max_steps", "tol"):
        if getattr(options, option) is not None and options.batch_size is not None:
            said = option.replace("_", "-")
            parser.error(f"argument --{said}: --batches, not a rule, ends batches")
    options.max_steps = 300 if options.max_steps is None else options.max_steps
    options.tol = 1e-4 if options.tol is None else options.tol


def check_predict(parser: Parser, options: Any) -> None:
    """Ends where options of `predict` do not go together."""
    if options.proba and options.out is None:
        parser.error("argument --proba: needs --out, where they are written")
