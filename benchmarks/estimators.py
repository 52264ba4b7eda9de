"""Gradient estimators: bias and variance against tau, what they draw, their speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from benchmarks import _rivals
from benchmarks._measure import Contest, Prepared, Side, compiled, measure
from benchmarks._records import Record, compare, record
from diffkm_jax import estimators as es

GRID = np.logspace(-1, 1, 9)
TEMPERATURE = 300.0
PROBABILITIES = np.array([0.04, 0.08, 0.14, 0.34, 0.22, 0.12, 0.06], np.float32)
TAUS = 0.1, 0.5, 1.0, 2.0, 5.0, 10.0


def lineup(baseline: Any) -> dict[str, Callable[[Any], es.Estimator]]:
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
        "rodeo, 4 draws": lambda _: es.rodeo(),
        "reinmax_rao": lambda tau: es.reinmax_rao(tau=tau),
        "reinmax_cv": lambda tau: es.reinmax_cv(tau=tau),
        "unordered_set, 4": lambda _: es.unordered_set(num_samples=4),
    }


# Bias and variance against tau -------------------------------------------------------


class Problem(NamedTuple):
    """A cost of rows, [*batch], their logits, and how many rows to hold at a time."""

    cost: Callable[[jax.Array], jax.Array]
    logits: jax.Array
    chunk_size: int


def three() -> Problem:
    """One row of three categories, its cost the exponential of a linear function."""
    slope, logits = np.array([-1.5, 0.3, 1.5]), np.array([0.5, 0.0, -0.5])
    return Problem(lambda rows: jnp.exp(rows @ slope), jnp.asarray(logits), 1024)


def digits() -> Problem:
    """Digits as codes: how badly the code of a digit predicts its class.

    With Q the frequencies of the classes in each cluster, smoothed, the cost of a row D
    is −log of the class's entry of D Q. Every ninth digit is a problem of its own.
    """
    with resources.files("diffkm_jax").joinpath("data/digits.npz").open("rb") as file:
        data = np.load(file)
        points, classes = data["points"].astype(float), data["digits"]
    start = dk.kmeans_plus_plus(jax.random.key(0), points, 10)
    fitted = dk.fit(points, start)
    frequencies = np.ones((10, 10))
    np.add.at(frequencies, (np.asarray(fitted.labels), classes), 1)
    frequencies /= frequencies.sum(1, keepdims=True)
    of_class = frequencies.T[classes[::9]]  # [200, 10]: of the class, in each cluster.
    logits = -dk.pairwise(points[::9], fitted.centroids) / TEMPERATURE
    return Problem(lambda rows: -jnp.log(jnp.sum(rows * of_class, axis=-1)), logits, 32)


def measured(
    problem: Problem, makers: dict[str, Callable], grid: np.ndarray, num_samples: int
) -> dict[str, dict[str, list]]:
    """Measures estimators over the grid, in one program and under one noise."""

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def run(tau: jax.Array, logits: jax.Array) -> tuple[dk.Report, ...]:
        records = [make(tau) for make in makers.values()]
        return dk.evaluate(
            jax.random.key(1),
            problem.cost,
            logits,
            records,
            num_samples=num_samples,
            chunk_size=problem.chunk_size,
        )

    reports = run(jnp.asarray(grid), problem.logits)
    return dict(zip(makers, map(aggregated, reports), strict=True))


def total(array: Any) -> np.ndarray:
    """The sum for every point of the first axis."""
    return np.asarray(array, float).reshape(len(array), -1).sum(1)


def aggregated(report: dk.Report, of_reference: Any = 0.0) -> dict[str, list]:
    """Over the grid, relative to the exact gradient's length, all rows as one vector.

    Args:
        report: Its arrays have the axis of the grid first.
        of_reference: The squared error of a reference, by which the squared length of
            its gradient is too large.

    Returns:
        The length of the bias of the mean estimate (None where it is not told from
        zero), the least that would be told, the root of the total variance, and the
        cosine of the mean with the exact gradient.
    """
    squared_error = total(report.bias_error**2)
    exact = np.maximum(total(report.exact**2) - of_reference, 1e-300)
    # A mean of samples is longer than what it estimates, by its error.
    limit = squared_error + 5 * np.sqrt(2 * total(report.bias_error**4))
    bias = total(report.bias**2)
    told = bias > limit
    bias = np.sqrt(np.maximum(bias - squared_error, 0) / exact)
    squared = total(report.mean**2) - (squared_error - of_reference)
    length = np.sqrt(exact * np.maximum(squared, 1e-300))
    return {
        "bias": [b if t else None for b, t in zip(bias.tolist(), told, strict=True)],
        "limit": np.sqrt(limit / exact).tolist(),
        "deviation": np.sqrt(total(report.total_variance) / exact).tolist(),
        "cosine": np.clip(total(report.mean * report.exact) / length, -1, 1).tolist(),
    }


def curves(size: str) -> Iterator[Record]:
    """Bias, standard deviation and direction on two problems, in float64.

    blackbox and implicit_mle have a strength in the place of tau; exact, reinforce and
    rloo have neither. The baseline is the exact expected cost.
    """
    small = size == "small"
    grid = GRID[::4] if small else GRID
    with jax.enable_x64(True):
        for problem, num_samples in (
            (three, 500 if small else 100_000),
            (digits, 20 if small else 500),
        ):
            one = problem()
            expected = jax.jit(partial(es.exact().expect, one.cost))
            makers = lineup(expected(one.logits))
            if one.logits.shape[-1] < 4:
                makers.pop("unordered_set, 4")
            if small:
                makers = {name: makers[name] for name in ("reinmax", "gumbel_softmax")}
            found = measured(one, makers, grid, num_samples)
            of = {"problem": problem.__name__, "num_samples": num_samples}
            done = record(found, **of)
            largest = float(jax.nn.softmax(one.logits).max(-1).mean())
            text = f"the largest probability of a row is {largest:.2f} in the mean"
            done["notes"].append(f"{problem.__name__}: {text}.")
            yield done | {"grid": grid.tolist()}
        one = three()
        one = one._replace(
            cost=lambda rows: three().cost(jnp.append(rows, 0)), logits=one.logits[:2]
        )
        binary = {
            "arm": lambda _: es.arm(),
            "disarm": lambda _: es.disarm(),
            "arms, 2 draws": lambda _: es.arms(num_samples=2),
            "rloo, 2 draws": lambda _: es.rloo(num_samples=2),
            "reinforce": lambda _: es.reinforce(),
        }
        found = measured(one, binary, GRID[4:5], 500 if small else 100_000)
        done = record(found, problem="two of the three")
        yield done | {"grid": GRID[4:5].tolist()}


# Gumbel-softmax samples --------------------------------------------------------------


def samples(size: str) -> Iterator[Record]:
    """What Gumbel-softmax samples look like, by tau: means over many of one row."""
    num = 1000 if size == "small" else 100_000
    logits = jnp.log(PROBABILITIES)
    noise = jax.random.gumbel(jax.random.key(3), (num, len(logits)), jnp.float32)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def summary(tau: jax.Array, noise: jax.Array) -> tuple[jax.Array, ...]:
        rows = dk.gumbel_softmax(jnp.broadcast_to(logits, noise.shape), noise, tau=tau)
        entropy = jax.scipy.special.entr(rows).sum(-1)
        return rows.mean(0), rows.max(-1).mean(), entropy.mean()

    k = len(PROBABILITIES)
    rows: dict[str, tuple] = {"draws": (PROBABILITIES, 1, 0)}
    found = zip(*summary(jnp.asarray(TAUS), noise), strict=True)
    rows |= {f"tau = {tau:g}": row for tau, row in zip(TAUS, found, strict=True)}
    rows["uniform"] = np.full(k, 1 / k), 1 / k, np.log(k)
    sides = {
        name: {f"class {i}": float(p) for i, p in enumerate(mean, 1)}
        | {"maximum": float(largest), "entropy": float(entropy)}
        for name, (mean, largest, entropy) in rows.items()
    }
    yield record(sides, num_samples=num)


# Speed -------------------------------------------------------------------------------


def evaluate(estimator: str, n: int) -> Contest:
    """`evaluate` at k = 10 by both ways, against torch: one backward pass of n samples.

    In torch the noise in one call, one backward pass of the summed cost, then mean and
    variance of the gradients, the longer estimators by diffkm_torch; evaluate also
    returns errors, cosines and what is exact.
    """
    rng = np.random.default_rng(4)
    logits = rng.normal(size=10).astype(np.float32)
    of_class = rng.uniform(0.02, 1, 10).astype(np.float32)
    one = lineup(0.0)[estimator](1.0)

    def cost(rows: jax.Array) -> jax.Array:
        return -jnp.log(jnp.sum(rows * of_class, axis=-1))

    def by(enumerate_draws: bool) -> Side:
        options = {"num_samples": n, "enumerate_draws": enumerate_draws}

        def program(key: jax.Array, z: jax.Array, e: es.Estimator) -> dk.Report:
            return dk.evaluate(key, cost, z, e, **options)

        return Side(lambda: compiled(program, jax.random.key(5), logits, one))

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        if "torch" not in results:
            return {}
        report, (mean, variance) = results["sampled"], results["torch"]
        error = np.abs(np.asarray(mean) - report.mean) / np.sqrt(2) / report.bias_error
        assert np.max(error) < 6, f"the means differ by {np.max(error):.1f} errors"
        ratio = float(variance.sum()) / float(report.total_variance)
        assert abs(ratio - 1) < 0.1, f"the variances differ by {ratio:.2f}"
        return {"torch": {"variance_ratio": ratio}}

    sides = {}
    is_enumerated = one.discrete and 10**one.num_draws <= 4096
    if is_enumerated:
        sides["enumerated"] = by(True)
    if one.num_draws:
        # What has too many draws to enumerate is sampled by default.
        sides["sampled"] = by(not is_enumerated)
    if estimator in (*_rivals.TORCH_ESTIMATORS, *_rivals.TWINS):
        take = partial(_rivals.torch_estimate, estimator, logits, of_class, n)
        sides["torch"] = Side(lambda: Prepared(take()), "torch")
    return Contest(sides, agree)


def speed(size: str) -> Iterator[Record]:
    small = size == "small"
    twice = "gapped, gap=None", "reinforce, baseline"  # As fast as without.
    names = [name for name in lineup(0.0) if name not in twice]
    for name in ["reinmax"] if small else names:
        n = 5000 if small else 100_000
        done = measure(evaluate, rounds=3, estimator=name, n=n)
        compare(done, "torch", "sampled")
        yield done


BENCHMARKS = {"curves": curves, "samples": samples, "evaluate": speed}
