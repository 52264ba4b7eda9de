"""The method of conjugate residuals, for symmetric systems that may be singular.

Conjugate gradients minimize xᵀAx/2 − bᵀx, which has no minimum where b is not in the
range of a semidefinite A; conjugate residuals minimize ‖b − Ax‖ over the same spaces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class _Iteration(NamedTuple):
    """The iterate x, residual r = b − Ax, direction p, and what else a step needs.

    `norm` estimates ‖A‖ by the largest ‖Ar‖/‖r‖ so far; `null` says that r is in the
    null space as far as that can be told.
    """

    x: jax.Array
    r: jax.Array
    p: jax.Array
    Ap: jax.Array
    rAr: jax.Array
    norm: jax.Array
    iteration: jax.Array
    null: jax.Array


def conjugate_residuals(
    product: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    tol: float,
    max_iterations: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Solves A x = b for a symmetric positive semidefinite A, from x = 0.

    Until ‖r‖ ≤ tol ‖b‖, or ‖A r‖ ≤ tol ‖A‖ ‖r‖, that is, what is left of b is in the
    null space; it ends too where rᵀAr ≤ 0, at a negative curvature. Always finite.

    Args:
        product: Function v ↦ A v of arrays like b.
        b: Right-hand side, any shape.
        tol: Relative size of the residual to end at.
        max_iterations: Limit of products.

    Returns:
        x, the residual r, and whether that is in the null space, [], bool.

    Source: Saad 2003, section 6.8, https://doi.org/10.1137/1.9780898718003
    """
    # To be squared without underflow.
    size = jnp.max(jnp.abs(b), initial=0)
    usable = (size > 0) & jnp.isfinite(size)
    b = jnp.where(usable, b / jnp.where(usable, size, 1), 0)
    limit = tol * norm(b)

    def goes_on(now: _Iteration) -> jax.Array:
        more = (norm(now.r) > limit) & (now.iteration < max_iterations)
        return more & (now.rAr > 0) & ~now.null

    def iterate(now: _Iteration) -> _Iteration:
        Ar, length = product(now.r), norm(now.r)
        rAr = jnp.sum(now.r * Ar)
        largest = jnp.maximum(now.norm, norm(Ar) / length)
        null = norm(Ar) <= tol * largest * length
        beta = rAr / now.rAr
        p, Ap = now.r + beta * now.p, Ar + beta * now.Ap
        alpha = jnp.where((rAr > 0) & ~null, rAr / jnp.sum(Ap * Ap), 0)
        x, r = now.x + alpha * p, now.r - alpha * Ap
        return _Iteration(x, r, p, Ap, rAr, largest, now.iteration + 1, null)

    # Made of b, to vary over devices as it does; rAr is infinite so that the first
    # direction is r.
    zeros, zero = 0 * b, 0 * jnp.sum(b)
    begin = _Iteration(
        x=zeros,
        r=b,
        p=zeros,
        Ap=zeros,
        rAr=zero + jnp.inf,
        norm=zero,
        iteration=jnp.zeros((), jnp.int32),
        null=zero != 0,
    )
    end = lax.while_loop(goes_on, iterate, begin)
    x, r = (jnp.where(usable & jnp.isfinite(v), size * v, 0) for v in (end.x, end.r))
    return x, r, end.null


def norm(vector: jax.Array) -> jax.Array:
    """The Euclidean norm of all entries."""
    return jnp.sqrt(jnp.sum(vector**2))
