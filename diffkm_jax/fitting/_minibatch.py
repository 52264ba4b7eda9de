"""Fits by steps on batches that are drawn from the points, as one program."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diffkm_jax._checks import as_scalar, check_integer, check_key
from diffkm_jax._hints import hinted
from diffkm_jax._mesh import vary_as
from diffkm_jax._problem import Axis, Problem
from diffkm_jax._sharding import check_replicated, number_of, over_rows
from diffkm_jax._units import in_unit
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting._batches import Batches, check_batches
from diffkm_jax.fitting._empty import EmptyPolicy
from diffkm_jax.fitting._fit import result_of
from diffkm_jax.fitting._loop import Progress, after, begun, goes_on
from diffkm_jax.fitting._reassign import counts_of, refilled
from diffkm_jax.fitting._start import as_start, rows_of
from diffkm_jax.fitting._state import SPECS, FitResult, State
from diffkm_jax.fitting._step import Algorithm, step
from diffkm_jax.fitting._units import counts_in_unit
from diffkm_jax.fitting._update import as_algorithm
from diffkm_jax.optimizers import ema

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float, PRNGKeyArray


@hinted
def fit_minibatch(
    key: PRNGKeyArray,
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"] | State,
    *,
    num_steps: int,
    batch_size: int = 2048,
    sampling: str = "replacement",
    patience: int | None = None,
    reassignment_ratio: ArrayLike | None = None,
    optimizer: optax.GradientTransformation | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    temperature: ArrayLike | optax.Schedule | None = None,
    distance: Distance = squared_euclidean,
    empty: str | EmptyPolicy = "keep",
    block_size: int | None = None,
    axis_name: Axis = None,
) -> FitResult:
    """Fits centroids by steps on random batches of the points, as one program.

    A step draws a batch, rows with replacement, and updates as `update` does. By
    default that is by moving averages whose decay goes from 0 to 1 in `num_steps`
    steps, 1 − γ_t = (1 + cos(π t / num_steps)) / 2, after e-means, so that the
    centroids come to rest. Where the points are many batches, num_steps = 4 n /
    `batch_size`, four passes over the points or less, is as a rule enough to end within
    a percent of the loss that Lloyd's algorithm finds after ten to hundreds. `fit` from
    there takes the centroids to a stationary point of the loss of all points.

    The gradient of `loss` and `counts` is that of functions of points, weights and
    temperature at the returned centroids; that of the centroids is zero, because no
    formula holds where they do not rest: differentiate the `fit` from there.

    Args:
        key: A JAX random key.
        points: Data, [n, d], real, in data units.
        centroids: Start, [k, d], real, in data units; or the `State` of an earlier
            result with the same optimizer, to go on from there: with the same key, as
            if that had not stopped; but the smoothed loss of `patience` begins anew.
        num_steps: Number of steps of this call, static; 0 evaluates the start.
        batch_size: Rows of a batch, static; ten times k or more, or small clusters
            find no point in most of them. Of sharded points every device takes as many
            of its own.
        sampling: How batches are taken, static. `"replacement"`: rows drawn with
            replacement. `"shuffled"`: in epochs of ⌊n / `batch_size`⌋ steps, each
            through the rows in a new random order, of which it leaves out the rest.
            `"sequential"`: in epochs through the rows as they are, the last batch of
            which ends with the last row and overlaps the one before it.
        patience: Steps, static, after which it ends if the smoothed loss of batches has
            not become smaller in them, as in scikit-learn: their exponential mean, with
            a rate of 2 `batch_size` / (n + 1), from the second on. None is no rule.
        reassignment_ratio: Non-negative scalar, no unit: every 10 k rows, and after
            every step before which a cluster had had no point, clusters whose running
            count is below that share of the largest are set to rows of the batch, as
            `reassign` says; for an optimizer that counts. None is never.
        optimizer: Any optax transformation, static by identity, of gradients that are
            sums over a batch; None is the one above.
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, but is drawn
            like others. None is ones.
        active: As in `fit`.
        temperature: As in `fit`; a schedule is one of the step.
        distance: As in `fit`.
        empty: As in `fit`; what `"farthest"` calls empty is a cluster without a point
            in a batch.
        block_size: As in `fit`.
        axis_name: As in `fit`; the key is the same on every device.

    Returns:
        A `FitResult` of all points, by one pass over them. `history` has, for every
        step, the loss of its batch before it, times n / `batch_size`, and at the end
        `loss`. `status` says MAX_STEPS, or NO_IMPROVEMENT where `patience` ended it; or
        NON_FINITE where a batch or a step was not finite, at which it ends, with the
        centroids before it.

    Raises:
        TypeError: As in `fit`, or `key` is no random key, or `num_steps`,
            `batch_size` or `patience` no integer.
        ValueError: As in `fit`, or `num_steps` is negative or `batch_size` or
            `patience` below 1; `sampling` is unknown, or `batch_size` above n, where
            it is not with replacement, or no multiple of the devices that points are
            sharded over; there is a `reassignment_ratio` and an optimizer without
            counts; or
            `optimizer` is None for a `State`, as a schedule of an earlier call has
            ended.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> key = jax.random.key(0)
        >>> rough = dk.fit_minibatch(key, x, x[:2], num_steps=20, batch_size=8)
        >>> rough.counts.tolist(), dk.fit(x, rough.centroids).centroids.tolist()
        ([2.0, 2.0], [[0.5], [9.5]])

    Source: Sculley 2010 (batches), https://doi.org/10.1145/1772690.1772862; e-means
        2026 (the schedule), https://arxiv.org/abs/2611.09501
    """
    check_key(key)
    check_integer("num_steps", num_steps, minimum=0)
    check_integer("batch_size", batch_size, minimum=1)
    if optimizer is None:
        if isinstance(centroids, State):
            raise ValueError(
                "optimizer must be that of the State, got None, whose schedule ended "
                "with the call that it was of: pass one to both calls, as ema(schedule)"
            )
        optimizer = _settling(num_steps)
    algorithm, problem, start = as_algorithm(
        points,
        rows_of(centroids),
        optimizer=optimizer,
        weights=weights,
        active=active,
        temperature=temperature,
        distance=distance,
        empty=empty,
        block_size=block_size,
        axis_name=axis_name,
    )
    state, dtype = as_start(algorithm, problem, centroids, start)
    check_replicated(algorithm.plan, problem, (state, key))
    check_batches(sampling, batch_size, algorithm.plan, problem.points)
    if patience is not None:
        check_integer("patience", patience, minimum=1)
    ratio = None
    if reassignment_ratio is not None:
        counts_of(state.opt_state, len(start))
        given = reassignment_ratio, problem.points, problem.weights
        ratio = as_scalar("reassignment_ratio", *given, zero=True)
    static = algorithm, num_steps, batch_size, sampling, patience, dtype
    return _fit_minibatch(*static, key, problem, state, ratio)


@cache
def _settling(num_steps: int) -> optax.GradientTransformation:
    """Moving averages that come to rest in a number of steps."""

    def decay(step: Any) -> jax.Array:
        share = jnp.minimum(step, num_steps).astype(float) / max(1, num_steps)
        return 0.5 - 0.5 * jnp.cos(jnp.pi * share)

    return ema(decay)


class Smoothed(NamedTuple):
    """The losses of batches, smoothed as scikit-learn does, and their least.

    Attributes:
        loss: Their exponentially weighted mean, [].
        least: The least that this has been, [].
        waited: Steps since then, [], int32.
    """

    loss: jax.Array
    least: jax.Array
    waited: jax.Array

    def after(self, loss: jax.Array, rate: float, is_first: jax.Array) -> Smoothed:
        """With another loss; the first, of the start, does not count."""
        mean = self.loss + rate * (loss - self.loss)
        loss = jnp.where(jnp.isinf(self.loss), loss, mean)
        waited = jnp.where(loss < self.least, 0, self.waited + 1)
        new = Smoothed(loss, jnp.minimum(loss, self.least), waited)
        return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), self, new)


@over_rows(6, SPECS)
def _fit_minibatch(
    algorithm: Algorithm,
    num_steps: int,
    batch_size: int,
    sampling: str,
    patience: int | None,
    dtype: Any,
    key: jax.Array,
    problem: Problem,
    start: State,
    ratio: jax.Array | None,
) -> FitResult:
    plan, optimizer = algorithm.plan, algorithm.optimizer
    problem = in_unit(plan, problem, start.centroids)
    opt_state = counts_in_unit(optimizer, start.opt_state, problem)
    start = start._replace(opt_state=opt_state)
    held = lax.stop_gradient(problem)
    batches = Batches(sampling, plan, key, held, batch_size)
    n, acc = number_of(plan, held.points), problem.dtype(start.centroids)

    def advance(carry: tuple[Progress, Smoothed, Any]):
        now, smoothed, order = carry
        batch, order = batches.at(now.state.step, order)
        found = step(algorithm, batch, now.state)
        loss = found.stats.loss * (n / batch_size)
        if ratio is not None:
            found = refilled(algorithm, batch_size, key, batch, now.state, found, ratio)
        if patience is not None:
            rate = min(1.0, 2 * batch_size / (n + 1))
            smoothed = smoothed.after(loss, rate, now.num_steps == 0)
        rests = now.converged if patience is None else smoothed.waited >= patience
        return lax.stop_gradient((after(now, found, loss, rests), smoothed, order))

    inf = jnp.full((), jnp.inf, acc)
    begin = begun(start, num_steps, acc), Smoothed(inf, inf, jnp.zeros((), jnp.int32))
    # As in `run`: a fit per device, where any of these varies.
    begin = vary_as(lax.stop_gradient(begin), key, held, start, but=plan.axis_name)
    order = vary_as(batches.order(start.step), key, held, start)
    end = lax.while_loop(lambda carry: goes_on(carry[0]), advance, (*begin, order))
    return result_of(algorithm, "none", dtype, problem, start, end[0], None)
