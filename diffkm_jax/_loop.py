"""The loop around the update, its stop rule, and what it returns."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from diffkm_jax._blocks import anchor, block_for, blocked, inert, psum, weigh
from diffkm_jax._checks import accumulation_dtype
from diffkm_jax._implicit import attach, move_of_means
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
        NON_FINITE: A loss or a step was NaN or infinite, and the centroids are the last
            that were finite themselves; or the temperature was not positive. A
            derivative need not be finite then.
        EMPTY_CLUSTER: An active cluster of the returned centroids has no weight.
        LINEAR_SOLVE: The implicit derivative of the centroids cannot be trusted: its
            linear system did not get solved, because the Hessian is singular, not
            positive, or too badly conditioned. Found only where the centroids are
            differentiated: read it next to the gradient, as an auxiliary output.
    """

    CONVERGED = 1
    MAX_STEPS = 2
    NON_FINITE = 4
    EMPTY_CLUSTER = 8
    LINEAR_SOLVE = 16

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


export.register_namedtuple_serialization(FitResult, serialized_name="diffkm.FitResult")


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
    loop = _search(options, max_steps, data, state, tol)
    return _result(options, dtype, data, state.step, loop)


def _search(
    options: Options, max_steps: int, data: Data, begin: State, tol: Any
) -> _Loop:
    """The steps, which carry a derivative only if it is to be unrolled."""
    held = lax.stop_gradient(data)
    variance = _mean_variance(
        held, lax.stop_gradient(begin.centroids), options.axis_name
    )
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

    def step(data: Data, loop: _Loop) -> _Loop:
        old = loop.state
        new, stats, residual = one_update(options, data, old)
        finite = jnp.isfinite(new.centroids).all(axis=1)
        if data.active is not None:
            finite |= ~data.active
        finite = jnp.isfinite(stats.loss) & finite.all()
        bound = limit(old.centroids)
        converged = finite & (residual <= bound) & jnp.isfinite(bound)
        if last_temperature is not None:
            converged &= temperature_at(options, held, old.step) == last_temperature
        return _Loop(
            lax.cond(finite, lambda: new, lambda: old),
            loop.history.at[loop.num_steps].set(lax.stop_gradient(stats.loss)),
            loop.num_steps + finite.astype(jnp.int32),
            converged,
            ~finite,
        )

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    loop = _Loop(begin, jnp.zeros(max_steps + 1, acc), zero, no, no)
    if options.derivative != "unrolled":
        # At every step, because functions may close over what is differentiated.
        return lax.while_loop(
            unfinished,
            lambda loop: lax.stop_gradient(step(held, loop)),
            lax.stop_gradient(loop),
        )

    @partial(jax.checkpoint, prevent_cse=False)
    def step_if_unfinished(data: Data, loop: _Loop) -> _Loop:
        return lax.cond(unfinished(loop), step, lambda _, loop: loop, data, loop)

    def body(loop: _Loop, _: None) -> tuple[_Loop, None]:
        return step_if_unfinished(data, loop), None

    return lax.scan(body, loop, length=max_steps)[0]


def _result(
    options: Options, dtype: Any, data: Data, start: jax.Array, loop: _Loop
) -> FitResult:
    """One more pass, at the centroids as they are returned."""
    used = jnp.maximum(loop.state.step - 1, start)
    temperature = temperature_at(options, data, used)
    hard = options.distance is squared_euclidean and temperature is None
    state, solved = loop.state, jnp.ones((), bool)
    if options.derivative != "unrolled" and not hard:
        centroids, solved = attach(options, data, temperature, state.centroids)
        state = state._replace(centroids=centroids)
    centroids = state.centroids.astype(dtype)
    if hard:
        plan = Plan(
            options.block_size or block_for(*centroids.shape), options.axis_name
        )
        out = hard_pass(plan, data.points, centroids, data.weights, data.active)
        stats, labels = Statistics(*out[:3]), out[3]
        if options.derivative in ("implicit", "one_step"):
            move, stats = move_of_means(stats)
            wide = state.centroids
            state = state._replace(centroids=wide + move.astype(wide.dtype))
            centroids += move.astype(dtype)
    else:
        stats = pass_over(options, data, centroids, temperature)
        labels = assign(
            lax.stop_gradient(data.points),
            lax.stop_gradient(centroids),
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
    if temperature is not None:
        failed |= ~(lax.stop_gradient(temperature) > 0)
    empty = stats.counts == 0
    if data.active is not None:
        empty &= data.active
    flags = {
        Status.CONVERGED: loop.converged & ~failed,
        Status.MAX_STEPS: ~loop.converged & ~failed,
        Status.NON_FINITE: failed,
        Status.EMPTY_CLUSTER: empty.any(),
        Status.LINEAR_SOLVE: ~solved,
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
        state=state,
    )


def _mean_variance(data: Data, c: jax.Array, axis_name: str | None) -> jax.Array:
    """The weighted variance of the features, averaged over them, from two passes."""
    acc, d = accumulation_dtype(data.points, c, data.weights), c.shape[1]
    origin = anchor(c.astype(acc), data.active)
    weights = data.weights
    if weights is None:
        weights = jnp.ones(data.points.shape[0], acc)

    def summed(f: Callable[[jax.Array], jax.Array], center: jax.Array) -> Any:
        def block(x: jax.Array, w: jax.Array) -> tuple[Any, None]:
            w = w.astype(acc)
            e = inert(x.astype(acc), w, center) - center
            return (w.sum(), jnp.sum(weigh(w, f(e)), axis=0, keepdims=True)), None

        total, _ = blocked(block, block_for(1, d), (data.points, weights))
        return psum(total, axis_name)

    mass, moved = summed(lambda e: e, origin)
    _, squares = summed(lambda e: e * e, origin + moved / mass)
    return jnp.sum(squares) / (mass * d)


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

    def draw(key: jax.Array, data: Data) -> jax.Array:
        return initializer(key, data.points, k, weights=data.weights)

    keys = jax.random.split(key, num_restarts)
    drawn = jax.eval_shape(draw, keys[0], data)
    dtype, acc = drawn.dtype, accumulation_dtype(data.points, drawn, data.weights)

    def begin(key: jax.Array, data: Data) -> State:
        return initial(draw(key, data).astype(acc), options.optimizer)

    # Without a derivative, so that only the chosen one is kept for it.
    still, held = options._replace(derivative="none"), lax.stop_gradient(data)

    def search(key: jax.Array) -> tuple[_Loop, jax.Array]:
        loop = _search(still, max_steps, held, begin(key, held), tol)
        zero = jnp.zeros((), jnp.int32)
        return loop, _result(still, dtype, held, zero, loop).loss

    def better(best: tuple, item: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        i, key = item
        loop, loss = search(key)
        first_finite = jnp.isfinite(loss) & ~jnp.isfinite(best[1])
        wins = (i == 0) | (loss < best[1]) | first_finite
        return lax.cond(wins, lambda: (loop, loss, key), lambda: best), None

    shapes = jax.eval_shape(search, keys[0])
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    first = *nothing, keys[0]
    items = jnp.arange(num_restarts), keys
    (loop, _, key), _ = lax.stop_gradient(lax.scan(better, first, items))
    if options.derivative == "unrolled":
        return run(options, max_steps, dtype, data, begin(key, data), tol)
    return _result(options, dtype, data, jnp.zeros((), jnp.int32), loop)
