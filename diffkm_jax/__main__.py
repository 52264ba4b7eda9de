"""The command line: one loss minimized in many ways, and the fit of a file."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffkm_jax as dk
from diffkm_jax._arguments import Parser, checked, integer
from diffkm_jax._files import (
    DataError,
    check_out,
    read_points,
    with_output,
    write_npz,
)

HELP = """\
learning rates (gradients are of the sum over the n points):
  sgd   default 0.75 / n, stable however the points fall; the limit is
        1 / (number of points in the largest cluster)
  adam  default 0.05 times the root mean variance of the columns; in data units
  newton (Lloyd's algorithm, or EM at a temperature), macqueen, lbfgs: none

exit status: 0 fitted; 1 a file cannot be used; 2 wrong usage; 3 the fit ended in
NaN or infinity, and nothing is written; 141 the reader of its output has gone"""
SAVED = "centroids", "labels", "loss", "counts", "residual", "num_steps", "status"
PASSED_ON = "temperature", "tol", "max_steps", "empty", "num_restarts"
INITIALIZERS = {"k-means++": dk.kmeans_plus_plus, "random": dk.random_points}
# Name, loss, steps, residual, status, milliseconds.
Row = tuple[str, float, int, str, str, float]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and how many milliseconds it took."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, 1000 * (time.perf_counter() - begin)


@jax.jit
def online(points: jax.Array, state: dk.State, batches: jax.Array) -> dk.State:
    """One step of `macqueen` for every batch: indices of points, [num_steps, size]."""

    def step(state: dk.State, batch: jax.Array) -> tuple[dk.State, None]:
        return dk.update(points[batch], state, optimizer=dk.macqueen())[0], None

    return jax.lax.scan(step, state, batches)[0]


def our_rows(key: jax.Array, points: jax.Array, start: jax.Array) -> Iterator[Row]:
    """One row for every optimizer, Newton's first."""
    n, fit = len(points), partial(dk.fit, points, start)
    schedule = optax.exponential_decay(300.0, 5, 0.5, end_value=1.0)
    # Ten epochs of shuffled batches of 64 points, without the remainder.
    order = [jax.random.permutation(key, n) for key in jax.random.split(key, 10)]
    batches = jnp.concatenate([epoch[: n // 64 * 64] for epoch in order])
    begin = dk.init(start, optimizer=dk.macqueen())

    def fit_online() -> dk.FitResult:
        end = online(points, begin, batches.reshape(-1, 64))
        return dk.fit(points, end, optimizer=dk.macqueen(), max_steps=0)

    fits = {
        "newton (Lloyd)": fit,
        "gradient descent": partial(fit, optimizer=optimizer_of("sgd", None, points)),
        "momentum": partial(fit, optimizer=optax.sgd(0.3 / n, momentum=0.9)),
        "adam": partial(fit, optimizer=optimizer_of("adam", None, points)),
        "lbfgs": partial(fit, optimizer=optax.lbfgs()),
        "soft, annealed": partial(fit, temperature=schedule),
        "online (macqueen)": fit_online,
    }
    for name, function in fits.items():
        timed(function)  # Compiles.
        result, milliseconds = timed(function)
        loss = float(dk.kmeans_loss(points, result.centroids))
        steps, residual = int(result.state.step), f"{result.residual:.1e}"
        status = str(result.flags)
        yield name, loss, steps, residual, status, milliseconds


def sklearn_row(points: jax.Array, start: jax.Array) -> Row | None:
    """The row of scikit-learn, or None if it is not installed."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        return None
    x, c = np.asarray(points), np.asarray(start)
    make: Any = KMeans  # Its types are inferred from its defaults.
    model = make(len(c), init=c, n_init=1, algorithm="lloyd").fit(x)
    _, milliseconds = timed(lambda: model.fit(x))
    return "scikit-learn", model.inertia_, model.n_iter_, "-", "-", milliseconds


def print_table(options: argparse.Namespace) -> int:
    """Fits the embedded digits with every optimizer, and prints what came out."""
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        points = jnp.asarray(np.load(file)["points"], jnp.float64)
    print(
        "1797 digits of 64 pixels in 10 clusters, from one start (k-means++, seed "
        f"{options.seed}). Every row\nminimizes the same sum of squared distances to "
        "the nearest centroid.\n"
    )
    keys = jax.random.split(jax.random.key(options.seed), 3)
    start = dk.kmeans_plus_plus(keys[0], points, 10)
    # Integer points have exact ties, which every implementation breaks in its own way.
    start += 1e-3 * jax.random.normal(keys[1], start.shape, start.dtype)
    rows, theirs = [*our_rows(keys[2], points, start)], sklearn_row(points, start)
    base, whose = (theirs, "scikit-learn") if theirs else (rows[0], "newton")
    line = "{:<18} {:>12} {:>8} {:>6} {:>9}  {:<10} {:>6}"
    names = "optimizer", "loss", "ratio", "steps", "residual", "status", "ms"
    print(line.format(*names))
    for name, loss, *cells, milliseconds in [*rows, theirs] if theirs else rows:
        ratio = f"{loss / base[1]:.5f}"
        print(line.format(name, f"{loss:.3f}", ratio, *cells, f"{milliseconds:.1f}"))
    if theirs is None:
        print('pip install "diffkm[sklearn]" adds the comparison with scikit-learn.')
    print(
        f"\nratio: loss / {whose}'s; residual: squared length of one more Lloyd step;\n"
        "ms: second call, not compiling; soft: its hard loss; online: no stop rule.\n"
        "Newton's method on this loss is Lloyd's algorithm, step for step; the others\n"
        "follow the same gradient to the same result. From other starts they may find\n"
        "local minima several percent apart: python -m diffkm_jax table --seed 3"
    )
    return 0


def optimizer_of(name: str, rate: float | None, points: jax.Array) -> Any:
    """The optimizer of a name; without a learning rate, with its default one."""
    if name == "sgd":
        return optax.sgd(rate or 0.75 / len(points))
    if name == "adam":
        variance = float(jnp.mean(jnp.var(points, axis=0)))
        return optax.adam(rate or 0.05 * math.sqrt(variance))
    return {"newton": dk.newton, "macqueen": dk.macqueen, "lbfgs": optax.lbfgs}[name]()


def fit_file(options: argparse.Namespace) -> int:
    """Fits a file, reports, and writes the result."""
    file, out, k = options.file, options.out, options.k
    if out is not None:
        check_out(out, file)
    points = jnp.asarray(read_points(file, options.key, options.header))
    n, d = points.shape
    if k > n:
        raise DataError(f"{file}: has n = {n} points, too few for -k {k}")
    rest = {name: getattr(options, name) for name in PASSED_ON}
    rest["optimizer"] = optimizer_of(options.optimizer, options.learning_rate, points)
    rest["initializer"], key = INITIALIZERS[options.init], jax.random.key(options.seed)
    result, milliseconds = timed(lambda: dk.fit_restarts(key, points, k, **rest))
    status = result.flags
    try:
        report(result, status, (n, d, k), milliseconds)
    finally:  # Whoever reads the report may have gone.
        if out is not None and dk.Status.NON_FINITE not in status:
            write_result(out, result)
            print(f"written         {out}")
    return 3 if dk.Status.NON_FINITE in status else 0


def report(
    result: dk.FitResult,
    status: dk.Status,
    sizes: tuple[int, int, int],
    milliseconds: float,
) -> None:
    """Prints what a fit found, and what is to be said about it."""
    (n, d, k), steps = sizes, int(result.num_steps)
    num_empty = int((result.counts == 0).sum())
    soft = result.temperature is not None
    print(
        f"n, d, k         {n}, {d}, {k}\n"
        f"loss            {result.loss:.10g}{' (free energy)' * soft}\n"
        f"steps           {steps}\n"
        f"residual        {result.residual:.3g}\n"
        f"status          {status.name}\n"
        f"empty clusters  {num_empty}\n"
        f"seconds         {milliseconds / 1000:.2f} (with compiling)"
    )
    if dk.Status.NON_FINITE in status:
        say("error: the loss or a step was not finite (NON_FINITE): nothing is written")
        return
    if dk.Status.MAX_STEPS in status:
        say(f"warning: not converged in {steps} steps (MAX_STEPS): see --max-steps")
    if dk.Status.NOT_AT_REST in status:
        say("warning: the last step moved too far (NOT_AT_REST): see --tol")
    if dk.Status.EMPTY_CLUSTER in status:
        say(f"warning: empty clusters: {num_empty} of {k} (EMPTY_CLUSTER): see --empty")


def write_result(out: Path, result: dk.FitResult) -> None:
    """Writes the arrays of a fit to a .npz file."""
    names = SAVED if result.temperature is None else [*SAVED, "temperature"]
    arrays = {name: getattr(result, name) for name in names}
    steps = int(result.num_steps)
    write_npz(out, arrays | {"history": result.history[: steps + 1]})


def say(message: str) -> None:
    """Prints an error or a warning to stderr."""
    print(f"diffkm: {message}", file=sys.stderr)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; no argument at all asks for the table."""
    parser = Parser(prog="python -m diffkm_jax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    seed, limit = integer(0, 2**63 - 1), 1_000_000
    least = float(np.finfo(np.float64).tiny)
    positive = f"finite and positive, at least {least}"
    positive = checked(float, lambda v: least <= v < math.inf, positive)
    not_negative = checked(float, lambda v: 0 <= v < math.inf, "finite, not negative")
    npz = checked(Path, lambda path: path.suffix == ".npz", "a path that ends in .npz")

    text = "fit digits by every optimizer and print the losses (default)"
    table = commands.add_parser("table", help=text, description=text)
    table.add_argument("--seed", type=seed, default=1, help="default: %(default)s")
    table.set_defaults(run=print_table)

    text = "fit k centroids to the points in a file, in float64"
    fit = commands.add_parser("fit", help=text, description=text, epilog=HELP)
    fit.formatter_class = argparse.RawDescriptionHelpFormatter
    fit.set_defaults(run=fit_file)
    add = fit.add_argument
    add("file", metavar="FILE", type=Path, help=".npy, .npz or .csv: points, [n, d]")
    add("-k", type=integer(1, limit), required=True, help="number of clusters")
    add("--out", type=npz, help="write the result to this .npz file")
    add("--key", help="array of the .npz (its only one, or 'points')")
    add("--header", action="store_true", help="skip a first line of numbers too")
    names = ["newton", "macqueen", "sgd", "adam", "lbfgs"]
    add("--optimizer", choices=names, default="newton", help="(%(default)s)")
    add("--learning-rate", type=positive, help="of sgd and adam; see below")
    add("--temperature", type=positive, help="soft k-means; in squared data units")
    add("--init", choices=[*INITIALIZERS], default="k-means++", help="(%(default)s)")
    text = "fits from different starts, of which the best is kept (%(default)s)"
    add("--restarts", dest="num_restarts", type=integer(1, limit), default=1, help=text)
    add("--seed", type=seed, default=0, help="of the starts (%(default)s)")
    text = "limit of steps; 0 evaluates the start (%(default)s)"
    add("--max-steps", type=integer(0, limit), default=300, help=text)
    text = "of the residual, relative to the mean variance (%(default)s)"
    add("--tol", type=not_negative, default=1e-4, help=text)
    text = "leave empty clusters, or move them to the farthest points (%(default)s)"
    add("--empty", choices=["keep", "farthest"], default="keep", help=text)

    options = parser.parse_args(argv or ["table"])
    if options.run is fit_file:
        suffix, name = options.file.suffix.lower(), options.optimizer
        if options.learning_rate is not None and name not in ("sgd", "adam"):
            fit.error(f"argument --learning-rate: {name} has none")
        if options.key is not None and suffix != ".npz":
            fit.error(f"argument --key: only for a .npz file, got {options.file}")
        if options.header and suffix != ".csv":
            fit.error(f"argument --header: only for a .csv file, got {options.file}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, as in its help."""

    def run() -> int:
        options = parse(sys.argv[1:] if argv is None else argv)
        with jax.enable_x64(True):
            try:
                return options.run(options)
            except BrokenPipeError:
                raise
            except (DataError, OSError) as error:
                say(f"error: {error}")
                return 1

    return with_output(run)


if __name__ == "__main__":
    sys.exit(main())
