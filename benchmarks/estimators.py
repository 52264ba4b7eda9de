"""Gradient estimators against the exact gradient, in training, and against torch.

    python benchmarks/estimators.py [--quick] [--full] [item ...]

Items: curves, polynomial, samples, speed; all of them without one. With `curves` and
`samples`, and matplotlib, it draws estimators.png beside this file (not with --quick).
Keys are fixed. The curves are in float64, all else is in float32. A time is the median
over rounds in which both sides of a ratio take turns; behind a ratio stands its range
over them. Run it on a machine that nothing else uses.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from picture import draw
from timing import interleaved, machine, median, need, ratio, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A checkout will do.

import diffkm_jax as dk
from diffkm_jax import estimators as es

GRID = np.logspace(-1, 1, 9)
SHOWN = GRID[::2]
TEMPERATURE = 300.0
POWERS = 1.5, 2, 3
VARIABLES, BATCH = 128, 64
PROBABILITIES = np.array([0.04, 0.08, 0.14, 0.34, 0.22, 0.12, 0.06], np.float32)
TAUS = 0.1, 0.5, 1.0, 2.0, 5.0, 10.0
PICTURE = Path(__file__).with_name("estimators.png")


def note(text: str) -> None:
    print("\n" + textwrap.fill(text, 88), flush=True)


# Bias and variance against tau -------------------------------------------------------


class Problem(NamedTuple):
    """A cost of rows, [*batch], their logits, and how finely to sample it."""

    f: Callable[[jax.Array], jax.Array]
    logits: jax.Array
    num_samples: int
    chunk_size: int


class Curve(NamedTuple):
    """What came of one estimator, each [9], relative to the exact gradient's length.

    Of all problems of a batch together: vectors are one long vector.
    """

    bias: np.ndarray
    limit: np.ndarray
    deviation: np.ndarray
    cosine: np.ndarray


def lineup(baseline: jax.Array) -> dict[str, Callable[[Any], es.Estimator]]:
    """Every estimator by name, as a function of what the curve is over."""
    return {
        "exact": lambda _: es.exact(),
        "straight_through": lambda tau: es.straight_through(tau=tau),
        "sampled_straight_through": lambda tau: es.sampled_straight_through(tau=tau),
        "gapped_straight_through": lambda tau: es.gapped_straight_through(tau=tau),
        "gapped, gap=None": lambda tau: es.gapped_straight_through(tau=tau, gap=None),
        "reinmax": lambda tau: es.reinmax(tau=tau),
        "gumbel_softmax": lambda tau: es.gumbel_softmax(tau=tau),
        "gumbel_softmax, hard": lambda tau: es.gumbel_softmax(tau=tau, hard=True),
        "decoupled, tau_backward=1": lambda tau: es.decoupled_gumbel_softmax(tau=tau),
        "gumbel_rao": lambda tau: es.gumbel_rao(tau=tau),
        "blackbox": lambda strength: es.blackbox(strength=strength),
        "implicit_mle, scaled": lambda s: es.implicit_mle(strength=s, scaled=True),
        "reinforce": lambda _: es.reinforce(),
        "reinforce, baseline": lambda _: es.reinforce(baseline=baseline),
        "rloo, 4 draws": lambda _: es.rloo(num_samples=4),
        "rebar": lambda tau: es.rebar(tau=tau),
    }


def three(quick: bool) -> Problem:
    """One row of three categories, its cost the exponential of a linear function."""
    slope, logits = np.array([-1.5, 0.3, 1.5]), np.array([0.5, 0.0, -0.5])
    samples = 10_000 if quick else 100_000
    return Problem(
        lambda rows: jnp.exp(rows @ slope), jnp.asarray(logits), samples, 1024
    )


def clustering(quick: bool) -> Problem:
    """Digits as codes: how badly the code of a digit predicts its class.

    With Q the frequencies of the classes in each cluster, smoothed, the cost of a row D
    is −log of the class's entry of D Q. Every ninth digit is a problem of its own.
    """
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        data = np.load(file)
        points, digits = data["points"].astype(float), data["digits"]
    start = dk.kmeans_plus_plus(jax.random.key(0), points, 10)
    fitted = dk.fit(points, start)
    frequencies = np.ones((10, 10))
    np.add.at(frequencies, (np.asarray(fitted.labels), digits), 1)
    frequencies /= frequencies.sum(1, keepdims=True)
    of_class = frequencies.T[digits[::9]]  # [200, 10]: of the class, in each cluster.
    logits = -dk.pairwise(points[::9], fitted.centroids) / TEMPERATURE
    samples = 200 if quick else 500
    return Problem(
        lambda rows: -jnp.log(jnp.sum(rows * of_class, axis=-1)), logits, samples, 32
    )


def measured(problem: Problem) -> dict[str, Curve]:
    """Measures every estimator over the grid, in one program and under one noise."""
    makers = lineup(es.exact().expect(problem.f, problem.logits))

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def run(tau: jax.Array, logits: jax.Array) -> tuple[dk.Report, ...]:
        return dk.evaluate(
            jax.random.key(1),
            problem.f,
            logits,
            [make(tau) for make in makers.values()],
            num_samples=problem.num_samples,
            chunk_size=problem.chunk_size,
        )

    reports = run(jnp.asarray(GRID), problem.logits)
    return dict(zip(makers, map(aggregated, reports), strict=True))


def aggregated(report: dk.Report) -> Curve:
    """A curve, the problems of a batch as one."""

    def total(array: jax.Array) -> np.ndarray:
        return np.asarray(array).reshape(len(GRID), -1).sum(1)

    exact, squared_error = total(report.exact**2), total(report.bias_error**2)
    # A mean of samples is longer than what it estimates, by its error.
    limit = squared_error + 5 * np.sqrt(2 * total(report.bias_error**4))
    bias = total(report.bias**2)
    bias = np.where(bias > limit, bias - squared_error, np.nan)
    length = np.sqrt(exact * np.maximum(total(report.mean**2) - squared_error, 1e-300))
    return Curve(
        bias=np.sqrt(bias / exact),
        limit=np.sqrt(limit / exact),
        deviation=np.sqrt(total(report.total_variance) / exact),
        cosine=np.minimum(total(report.mean * report.exact) / length, 1),
    )


def number(value: float) -> str:
    if value < 1e-6:
        return "0"
    return f"{value:.1e}" if value < 0.001 or value >= 1000 else f"{value:.2g}"


def cell(found: Curve, i: int) -> str:
    unresolved = f"<{number(found.limit[i])}" if found.limit[i] else "0"
    bias = unresolved if np.isnan(found.bias[i]) else number(found.bias[i])
    return f"{bias}, {number(found.deviation[i])}, {found.cosine[i]:.3f}"


def curves(quick: bool) -> dict[str, dict[str, Curve]]:
    """Item curves: bias, standard deviation and direction on two problems."""
    found = {}
    with jax.enable_x64(True):
        for title, problem in (
            ("One row of three categories, cost exp(v·D)", three(quick)),
            ("200 digits, 10 clusters, cost −log (D Q)[class]", clustering(quick)),
        ):
            found[title] = measured(problem)
            head = "", *(f"tau = {tau:.2g}" for tau in SHOWN)
            rows = [
                (name, *(cell(c, i) for i in range(0, len(GRID), 2)))
                for name, c in found[title].items()
            ]
            table(f"{title}: bias, standard deviation, cosine", head, rows)
            largest = float(jax.nn.softmax(problem.logits).max(-1).mean())
            note(
                f"The largest probability of a row is {largest:.2f} in the mean. "
                f"{problem.num_samples} samples where the draws are not enumerated."
            )
        binary(quick)
    note(
        "Bias is that of the mean estimate, the standard deviation is the root of the "
        "total variance; both in units of the length of the exact gradient, and with "
        "the cosine for the gradients of all rows as one vector, in float64. <x: not "
        "told from zero. blackbox and implicit_mle have a strength in the place of "
        "tau; exact, reinforce and rloo have neither. The baseline is the exact "
        "expected cost; rloo sees the cost four times. Every estimator is a lane of "
        "one program, under the same noise."
    )
    return found


def binary(quick: bool) -> None:
    """What is for two categories only, beside rivals on the same cost."""
    problem = three(quick)

    def cost(rows: jax.Array) -> jax.Array:
        return problem.f(jnp.append(rows, 0))

    records = [es.disarm(), es.rloo(num_samples=2), es.reinforce()]
    run = jax.jit(lambda z: dk.evaluate(jax.random.key(1), cost, z, records))
    rows = []
    for record, report in zip(records, run(problem.logits[:2]), strict=True):
        vectors = report.bias, report.bias_error, jnp.sqrt(report.variance)
        lengths = [float(jnp.linalg.norm(a)) for a in (report.exact, *vectors)]
        rows.append((record.name, *(number(a / lengths[0]) for a in lengths[1:])))
    head = "", "bias", "its standard error", "standard deviation"
    table("disarm, for two categories: the first two of the three", head, rows)


# The polynomial problem --------------------------------------------------------------


def polynomial(quick: bool, full: bool) -> None:
    """Item polynomial: 128 binary variables trained by the estimates, as in ReinMax.

    Minimizes E Σ_i |x_i − 0.45|^p / 128, x_i the first entry of row i.
    """
    steps = 8000 if full else 200 if quick else 1000
    rate = 8 / steps
    num_seeds = 2
    optimizer = optax.adam(rate)

    def each(rows: jax.Array, which: jax.Array) -> jax.Array:
        distance = jnp.abs(rows[..., 0] - 0.45)
        powers = distance * jnp.sqrt(distance), distance**2, distance**3
        return sum(w * a for w, a in zip(which, powers, strict=True))

    def expected(logits: jax.Array, which: jax.Array) -> jax.Array:
        return es.exact().expect(partial(each, which=which), logits).mean()

    def estimated(
        logits: jax.Array, which: jax.Array, record: es.Estimator, key: jax.Array
    ) -> jax.Array:
        if record.name == "exact":
            return expected(logits, which)
        # The cost is one number for all variables: what a score function sees.
        size = BATCH // record.num_draws if record.name == "rloo" else BATCH
        batch = jnp.broadcast_to(logits, (size, *logits.shape))
        noise = record.draw(key, batch.shape, batch.dtype)
        costs = record.expect(lambda rows: each(rows, which).mean(-1), batch, noise)
        return costs.mean()

    @jax.jit
    def train(seeds: jax.Array, record: es.Estimator) -> jax.Array:
        def run(seed: jax.Array, which: jax.Array) -> jax.Array:
            shape = VARIABLES, 2
            logits = jax.random.uniform(seed, shape, jnp.float32, -0.01, 0.01)

            def step(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
                logits, state = carry
                key = jax.random.fold_in(seed, i)
                gradient = jax.grad(estimated)(logits, which, record, key)
                updates, state = optimizer.update(gradient, state)
                return (optax.apply_updates(logits, updates), state), None

            begin = logits, optimizer.init(logits)
            (logits, _), _ = lax.scan(step, begin, jnp.arange(steps))
            return expected(logits, which)

        return jax.vmap(jax.vmap(run, (None, 0)), (0, None))(seeds, jnp.eye(3))

    records = {
        "exact": es.exact(),
        "reinmax": es.reinmax(),
        f"rloo, {BATCH} draws": es.rloo(num_samples=BATCH),
        "sampled_straight_through": es.sampled_straight_through(),
        "gapped_straight_through": es.gapped_straight_through(),
        "gumbel_softmax": es.gumbel_softmax(),
        "gumbel_softmax, hard": es.gumbel_softmax(hard=True),
        "gumbel_rao, 4 samples": es.gumbel_rao(num_samples=4),
    }
    seeds = jax.random.split(jax.random.key(2), num_seeds)
    rows = [("at the start", *(f"{(0.45**p + 0.55**p) / 2:.4f}" for p in POWERS), "")]
    for name, record in records.items():
        start = time.perf_counter()
        losses = np.asarray(train(seeds, record))
        took = f"{time.perf_counter() - start:.1f} s"
        pairs = zip(losses.mean(0), losses.max(0) - losses.min(0), strict=True)
        rows.append((name, *(f"{mean:.4f} ({by:.4f})" for mean, by in pairs), took))
    rows.append(("reachable: 0.45^p", *(f"{0.45**p:.4f}" for p in POWERS), ""))
    head = "", *(f"p = {p}" for p in POWERS), "took"
    table("Exact expected loss after training, 128 binary variables", head, rows)
    setting = "as in the reference" if full else "the reference takes 8000 at 0.001"
    note(
        f"{steps} steps of Adam at {rate:g} ({setting}), batch {BATCH}, tau = 1, in "
        f"float32; mean and range over {num_seeds} seeds. The cost is one number for "
        "all variables, but for `exact`. rloo spends the batch as the draws of one "
        "estimate. The time is of all seeds and powers, with compilation."
    )


# Gumbel-softmax samples --------------------------------------------------------------


def samples(quick: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Item samples: what Gumbel-softmax samples look like, by tau."""
    num = 10_000 if quick else 100_000
    logits = jnp.log(PROBABILITIES)
    noise = jax.random.gumbel(jax.random.key(3), (num, len(logits)), jnp.float32)

    @partial(jax.vmap, in_axes=(0, None))
    def summary(tau: jax.Array, noise: jax.Array):
        rows = dk.gumbel_softmax(jnp.broadcast_to(logits, noise.shape), noise, tau=tau)
        entropy = jax.scipy.special.entr(rows).sum(-1)
        return rows.mean(0), rows.max(-1).mean(), entropy.mean()

    found = [np.asarray(a) for a in jax.jit(summary)(jnp.asarray(TAUS), noise)]
    k = len(logits)
    head = "tau", *(f"class {i}" for i in range(1, k + 1)), "maximum", "entropy"
    rows = [("draws", *PROBABILITIES, 1, 0)]
    for tau, mean, top, entropy in zip(TAUS, *found, strict=True):
        rows.append((tau, *(f"{v:.3f}" for v in (*mean, top, entropy))))
    rows.append(("uniform", *k * [f"{1 / k:.3f}"], f"{1 / k:.3f}", f"{np.log(k):.3f}"))
    table("Mean Gumbel-softmax sample, mean maximum, mean entropy in nats", head, rows)
    return found[0], found[1], found[2]


