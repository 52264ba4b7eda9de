"""How wrong an estimator is: bias, variance, direction against the exact gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, overload

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_logits, check_integer, check_key
from diffkm_jax._hints import hinted
from diffkm_jax.diagnostics._estimates import Sample, estimate, joint_draw, judged
from diffkm_jax.diagnostics._moments import moments
from diffkm_jax.diagnostics._report import Report, report_of
from diffkm_jax.estimators._enumeration import batch_axes, exact, num_configurations
from diffkm_jax.estimators._estimator import (
    Cost,
    Estimator,
    check_estimator,
    checked_cost,
)

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Float

DEFAULT_SAMPLES = 10_000


@overload
@hinted
def evaluate(
    key: jax.Array,
    f: Cost,
    logits: ArrayLike,
    estimator: Estimator,
    *,
    num_samples: int | None = None,
    max_configurations: int = 4096,
    chunk_size: int = 1024,
    enumerate_draws: bool = True,
) -> Report: ...


@overload
@hinted
def evaluate(
    key: jax.Array,
    f: Cost,
    logits: ArrayLike,
    estimator: Sequence[Estimator],
    *,
    num_samples: int | None = None,
    max_configurations: int = 4096,
    chunk_size: int = 1024,
    enumerate_draws: bool = True,
) -> tuple[Report, ...]: ...


@hinted
def evaluate(
    key: jax.Array,
    f: Cost,
    logits: Float[ArrayLike, "*batch_rows k"],
    estimator: Estimator | Sequence[Estimator],
    *,
    num_samples: int | None = None,
    max_configurations: int = 4096,
    chunk_size: int = 1024,
    enumerate_draws: bool = True,
) -> Report | tuple[Report, ...]:
    """Measures an estimator against the exact gradient of E f(D), D ~ softmax(logits).

    The exact gradient is a sum over all draws of a problem, the axes of the logits that
    the cost keeps being independent problems. The estimates are drawn over too, without
    any Monte Carlo error, if the estimator is discrete (or has no noise) and its draws
    are few enough; else they are sampled. Several estimators see the same noise.

    The gradient of a report holds the draws and their probabilities constant, reverse
    mode only. In the settings of `reinforce`, `rebar`, `reinmax` and soft
    `gumbel_softmax` it is that of the numbers reported, so that a variance can be
    minimized. `evaluate` does not jit itself, because `f` is a function; either of
    these compiles once for each estimator, not for other logits, keys or settings:

        run = jax.jit(lambda key, logits, e: dk.evaluate(key, f, logits, e))
        run = jax.jit(dk.evaluate, static_argnames=("f", "num_samples"))

    The second is called as `run(key, f, logits, e, num_samples=1000)`, f kept. Without
    either, every call that samples compiles anew.

    A curve over tau is one call, and several estimators share its noise and its
    compilation, which for small problems is most of the time:

        def at(tau):
            records = [es.reinmax(tau=tau), es.gumbel_softmax(tau=tau)]
            return dk.evaluate(key, f, logits, records)

        curves = jax.vmap(at)(taus)

    The squared length of a sampled bias is too large by the sum of `bias_error`².

    Args:
        key: A random key; sample i has the noise of `fold_in(key, i)`, whatever the
            chunk.
        f: Cost, from rows [*batch, *rows, k] to costs [*batch], in any unit, as in
            `Estimator.expect`.
        logits: Unnormalized log-probabilities, [*batch, *rows, k], floating, no unit.
        estimator: An `Estimator`, or a list of them.
        num_samples: Estimates to draw where they are not enumerated, at least 2,
            static; None is 10 000.
        max_configurations: The most draws of a problem, k**r for its r rows, to
            enumerate; static. A discrete estimator of several draws with more joint
            ones is sampled.
        chunk_size: Samples to hold in memory at once, static.
        enumerate_draws: False samples discrete estimators too; static.

    Returns:
        A `Report`, or a tuple of them for a list.

    Raises:
        TypeError: `key` is no random key, `logits` or the costs are not floating, `f`
            is no function, `estimator` no `Estimator`, or a number no integer.
        ValueError: A problem has more than `max_configurations` draws; the shape of the
            costs is no prefix of that of the logits; a number is out of range; the list
            is empty.

    Example:
        >>> key, logits = jax.random.key(0), jnp.zeros(2)
        >>> report = dk.evaluate(key, lambda row: row[0], logits, es.reinforce())
        >>> report.exact.tolist(), report.bias.tolist(), bool(report.enumerated)
        ([0.25, -0.25], [0.0, 0.0], True)
        >>> round(float(report.snr), 3)  # Of the estimates [0.5, -0.5] and [0, 0].
        1.0

    Source: Rainforth et al. 2018 (signal to noise), https://arxiv.org/abs/1802.04537;
        Chan, Golub & LeVeque 1983 (merging of variances),
        https://doi.org/10.1080/00031305.1983.10483115
    """
    check_key(key)
    several = isinstance(estimator, Iterable)
    estimators = tuple(estimator) if several else (estimator,)
    if not estimators:
        raise ValueError("estimator must be an Estimator or a list of some, got none")
    for record in estimators:
        check_estimator(record)
    logits, cost = as_logits(logits), checked_cost(f)
    num_samples = DEFAULT_SAMPLES if num_samples is None else num_samples
    check_integer("num_samples", num_samples, minimum=2)
    check_integer("max_configurations", max_configurations, minimum=1)
    check_integer("chunk_size", chunk_size, minimum=1)
    kept = batch_axes(cost, logits)
    num = num_configurations(logits, kept, max_configurations)
    truth = estimate(exact(max_configurations=max_configurations), cost, logits, None)

    def joint(record: Estimator) -> int | None:
        """How many draws to enumerate; None is to sample."""
        count = num**record.num_draws
        few = enumerate_draws and record.discrete
        few = few and count <= min(max_configurations, 2**31 - 1)
        return count if few or not record.num_draws else None

    counts = [joint(record) for record in estimators]
    sampled = [e for e, count in zip(estimators, counts, strict=True) if count is None]
    paired = counts[0] is None

    def sample(i: jax.Array) -> tuple[jax.Array, list[Sample]]:
        most = max(sampled, key=lambda record: record.num_draws)
        noise = most.draw(jax.random.fold_in(key, i), logits.shape, logits.dtype)
        found = [
            judged(estimate(e, cost, logits, noise[: e.num_draws]), truth)
            for e in sampled
        ]
        if paired:
            first = found[0].error
            found = [s._replace(difference=s.error - first) for s in found]
        return jnp.ones_like(found[0].cosine), found

    def enumerated(record: Estimator) -> Callable:
        def at(code: jax.Array) -> tuple[jax.Array, list[Sample]]:
            weight, noise = joint_draw(logits, kept, num, record.num_draws, code)
            return weight, [judged(estimate(record, cost, logits, noise), truth)]

        return at

    drawn = iter(moments(sample, num_samples, chunk_size) if sampled else [])
    reports = []
    for record, count in zip(estimators, counts, strict=True):
        if count is None:
            found = next(drawn)
        else:
            (found,) = moments(enumerated(record), count, chunk_size)
        first = reports[0] if reports else None
        reports.append(report_of(found, truth, count, num_samples, first, paired))
    return tuple(reports) if several else reports[0]
