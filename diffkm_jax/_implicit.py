"""How the end of a fit is differentiated: not by its steps, but by where it rests.

At rest the gradient of the loss in the centroids vanishes, and the implicit function
theorem says how they move with the data. Hard and squared, the Hessian is diagonal and
the answer is the derivative of the cluster means, at every order; else it takes a
linear solve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import zero_from_primal

from diffkm_jax._passes import is_zero
from diffkm_jax._update import Data, Options, pass_over, step_of
from diffkm_jax.distances import squared_euclidean
from diffkm_jax.statistics import Statistics

MAX_ITERATIONS = 2000


def move_of_means(stats: Statistics) -> tuple[jax.Array, Statistics]:
    """How the means of hard clusters move with the data: zero, with that derivative.

    Also returns the statistics, found at centroids held constant, as a function of
    centroids that move so. Labels are constant and a mean does not depend on where it
    is measured from, so that both are exact at every order, without a second pass.
    """
    step = step_of(stats)
    move = jnp.where(jnp.isfinite(step), step - lax.stop_gradient(step), 0)
    counts = stats.counts[:, None]
    loss = stats.loss - jnp.sum(move * (2 * stats.shifts - counts * move))
    return move, Statistics(loss, stats.counts, stats.shifts - counts * move)


class Rest(NamedTuple):
    """What is static about a derivative of resting centroids.

    The statistics at some; whether to solve for it or to take one more step; whether
    the Hessian has no direction that is flat by nature.
    """

    statistics: Callable[..., Statistics]
    solve: bool
    curved: bool
    axis_name: str | None


def attach(
    options: Options, data: Data, temperature: jax.Array | None, centroids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The centroids, with the derivative that `options` asks for.

    Also returns whether the linear solve for it can be trusted, which is tried only
    where the centroids are in fact differentiated; else it is true.
    """
    held = lax.stop_gradient(centroids)
    if options.derivative == "none":
        return held, jnp.ones((), bool)
    squared = options.distance is squared_euclidean
    solve = options.derivative == "implicit" and not (squared and temperature is None)

    def statistics(data: Data, c: jax.Array, *consts: Any) -> Statistics:
        del consts
        return pass_over(options, data, c, data.temperature)

    theta, consts = data._replace(temperature=temperature), []
    if not squared:
        # Arrays that the distance closes over are differentiated too. What this makes
        # takes no other structure, and the trial solve has weights.
        if theta.weights is None:
            theta = theta._replace(weights=jnp.ones(data.points.shape[0], held.dtype))
        statistics, consts = jax.closure_convert(statistics, theta, held)
    return _resting(
        Rest(statistics, solve, squared, options.axis_name), held, theta, *consts
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _resting(
    rest: Rest, centroids: jax.Array, data: Data, *consts: Any
) -> tuple[jax.Array, jax.Array]:
    del rest, data, consts
    # Made of centroids, because under vmap the rule's is one of each problem.
    return centroids, (centroids[0, 0] == 0) | True


@partial(_resting.defjvp, symbolic_zeros=True)
def _resting_rule(rest: Rest, primals: tuple, tangents: tuple):
    centroids, *theta = primals
    leaves, structure = jax.tree.flatten(theta)
    moves = jax.tree.leaves(tangents[1:])
    live = [i for i, move in enumerate(moves) if not is_zero(move)]

    def at(c: jax.Array, *moving: jax.Array) -> Statistics:
        full = dict(enumerate(leaves)) | dict(zip(live, moving, strict=True))
        data, *consts = jax.tree.unflatten(structure, full.values())
        return rest.statistics(data, c, *consts)

    now, moves = [leaves[i] for i in live], [moves[i] for i in live]
    solved = jnp.ones((), bool)
    # The decorated function, so that the next order moves the centroids too.
    c, _ = _resting(rest, *primals)
    if rest.solve:
        stats, moved = jax.jvp(lambda *moving: at(c, *moving), now, moves)
        dc = _solve(rest, c, stats.counts, theta, 2 * moved.shifts)
        solved = _solvable(rest, *lax.stop_gradient((c, stats.counts, theta)))
    else:
        held = lax.stop_gradient(centroids)
        _, dc = jax.jvp(lambda *moving: step_of(at(held, *moving)), now, moves)
    dsolved = zero_from_primal(solved, symbolic_zeros=True)
    return (c, solved), (dc.astype(c.dtype), dsolved)


class _Hessian(NamedTuple):
    """The Hessian of a loss in the centroids, in units of 2 counts, and its scale.

    Rows without weight, which nothing moves, are those of the identity.
    """

    scale: jax.Array
    product: Callable[[jax.Array], jax.Array]


def _scaled_hessian(
    rest: Rest, c: jax.Array, counts: jax.Array, theta: list
) -> _Hessian:
    counts = lax.stop_gradient(counts)[:, None]
    positive = counts > 0
    scale = jnp.where(positive, lax.rsqrt(2 * jnp.where(positive, counts, 1)), 0)
    data, *consts = theta

    def product(y: jax.Array) -> jax.Array:
        tangent = (scale * y).astype(c.dtype)
        _, dshifts = jax.jvp(
            lambda c: rest.statistics(data, c, *consts).shifts, (c,), (tangent,)
        )
        return jnp.where(positive, -2 * scale * dshifts, y)

    return _Hessian(scale, product)


def _solve(
    rest: Rest, c: jax.Array, counts: jax.Array, theta: list, b: jax.Array
) -> jax.Array:
    """Solves Hessian · dc = b, as an operation that transposes and differentiates."""

    def solve(product: Callable, b: jax.Array) -> jax.Array:
        eps = float(jnp.finfo(b.dtype).eps)
        return _conjugate_residuals(product, b, eps**0.75, MAX_ITERATIONS)[0]

    if rest.axis_name is None:
        scale, product = _scaled_hessian(rest, c, counts, theta)
        y = lax.custom_linear_solve(product, scale * b, solve, symmetric=True)
        return jnp.where(scale > 0, scale * y, 0)

    # In shard_map all that goes into a linear solve must vary over the devices, as the
    # points do; the pass wants the rest to be the same on all.
    def vary(a: jax.Array) -> jax.Array:
        return jnp.where(lax.axis_index(rest.axis_name) >= 0, a, a)

    def statistics(data: Data, *others: jax.Array) -> Statistics:
        t, others = lax.pmean((data.temperature, others), rest.axis_name)
        return rest.statistics(data._replace(temperature=t), *others)

    inside = rest._replace(statistics=statistics)
    c, counts, theta, b = jax.tree.map(vary, (c, counts, theta, b))
    scale, product = _scaled_hessian(inside, c, counts, theta)
    y = lax.custom_linear_solve(product, scale * b, solve, symmetric=True)
    return lax.pmean(jnp.where(scale > 0, scale * y, 0), rest.axis_name)


def _solvable(rest: Rest, c: jax.Array, counts: jax.Array, theta: list) -> jax.Array:
    """Whether the Hessian can be solved with, tried on one vector without symmetry.

    To a residual that says so, in half the iterations that a derivative may take: what
    a later reverse pass meets cannot be reported any more. A rest that the Hessian does
    not see, as lengths under `cosine`, is no harm if the data do not push along it.
    """
    scale, product = _scaled_hessian(rest, c, counts, theta)
    wave = jnp.cos(jnp.arange(c.size, dtype=counts.dtype)).reshape(c.shape)
    b, tol = jnp.where(scale > 0, wave, 0), float(jnp.finfo(wave.dtype).eps) ** 0.5
    _, left, flat = _conjugate_residuals(product, b, tol, MAX_ITERATIONS // 2)
    solved = _norm(left) <= 2 * tol * _norm(b)
    if rest.curved:
        return solved
    data, *consts = theta
    weights = jnp.cos(jnp.arange(data.points.shape[0], dtype=counts.dtype))
    # Shifts are linear in the weights.
    push = data._replace(weights=weights * data.weights.astype(weights.dtype))
    push = scale * rest.statistics(push, c, *consts).shifts
    along = jnp.abs(jnp.sum(push * left))
    return solved | (flat & (along <= tol * _norm(push) * _norm(left)))


def _norm(vector: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(vector**2))


class _Descent(NamedTuple):
    x: jax.Array
    residual: jax.Array
    direction: jax.Array
    bent: jax.Array
    slope: jax.Array
    steepest: jax.Array
    iteration: jax.Array
    goes_on: jax.Array
    flat: jax.Array


def _conjugate_residuals(
    product: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    tol: float,
    max_iterations: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Solves a symmetric positive semidefinite system from zero; always finite.

    Until the residual is `tol` times `b`, or nearly all of it is in the null space: as
    `cosine` needs, and conjugate gradients do not survive. It ends at a negative
    curvature. Also returns the residual and whether that is in the null space.
    """
    # To be squared without underflow.
    size = jnp.max(jnp.abs(b))
    usable = (size > 0) & jnp.isfinite(size)
    b = jnp.where(usable, b / jnp.where(usable, size, 1), 0)
    limit = tol * _norm(b)

    def unfinished(now: _Descent) -> jax.Array:
        more = (_norm(now.residual) > limit) & (now.iteration < max_iterations)
        return more & now.goes_on

    def step(now: _Descent) -> _Descent:
        bent, left = product(now.residual), _norm(now.residual)
        slope = jnp.sum(now.residual * bent)
        steepest = jnp.maximum(now.steepest, _norm(bent) / left)
        flat = _norm(bent) <= tol * steepest * left
        goes_on = (slope > 0) & ~flat
        ratio = slope / now.slope
        p, q = now.residual + ratio * now.direction, bent + ratio * now.bent
        length = jnp.where(goes_on, slope / jnp.sum(q * q), 0)
        return _Descent(
            now.x + length * p,
            now.residual - length * q,
            p,
            q,
            slope,
            steepest,
            now.iteration + 1,
            goes_on,
            flat,
        )

    # Made of b, to vary over devices as it does.
    zeros, zero = 0 * b, 0 * jnp.sum(b)
    start = _Descent(
        x=zeros,
        residual=b,
        direction=zeros,
        bent=zeros,
        slope=zero + jnp.inf,
        steepest=zero,
        iteration=jnp.zeros((), jnp.int32),
        goes_on=zero == 0,
        flat=zero != 0,
    )
    end = lax.while_loop(unfinished, step, start)
    x, residual = (jnp.where(usable & jnp.isfinite(v), size * v, 0) for v in end[:2])
    return x, residual, end.flat