# Speed -------------------------------------------------------------------------------


def in_torch(torch: Any, name: str, logits: Any, of_class: Any, num: int):
    """Mean and variance of an estimate as a torch user would take them, or None."""
    softmax = torch.nn.functional.gumbel_softmax

    def cost(rows: Any) -> Any:
        return -(rows * of_class).sum(-1).log()

    def draws(count: int) -> Any:
        p = torch.softmax(logits, -1)
        return torch.multinomial(p, num * count, replacement=True)

    def gradients(surrogate: Callable[[Any], Any], pass_costs: bool = False):
        z = logits.expand(num, -1).clone().requires_grad_()
        found = surrogate(z)
        (found if pass_costs else cost(found)).sum().backward()
        return z.grad.mean(0), z.grad.var(0)

    def one_hot(labels: Any) -> Any:
        return torch.nn.functional.one_hot(labels, len(logits)).to(logits.dtype)

    def straight_through(z: Any) -> Any:
        soft = torch.softmax(z, -1)
        return one_hot(draws(1)) + soft - soft.detach()

    def reinmax(z: Any) -> Any:
        drawn, soft = one_hot(draws(1)), torch.softmax(z, -1)
        middle = (0.5 * (soft + drawn)).detach()
        moved = torch.softmax(z + (middle.log() - z).detach(), -1)
        rise = 2 * moved - 0.5 * soft
        return drawn + rise - rise.detach()

    def reinforce(z: Any) -> Any:
        labels = draws(1)
        log_p = torch.log_softmax(z, -1).gather(-1, labels[:, None])[:, 0]
        return cost(one_hot(labels)) * log_p

    def rloo(z: Any) -> Any:
        labels = draws(4).reshape(num, 4)
        costs = cost(one_hot(labels))
        log_p = torch.log_softmax(z, -1).gather(-1, labels)
        return ((costs - costs.mean(-1, keepdim=True)) * log_p).sum(-1) / 3

    ways = {
        "gumbel_softmax": (lambda z: softmax(z), False),
        "gumbel_softmax, hard": (lambda z: softmax(z, hard=True), False),
        "sampled_straight_through": (straight_through, False),
        "reinmax": (reinmax, False),
        "reinforce": (reinforce, True),
        "rloo, 4 draws": (rloo, True),
    }
    return partial(gradients, *ways[name]) if name in ways else None


