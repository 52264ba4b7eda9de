"""How wrong an estimator is: bias, variance, direction against the exact gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, check_integer
from diffkm_jax.assignments import hard
from diffkm_jax.diagnostics._estimates import (
    Sample,
    cosine,
    estimate,
    joint_draw,
    judged,
    norm,
    root,
)
from diffkm_jax.diagnostics._moments import moments, nonzero
from diffkm_jax.estimators import Estimator, exact
from diffkm_jax.estimators._record import Cost, check_estimator, checked_cost
from diffkm_jax.estimators._score import batch_axes, num_configurations

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float

DEFAULT_SAMPLES = 10_000


class Report(NamedTuple):
    """What `evaluate` found, of each independent problem of the batch.

    Vectors have the shape of the logits, [*batch, *rows, k]; numbers that of the costs,
    [*batch], and speak of the gradient of one problem as one vector. Gradients, and so
    bias and deviation, are in the unit of the costs, logits having none.

    Attributes:
        exact: The exact gradient of E f(D).
        mean: The mean of the estimates.
        bias: mean − exact.
        bias_error: The standard error of the bias; 0 if enumerated.
        variance: The variance of each component of an estimate.
        total_variance: Its sum over the components.
        mse: The mean of ‖estimate − exact‖²: ‖bias‖² + total_variance, this times
            1 − 1/n for n samples.
        cosine: Of the angle between mean and exact; 0 if either is zero.
        mean_cosine: The mean of the cosines between estimate and exact.
        snr: Signal to noise, ‖mean‖ / √total_variance: infinite without variance, 0 if
            the mean is zero.
        enumerated: Whether the draws were enumerated, so that nothing here has a Monte
            Carlo error.
        exact_value: The exact E f(D).
        mean_value: The mean of the costs that the estimator returned.
        difference: mean − the mean of the first estimator of the list.
        difference_error: Its standard error, paired where both were sampled.
    """

    exact: Float[Array, "*batch_rows k"]
    mean: Float[Array, "*batch_rows k"]
    bias: Float[Array, "*batch_rows k"]
    bias_error: Float[Array, "*batch_rows k"]
    variance: Float[Array, "*batch_rows k"]
    total_variance: Float[Array, "*batch"]
    mse: Float[Array, "*batch"]
    cosine: Float[Array, "*batch"]
    mean_cosine: Float[Array, "*batch"]
    snr: Float[Array, "*batch"]
    enumerated: Bool[Array, ""]
    exact_value: Float[Array, "*batch"]
    mean_value: Float[Array, "*batch"]
    difference: Float[Array, "*batch_rows k"]
    difference_error: Float[Array, "*batch_rows k"]


@overload
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
        TypeError: `logits` or the costs are not floating, `f` is no function,
            `estimator` no `Estimator`, or a number no integer.
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
        reports.append(_report(found, truth, count, num_samples, first, paired))
    return tuple(reports) if several else reports[0]


def _report(
    found: Sample,
    truth: tuple,
    count: int | None,
    num_samples: int,
    first: Report | None,
    paired: bool,
) -> Report:
    """The report of an estimator; `count` is None if it was sampled."""
    exact_value, exact_gradient = truth
    kept = exact_value.ndim
    bias = found.error.mean
    mean, squares = found.gradient.mean, found.gradient.squares
    divisor = found.gradient.weight if count else found.gradient.weight - 1
    variance = squares / divisor
    total_variance = jnp.sum(variance, axis=tuple(range(kept, variance.ndim)))
    length = norm(mean, kept)
    deviation = root(total_variance)
    snr = jnp.where(deviation > 0, length / nonzero(deviation), jnp.inf)
    bias_error = jnp.zeros_like(bias)
    if count is None:
        bias_error = root(variance / num_samples)
    if first is None:
        difference = difference_error = jnp.zeros_like(bias)
    elif paired and count is None:
        difference = found.difference.mean
        difference_error = root(found.difference.squares / divisor / num_samples)
    else:
        difference = bias - first.bias
        difference_error = root(bias_error**2 + first.bias_error**2)
    return Report(
        exact=exact_gradient,
        mean=mean,
        bias=bias,
        bias_error=bias_error,
        variance=variance,
        total_variance=total_variance,
        mse=found.squared_error.mean,
        cosine=cosine(mean, exact_gradient, kept),
        mean_cosine=found.cosine.mean,
        snr=jnp.where(length == 0, 0, snr),
        enumerated=jnp.asarray(count is not None),
        exact_value=exact_value,
        mean_value=found.cost.mean,
        difference=difference,
        difference_error=difference_error,
    )


def is_discrete(
    key: jax.Array,
    f: Cost,
    logits: Float[ArrayLike, "*batch_rows k"],
    estimator: Estimator,
    *,
    num_samples: int = 16,
) -> Bool[Array, ""]:
    """Whether an estimator's noise matters only through the draws it makes.

    Compares estimates under random noise with those under noise that says nothing but
    the same argmax(logits + noise[i]), in value and gradient. That is what the flag
    `discrete` of a record claims, and what `evaluate` relies on: a wrong flag would
    make it report no variance. Passing for one cost and a few samples is no proof. The
    result has no gradient.

    Args:
        key: A random key.
        f: Cost, as in `evaluate`; one that is not linear tells most.
        logits: Unnormalized log-probabilities, [*batch, *rows, k], floating, no unit.
        estimator: The `Estimator` to test, whatever its flag.
        num_samples: Estimates to compare, at least 1, static.

    Returns:
        A boolean, []; for an estimator without noise, true.

    Raises:
        TypeError: As `evaluate`.
        ValueError: `num_samples` is below 1, or as `Estimator.expect`.

    Example:
        >>> problem = jax.random.key(0), lambda row: row[0] ** 2, jnp.zeros(3)
        >>> records = es.reinmax(), es.gumbel_softmax(hard=True)
        >>> [bool(dk.is_discrete(*problem, record)) for record in records]
        [True, False]

    Source: Maddison, Tarlow & Minka 2014 (draws as an argmax of Gumbel noise),
        https://arxiv.org/abs/1411.0030
    """
    check_estimator(estimator)
    check_integer("num_samples", num_samples, minimum=1)
    logits, cost = as_logits(logits), checked_cost(f)

    def same(i: jax.Array) -> jax.Array:
        noise = estimator.draw(jax.random.fold_in(key, i), logits.shape, logits.dtype)
        drawn = hard(logits.astype(noise.dtype)[None] + noise)
        bare = jnp.where(drawn > 0, 0, -jnp.inf).astype(noise.dtype)
        pairs = zip(
            estimate(estimator, cost, logits, noise),
            estimate(estimator, cost, logits, bare),
            strict=True,
        )
        return jnp.stack([_close(a, b) for a, b in pairs]).all()

    return lax.map(same, jnp.arange(num_samples)).all()


def _close(a: jax.Array, b: jax.Array) -> jax.Array:
    limit = 1000 * jnp.finfo(a.dtype).eps * jnp.max(jnp.abs(a))
    return (jnp.abs(a - b) <= limit).all()
