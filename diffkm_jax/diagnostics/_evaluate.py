"""How wrong an estimator is: bias, variance, direction against the exact gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import jax
from jax.core import Tracer

from diffkm_jax._checks import check_integer, check_key
from diffkm_jax._hints import hinted
from diffkm_jax.diagnostics._report import Report, Reports, label_of
from diffkm_jax.diagnostics._reports import Plan, reports_of
from diffkm_jax.diagnostics._settings import groups_of, on_grid, split_settings
from diffkm_jax.estimators._cost import Cost, traced_cost
from diffkm_jax.estimators._enumeration import num_configurations
from diffkm_jax.estimators._estimator import (
    Estimator,
    as_choices,
    check_estimator,
    law_of,
)
from diffkm_jax.estimators._laws import Law

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
    reference: Estimator | None = None,
    max_configurations: int = 4096,
    grid: Mapping[str, ArrayLike] | None = None,
    chunk_size: int | None = None,
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
    reference: Estimator | None = None,
    max_configurations: int = 4096,
    grid: Mapping[str, ArrayLike] | None = None,
    chunk_size: int | None = None,
    enumerate_draws: bool = True,
) -> Reports: ...


@hinted
def evaluate(
    key: jax.Array,
    f: Cost,
    logits: Float[ArrayLike, "*batch_rows k"],
    estimator: Estimator | Sequence[Estimator],
    *,
    num_samples: int | None = None,
    reference: Estimator | None = None,
    max_configurations: int = 4096,
    grid: Mapping[str, ArrayLike] | None = None,
    chunk_size: int | None = None,
    enumerate_draws: bool = True,
) -> Report | Reports:
    """Measures an estimator against the exact gradient of E f(D), D ~ softmax(logits).

    Or against that of a subset D of clusters, if the estimator draws one by its law.
    The exact gradient is a sum over all draws of a problem, the axes of the logits that
    the cost keeps being independent problems. The estimates are drawn over too, without
    any Monte Carlo error, if the estimator is discrete (or has no noise) and its draws
    are few enough; else they are sampled. Several estimators see the same noise.

    The gradient of a report holds the draws and their probabilities constant, reverse
    mode only. In the settings it is that of the numbers reported, so that a variance
    can be minimized; a draw does not change with the `tau` of its gradient. It is NaN
    where it is not known, in the `gap` of `gapped_straight_through` and the two of
    `decoupled_gumbel_softmax`, and lacks what a rule of your own stops. The derivative
    of `mean_value` in the logits is `mean`.

    It compiles once for each `f` and list of kinds of estimators, not for other logits,
    keys, settings (arrays or floats) or arrays that `f` closes over; a function made
    anew is another one. Inside a program it is traced with the rest:

        run = jax.jit(lambda key, logits, e: dk.evaluate(key, f, logits, e))

    Estimators of one kind, as a list over tau, are one program too, and so is a grid of
    settings:

        records = [es.reinmax(), es.gumbel_softmax(), es.rloo()]
        curves = dk.evaluate(key, f, logits, records, grid={"tau": [0.5, 1.0, 2.0]})
        print(curves)  # A table; curves[0].cosine is over tau.

    A model's cost of many rows at once has too many draws to sum over. There an
    unbiased estimator is the reference, and the errors of its mean are in `bias_error`:

        dk.evaluate(key, f, logits, records, reference=es.rloo(num_samples=8))

    The squared length of a sampled bias is too large by the sum of `bias_error`², and
    so is that of a sampled mean, in `cosine` and `snr`, by its own squared error.

    Args:
        key: A random key; sample i has the noise of `fold_in(key, i)`, whatever the
            chunk. Where all that are sampled are discrete, for their draws are too many
            to enumerate, it has their draws instead, which takes fewer numbers.
        f: Cost, from rows [*batch, *rows, k] to costs [*batch], in any unit, as in
            `Estimator.expect`.
        logits: Unnormalized log-probabilities, [*batch, *rows, k], floating, no unit.
        estimator: An `Estimator`, or a list of them, of one `size` and `law`.
        num_samples: Estimates to draw where they are not enumerated, at least 2,
            static; None is 10 000.
        reference: An unbiased `Estimator` with noise; the mean of `num_samples`
            estimates by it stands for the exact gradient. Nothing tests that it is
            unbiased. None is a sum over all draws.
        max_configurations: The most draws of a problem to enumerate, k**r for its r
            rows, or of subsets as many; static. A discrete estimator is sampled if its
            joint draws are more; with a reference a problem may have any number.
        grid: Values of settings by name, each [size], in their units, for every
            estimator that has them: point i has the i-th of each. Reports have that
            axis first. None is no grid.
        chunk_size: Samples to hold in memory at once, static; None is as many as make
            four million numbers, at most 32768; under `jax.vmap` as many of each.
        enumerate_draws: False samples discrete estimators too; static.

    Returns:
        A `Report`, of arrays [*batch] and [*batch, *rows, k], or a tuple of them for a
        list; printed, a table.

    Raises:
        TypeError: `key` is no random key, `logits` or the costs are not floating, `f`
            is no function, `estimator` or `reference` no `Estimator`, a number no
            integer, or `grid` no mapping.
        ValueError: `logits` is a scalar, empty or of fewer than two clusters; a problem
            has more than `max_configurations` draws and there is no reference, or one
            without noise; the shape of the costs is no prefix of that of the logits; a
            number is out of range; the list is empty, of several laws, or of draws of
            more than k clusters; `grid` has arrays of unequal lengths, or a name that
            no estimator has; an estimator whose draws are relied on is declared
            discrete and is not (inside a program its report is NaN instead).

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
    logits = as_choices(logits)
    if not logits.size:
        raise ValueError(f"logits must have a row, got shape {logits.shape}")
    num_samples = DEFAULT_SAMPLES if num_samples is None else num_samples
    check_integer("num_samples", num_samples, minimum=2)
    check_integer("max_configurations", max_configurations, minimum=1)
    if chunk_size is not None:
        check_integer("chunk_size", chunk_size, minimum=1)
    cost = traced_cost(f, logits)
    if reference is not None:
        check_estimator(reference, name="reference")
    law = _law_of_all([*estimators, *([reference] if reference else [])], logits)
    if reference is None:
        num_configurations(logits, cost.num_axes, law, max_configurations)
        kind, of_reference, standard = None, [], None
    else:
        if not reference.num_draws:
            raise ValueError(
                "reference must be None, for the sum over all draws, or an unbiased "
                f"estimator with noise, as es.rloo(), got {reference.name}"
            )
        of_reference, kind = split_settings(reference)
        standard = reference.name
    size = None
    if grid is not None:
        estimators, size = on_grid(estimators, grid)
    flags = max_configurations, chunk_size, bool(enumerate_draws)
    plan = Plan(num_samples, *flags, size, kind, law)
    groups, arrays = groups_of(estimators, tuple(grid or ()))
    found, as_declared = reports_of(
        plan, tuple(groups), key, cost, logits, arrays, of_reference
    )
    for record, fits in zip(estimators, as_declared, strict=True):
        # Inside a program it is not known, and the report is NaN.
        if not isinstance(fits, Tracer) and not fits:
            raise ValueError(
                f"estimator {record.name} must not be declared discrete: its estimates "
                "change with noise of the same argmax(logits + noise), or if it draws "
                f"several, of the same subset by its size ({record.size}) and law"
            )
    labels = [label_of(e, logits.shape, grid or {}, standard) for e in estimators]
    reports = Reports(
        Report(**numbers, label=label)
        for numbers, label in zip(found, labels, strict=True)
    )
    return reports if several else reports[0]


def _law_of_all(records: Sequence[Estimator], logits: jax.Array) -> Law:
    """The law of what all the records draw."""
    laws = {law_of(record, logits): record.name for record in records}
    if len(laws) > 1:
        found = [f"{law.size}, {law.name} of {name}" for law, name in laws.items()]
        raise ValueError(
            "estimator must be a list of one size and law, and the reference too, got "
            + "; ".join(found)
        )
    return next(iter(laws))
