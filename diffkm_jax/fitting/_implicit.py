"""The implicit function theorem, for the solution of a system found in any way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import zero_from_primal

from diffkm_jax._tangents import combine, partition


class System(NamedTuple):
    """F(x, θ) = 0, and how −∂F/∂x dx = ∂F/∂θ dθ is solved; static.

    Attributes:
        f: Function (x, θ) of F and of anything that the next two need.
        solve: Function (x, θ, that, b) of the dx with −∂F/∂x dx = b.
        is_solvable: Function (x, θ, that) of whether `solve` can be trusted, [], bool.
    """

    f: Callable[[jax.Array, Any], tuple[jax.Array, Any]]
    solve: Callable[[jax.Array, Any, Any, jax.Array], jax.Array]
    is_solvable: Callable[[jax.Array, Any, Any], jax.Array]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def solution(system: System, x: jax.Array, theta: Any) -> tuple[jax.Array, jax.Array]:
    """X as a function of θ: the value x, the derivative of the x with F(x, θ) = 0.

    In θ only. Also returns whether the linear solve for it can be trusted, which is
    tried only where x is in fact differentiated; else it is true.
    """
    del system, theta
    # Made of x, because under vmap the rule's is one of each problem.
    return x, jnp.any(x == 0) | True


@partial(solution.defjvp, symbolic_zeros=True)
def _theorem(system: System, primals: tuple, tangents: tuple):
    x, theta = primals
    moving, fixed, dmoving = partition(theta, tangents[1])
    # The decorated function, so that the next order moves x too.
    x, _ = solution(system, x, theta)

    def f(moving: Any) -> tuple[jax.Array, Any]:
        return system.f(x, combine(moving, fixed))

    _, df, about = jax.jvp(f, (moving,), (dmoving,), has_aux=True)
    dx = system.solve(x, theta, about, df)
    solved = system.is_solvable(*lax.stop_gradient((x, theta, about)))
    dsolved = zero_from_primal(solved, symbolic_zeros=True)
    return (x, solved), (dx.astype(x.dtype), dsolved)


def trusted(x: jax.Array, theta: Any, about: Any) -> jax.Array:
    """The `is_solvable` of a solve that cannot fail."""
    del x, theta, about
    return jnp.ones((), bool)