def speed(quick: bool) -> None:
    """Item speed: `evaluate` against one backward pass of torch for all samples."""
    torch = need("torch", "torch")
    torch.manual_seed(0)
    num = 10_000 if quick else 100_000
    rng = np.random.default_rng(4)
    logits = rng.normal(size=10).astype(np.float32)
    of_class = rng.uniform(0.02, 1, 10).astype(np.float32)
    theirs = torch.from_numpy(logits), torch.from_numpy(of_class)

    def cost(rows: jax.Array) -> jax.Array:
        return -jnp.log(jnp.sum(rows * of_class, axis=-1))

    def program(enumerate_draws: bool) -> Callable:
        options = {"num_samples": num, "enumerate_draws": enumerate_draws}
        return jax.jit(lambda key, z, e: dk.evaluate(key, cost, z, e, **options))

    rows = []
    key = jax.random.key(5)
    makers = lineup(jnp.zeros(()))
    for name in ("gapped, gap=None", "reinforce, baseline"):
        makers.pop(name)  # As fast as the same without.
    for name, make in makers.items():
        record = make(1.0)
        args = key, jnp.asarray(logits), record
        calls, compiling = {}, {}
        few = record.discrete and 10**record.num_draws <= 4096
        forms = {"enumerated": True} if few else {}
        forms |= {"sampled": False} if record.num_draws else {}
        reports = {}
        for form, enumerate_draws in forms.items():
            fresh = program(enumerate_draws)
            start = time.perf_counter()
            compiled = fresh.lower(*args).compile()
            compiling[form] = time.perf_counter() - start
            calls[form] = partial(blocking, compiled, *args)
            reports[form] = calls[form]()
        other = in_torch(torch, name, *theirs, num)
        if other:
            agree(name, reports["sampled"], *other())
            calls["torch"] = other
        taken = interleaved(calls, 2 if quick else 3)
        times = {form: median(taken[form]) for form in taken}
        form = "sampled" if "sampled" in calls else "enumerated"
        anew = median([compiling[form] + min(taken[form])])
        both = ratio(taken["torch"], taken["sampled"])[1] if other else ""
        cells = times.get("enumerated", ""), times.get("sampled", "no noise"), anew
        rows.append((name, *cells, times.get("torch", ""), both))
    head = (
        "",
        "enumerated",
        f"{num} samples",
        "compiled anew",
        "torch",
        "torch / diffkm, sampled",
    )
    table("dk.evaluate at k = 10, in float32", head, rows)
    note(
        "Compiled anew: tracing, compiling and running the sampled form (without noise "
        "the enumerated one). torch: noise in one call, one backward pass of the "
        "summed cost, then mean and variance of the gradients of the samples, which "
        "agree; evaluate also returns errors, cosines and what is exact, and holds "
        "1024 samples at a time."
    )


