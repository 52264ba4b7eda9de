"""The loop around the update, its stop rule, and what it returns."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._blocks import anchor, block_for
from diffkm_jax._checks import accumulation_dtype
from diffkm_jax._passes import Plan, hard_pass
from diffkm_jax._update import (
    Data,
    Options,
    State,
    initial,
    one_update,
    pass_over,
    residual_of,
    temperature_at,
)
from diffkm_jax.distances import squared_euclidean
from diffkm_jax.statistics import Statistics, assign

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Status(enum.IntFlag):
    """How a fit ended: flags, as in `Status(int(result.status))`.

    Of a batch of fits, `[Status(int(s)) for s in result.status]`.

    Attributes:
        CONVERGED: It stopped by the residual rule.
        MAX_STEPS: It used all its steps without meeting that rule.
        NON_FINITE: A loss or a step was NaN or infinite; the centroids are the last
            that were finite themselves.
        EMPTY_CLUSTER: An active cluster of the returned centroids has no weight.
    """

    CONVERGED = 1
    MAX_STEPS = 2
    NON_FINITE = 4
    EMPTY_CLUSTER = 8

    def __str__(self) -> str:
        """The names of the flags, as in CONVERGED|EMPTY_CLUSTER."""
        return self.name or "0"


class FitResult(NamedTuple):
    """What a fit returns.

    `loss` and `counts` are differentiable functions of the returned centroids, points,
    weights and temperature; `history` and `residual` carry no gradient.

    Attributes:
        centroids: [k, d], in the dtype of the centroids given (of the points, if a
            `State` was), in data units.
        labels: Index of the nearest returned centroid, [n], int32.
        loss: The loss at the returned centroids, [], accumulation dtype.
        counts: Weight of every cluster there, [k], accumulation dtype.
        residual: Σ_j ‖shifts_j / counts_j‖² there, [], in squared data units.
        history: Loss after t steps, [max_steps + 1], padded with `loss`.
        num_steps: Steps taken in this call, [], int32.
        status: Flags of `Status`, [], int32.
        temperature: The last one used, [], or None if the fit was hard.
        state: The `State` at the end, to go on from.
    """

    centroids: Float[Array, "k d"]
    labels: Int[Array, " n"]
    loss: Float[Array, ""]
    counts: Float[Array, " k"]
    residual: Float[Array, ""]
    history: Float[Array, " steps"]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]
    temperature: Float[Array, ""] | None
    state: State


class _Loop(NamedTuple):
    state: State
    history: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    failed: jax.Array


def run(
    options: Options, max_steps: int, dtype: Any, data: Data, state: State, tol: Any
) -> FitResult:
    """The fit from a state; its result has centroids of `dtype`."""
    held, begin = lax.stop_gradient((data, state))
    variance = _mean_variance(held, begin.centroids, options.axis_name)
    acc = variance.dtype
    k, d = begin.centroids.shape
    last_temperature = temperature_at(options, held, begin.step + max_steps)

    def limit(c: jax.Array) -> jax.Array:
        on = None if held.active is None else held.active[:, None]
        eps = float(jnp.finfo(acc).eps)
        # Scaled before it is squared, so as not to overflow before the loss does.
        floor = jnp.sum((eps * c.astype(acc)) ** 2, where=on)
        floor += eps**2 * 64 * k * d * variance
        return jnp.maximum(jnp.asarray(tol, acc) * variance, floor)

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.num_steps < max_steps) & ~loop.converged & ~loop.failed

    def body(loop: _Loop) -> _Loop:
        old = loop.state
        new, stats, residual = one_update(options, held, old)
        finite = jnp.isfinite(new.centroids).all(axis=1)
        if held.active is not None:
            finite |= ~held.active
        finite = jnp.isfinite(stats.loss) & finite.all()
        bound = limit(old.centroids)
        converged = finite & (residual <= bound) & jnp.isfinite(bound)
        if last_temperature is not None:
            converged &= temperature_at(options, held, old.step) == last_temperature
        return _Loop(
            lax.cond(finite, lambda: new, lambda: old),
            loop.history.at[loop.num_steps].set(stats.loss),
            loop.num_steps + finite.astype(jnp.int32),
            converged,
            ~finite,
        )

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    loop = _Loop(begin, jnp.zeros(max_steps + 1, acc), zero, no, no)
    loop = lax.while_loop(unfinished, body, loop)
    return _result(options, dtype, data, begin.step, loop)


def _result(
    options: Options, dtype: Any, data: Data, start: jax.Array, loop: _Loop
) -> FitResult:
    """One more pass, at the centroids as they are returned."""
    centroids = loop.state.centroids.astype(dtype)
    used = jnp.maximum(loop.state.step - 1, start)
    temperature = temperature_at(options, data, used)
    hard = options.distance is squared_euclidean and temperature is None
    if hard:
        plan = Plan(
            options.block_size or block_for(*centroids.shape), options.axis_name
        )
        out = hard_pass(plan, data.points, centroids, data.weights, data.active)
        stats, labels = Statistics(*out[:3]), out[3]
    else:
        stats = pass_over(options, data, centroids, temperature)
        labels = assign(
            lax.stop_gradient(data.points),
            centroids,
            active=data.active,
            distance=options.distance,
            block_size=options.block_size,
        )
    steps, loss = loop.num_steps, lax.stop_gradient(stats.loss)
    history = loop.history.astype(loss.dtype)
    history = jnp.where(
        jnp.arange(len(history), dtype=steps.dtype) < steps, history, loss
    )
    failed = loop.failed | ~jnp.isfinite(loss)
    empty = stats.counts == 0
    if data.active is not None:
        empty &= data.active
    flags = {
        Status.CONVERGED: loop.converged & ~failed,
        Status.MAX_STEPS: ~loop.converged & ~failed,
        Status.NON_FINITE: failed,
        Status.EMPTY_CLUSTER: empty.any(),
    }
    status = sum(jnp.where(on, flag.value, 0) for flag, on in flags.items())
    return FitResult(
        centroids=centroids,
        labels=labels,
        loss=stats.loss,
        counts=stats.counts,
        residual=lax.stop_gradient(residual_of(stats)),
        history=history,
        num_steps=steps,
        status=jnp.asarray(status, jnp.int32),
        temperature=temperature,
        state=loop.state,
    )


def _mean_variance(data: Data, c: jax.Array, axis_name: str | None) -> jax.Array:
    """The weighted variance of the features, averaged over them, from two passes."""
    c = c.astype(accumulation_dtype(data.points, c, data.weights))
    plan = Plan(block_for(1, c.shape[1]), axis_name)
    origin = anchor(c, data.active)
    _, mass, shifts, _ = hard_pass(plan, data.points, origin, data.weights, None)
    mean = origin + shifts / mass[:, None]
    loss, *_ = hard_pass(plan, data.points, mean, data.weights, None)
    return loss / (mass[0] * c.shape[1])


def best_of(
    options: Options,
    max_steps: int,
    k: int,
    num_restarts: int,
    initializer: Callable[..., jax.Array],
    key: jax.Array,
    data: Data,
    tol: Any,
) -> FitResult:
    """The best of several fits, one after the other, each from its own draw."""

    def once(key: jax.Array) -> FitResult:
        c = initializer(key, data.points, k, weights=data.weights)
        dtype, acc = c.dtype, accumulation_dtype(data.points, c, data.weights)
        state = initial(c.astype(acc), options.optimizer)
        return run(options, max_steps, dtype, data, state, tol)

    def better(best: FitResult, item: tuple[jax.Array, jax.Array]):
        i, key = item
        new = once(key)
        first_finite = jnp.isfinite(new.loss) & ~jnp.isfinite(best.loss)
        wins = (i == 0) | (new.loss < best.loss) | first_finite
        return lax.cond(wins, lambda: new, lambda: best), None

    keys = jax.random.split(key, num_restarts)
    shapes = jax.eval_shape(once, keys[0])
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.scan(better, nothing, (jnp.arange(num_restarts), keys))[0]
