"""What estimators of a gradient train: an autoencoder and the polynomial problem.

Every estimator is at the best of a small grid of settings, whose points and seeds are
lanes of one program. A part of it, one estimator on one problem, takes minutes; with
`--json FILE` each is saved, and `--resume` goes on behind the last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffkm_jax as dk
from benchmarks._measure import Contest, Side, compiled, measure
from benchmarks._models import Model, autoencoder, polynomial
from benchmarks._records import Part, Record, compare, record
from benchmarks.estimators import aggregated, total
from diffkm_jax import estimators as es

TAUS = 0.5, 1.0, 1.5
MODELS: dict[str, Callable[[], Model]] = {
    "8 × 16": partial(autoencoder, num_variables=16, num_categories=8),
    "10 × 30": partial(autoencoder, num_variables=30, num_categories=10),
    "p = 1.5": partial(polynomial, exponent=1.5),
    "p = 2": partial(polynomial, exponent=2.0),
    "p = 3": partial(polynomial, exponent=3.0),
}
ESTIMATORS: dict[str, Callable[[Any], es.Estimator]] = {
    "sampled_straight_through": lambda tau: es.sampled_straight_through(tau=tau),
    "gumbel_softmax, hard": lambda tau: es.gumbel_softmax(tau=tau, hard=True),
    "gumbel_rao": lambda tau: es.gumbel_rao(tau=tau),
    "gapped_straight_through": lambda tau: es.gapped_straight_through(tau=tau),
    "reinmax": lambda tau: es.reinmax(tau=tau),
    "reinmax_rao": lambda tau: es.reinmax_rao(tau=tau),
    "reinmax_cv": lambda tau: es.reinmax_cv(tau=tau),
    "rloo, 4 draws": lambda _: es.rloo(num_samples=4),
}


SMALL = "8 × 16", "p = 1.5"


def lineup(size: str) -> list[str]:
    few = "sampled_straight_through", "reinmax_cv", "rloo, 4 draws"
    return list(few) if size == "small" else list(ESTIMATORS)


class Budget(NamedTuple):
    """How much of everything: steps, segments of them, seeds, samples of `evaluate`."""

    steps: int
    segments: int
    seeds: int
    samples: int


def budget(size: str, problem: str) -> Budget:
    if size == "small":
        return Budget(10, 2, 2, 20)
    steps = 600 if problem.startswith("p") else 2000
    return Budget(steps, 10, 5, 400) if size == "full" else Budget(steps, 10, 2, 100)


# Training ----------------------------------------------------------------------------


def begun(model: Model, rates: jax.Array, seed: jax.Array) -> tuple[Any, Any]:
    """Parameters and states of the optimizer, of one seed and all settings."""
    params = model.start(jax.random.key(seed))
    every = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rates), *a.shape)), params)
    return every, jax.vmap(lambda rate, p: optax.adam(rate).init(p))(rates, every)


def segment(
    model: Model,
    make: Callable[[Any], es.Estimator],
    num_steps: int,
    settings: tuple[jax.Array, jax.Array],
    seeds: jax.Array,
    carry: tuple[Any, Any],
    first: jax.Array,
) -> tuple[Any, Any]:
    """Steps of Adam, every seed and setting a lane; lanes of a seed share noise."""

    def lane(carry: Any, tau: jax.Array, rate: jax.Array, seed: jax.Array) -> Any:
        def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), i)
            gradient = jax.grad(model.loss)(params, make(tau), key)
            updates, state = optax.adam(rate).update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, first + jnp.arange(num_steps))[0]

    of_seed = jax.vmap(lane, (0, 0, 0, None))
    return jax.vmap(of_seed, (0, None, None, 0))(carry, *settings, seeds)


def trained(
    model: Model, make: Callable, settings: list, size: Budget, say: Callable
) -> tuple[list[dict[str, jax.Array]], list[Any]]:
    """Scores, [seeds, settings] each, and parameters, before and after every segment.

    The last scores are of ten times as many draws.
    """
    grid = tuple(map(jnp.asarray, zip(*settings, strict=True)))
    seeds = jnp.arange(size.seeds)
    num = size.steps // size.segments

    @partial(jax.jit, static_argnums=1)
    def scores(params: Any, num_draws: int) -> dict[str, jax.Array]:
        one = partial(model.scores, key=jax.random.key(size.seeds), num=num_draws)
        return jax.vmap(jax.vmap(one))(params)

    carry = jax.vmap(partial(begun, model, grid[1]))(seeds)
    run = jax.jit(partial(segment, model, make, num, grid, seeds))
    found, kept, begin = [scores(carry[0], 2)], [carry[0]], time.perf_counter()
    for i in range(size.segments):
        carry = run(carry, jnp.asarray(i * num))
        found.append(scores(carry[0], 20 if i + 1 == size.segments else 2))
        kept.append(jax.tree.map(np.asarray, carry[0]))
        took = time.perf_counter() - begin
        left = took / (i + 1) * (size.segments - i - 1)
        say(f"step {(i + 1) * num} of {size.steps}, {left:.0f} s left")
    return found, kept


def train(problem: str, estimator: str, size: Budget) -> Record:
    """One estimator on one problem at every setting, its scores by seed along it."""
    model, make = MODELS[problem](), ESTIMATORS[estimator]
    taus = TAUS if "tau" in make(1.0).settings else (1.0,)
    settings = [(tau, rate) for tau in taus for rate in model.rates]
    say = partial(progress, f"{problem}, {estimator}")
    found, _ = trained(model, make, settings, size, say)
    sides = {}
    for j, (tau, rate) in enumerate(settings):
        name = f"tau = {tau:g}, " * (len(taus) > 1) + f"rate = {rate:g}"
        of_setting = {key: [of[key][:, j] for of in found] for key in found[0]}
        sides[name] = {
            key: [[float(x) if isfinite(x) else None for x in at] for at in curve]
            for key, curve in of_setting.items()
        }
    steps = np.arange(size.segments + 1) * (size.steps // size.segments)
    return record(sides) | {"steps": steps.tolist()}


def progress(of: str, text: str) -> None:
    print(f"{of}: {text}", file=sys.stderr, flush=True)


def parts(kind: str, size: str) -> Iterator[Part]:
    for problem in SMALL if size == "small" else MODELS:
        if problem.startswith("p") == (kind == "polynomial"):
            for estimator in lineup(size):
                of = budget(size, problem)
                named = {"problem": problem, "estimator": estimator}
                named |= {"num_steps": of.steps, "seeds": of.seeds}
                yield Part(named, partial(train, problem, estimator, of))


# Variance along training -------------------------------------------------------------


def along(problem: str, size: Budget) -> Record:
    """Bias and deviation of all estimators, at the parameters of one training run.

    It is that of ReinMax at tau = 1 and the lower rate. The draws are too many to sum
    over, so that many estimates of RLOO with 16 draws are the reference.
    """
    model, say = MODELS[problem](), partial(progress, f"{problem}, along training")
    settings = [(1.0, model.rates[0])]
    few = size._replace(seeds=1, segments=min(size.segments, 4))
    _, kept = trained(model, ESTIMATORS["reinmax"], settings, few, say)

    @jax.jit
    def measured(params: Any) -> dk.Reports:
        cost, logits = model.problem(jax.tree.map(lambda a: a[0, 0], params))
        return dk.evaluate(
            jax.random.key(1),
            cost,
            logits,
            [make(1.0) for make in ESTIMATORS.values()],
            num_samples=size.samples,
            reference=es.rloo(num_samples=16),
            grid={"tau": TAUS},
        )

    reports = jax.tree.map(lambda *a: np.stack(a), *map(measured, kept))
    sides = {}
    for name, report in zip(ESTIMATORS, reports, strict=True):
        has_tau = "tau" in report.label.settings
        for j, tau in enumerate(TAUS if has_tau else TAUS[:1]):
            of_tau = dk.Report(*(a[:, j] for a in report[:-1]), report.label)
            label = name + f", tau = {tau:g}" * has_tau
            # Of a mean of so many estimates; the rest of the error is the reference's.
            own = total(of_tau.variance) / size.samples
            sides[label] = aggregated(of_tau, total(of_tau.bias_error**2) - own)
    steps = np.arange(few.segments + 1) * (few.steps // few.segments)
    return record(sides) | {"grid": steps.tolist()}


def variance(size: str) -> Iterator[Part]:
    for problem in SMALL[:1] if size == "small" else MODELS:
        of = budget(size, problem)
        named = {"problem": problem, "num_steps": of.steps, "num_samples": of.samples}
        yield Part(named, partial(along, problem, of))


# Speed -------------------------------------------------------------------------------


def steps_of(problem: str, num: int, names: list[str]) -> Contest:
    """Steps of training of one lane, every estimator; they do not compute the same."""
    model = MODELS[problem]()
    settings = jnp.ones(1), jnp.asarray(model.rates[:1])
    carry = jax.vmap(partial(begun, model, settings[1]))(jnp.arange(1))

    def side(make: Callable) -> Side:
        run = partial(segment, model, make, num, settings, jnp.arange(1))
        return Side(lambda: compiled(run, carry, jnp.asarray(0)))

    sides = {name: side(ESTIMATORS[name]) for name in names}
    return Contest(sides, lambda results: {})


def speed(size: str) -> Iterator[Record]:
    small, names = size == "small", lineup(size)
    for problem in SMALL[:1] if small else list(MODELS)[:3]:
        num = 2 if small else 20
        build = partial(steps_of, names=names)
        done = measure(build, rounds=2 if small else 5, problem=problem, num=num)
        for name in names[1:]:
            compare(done, name, names[0])
        yield done


BENCHMARKS = {
    "autoencoder": partial(parts, "autoencoder"),
    "polynomial": partial(parts, "polynomial"),
    "variance": variance,
    "steps": speed,
}