def blocking(f: Callable, *args: Any) -> Any:
    return jax.block_until_ready(f(*args))


def agree(name: str, report: dk.Report, mean: Any, variance: Any) -> None:
    """Stops unless torch measures the same: what is wrong is not fast."""
    error = np.abs(np.asarray(mean) - report.mean) / np.sqrt(2) / report.bias_error
    assert np.max(error) < 6, f"{name}: the means differ by {np.max(error):.1f} errors"
    total = float(variance.sum()) / float(report.total_variance)
    assert abs(total - 1) < 0.1, f"{name}: the variances differ by {total:.2f}"


# -------------------------------------------------------------------------------------


def main() -> None:
    items = "curves", "polynomial", "samples", "speed"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="*", metavar="item", help=", ".join(items))
    parser.add_argument("--quick", action="store_true", help="fewer samples and steps")
    parser.add_argument(
        "--full", action="store_true", help="the polynomial problem's 8000 steps"
    )
    args = parser.parse_args()
    for item in args.items:
        if item not in items:
            parser.error(f"item must be one of {', '.join(items)}, got {item!r}")
    print(machine("jax", "torch", "numpy", "optax", "matplotlib"), flush=True)
    start = time.perf_counter()
    of_curves = of_samples = None
    for item in args.items or items:
        begin = time.perf_counter()
        if item == "curves":
            of_curves = curves(args.quick)
        elif item == "polynomial":
            polynomial(args.quick, args.full)
        elif item == "samples":
            of_samples = samples(args.quick)
        else:
            speed(args.quick)
        print(f"\n({item}: {time.perf_counter() - begin:.0f} s)", flush=True)
    if of_curves and of_samples and not args.quick:
        try:
            draw(PICTURE, GRID, of_curves, PROBABILITIES, TAUS, of_samples)
            note(f"The picture is {PICTURE.name}.")
        except ImportError:
            note('No picture: pip install "diffkm[plot]"')
    took, work = time.perf_counter() - start, time.process_time()
    note(
        f"The whole took {took:.0f} s, {work:.0f} s of a processor; load "
        f"{os.getloadavg()[0]:.1f} after."
    )


if __name__ == "__main__":
    main()
