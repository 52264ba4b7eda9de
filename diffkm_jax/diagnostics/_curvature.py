"""The smallest eigenvalue of a Hessian that is known by its products only."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffkm_jax._blocks import block_for
from diffkm_jax._geometry import matmul
from diffkm_jax._mesh import vary_as
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._soft_pass import soft_sums
from diffkm_jax._statistics import Statistics, pull_of


def hessian_product(
    plan: Plan, problem: Problem, centroids: jax.Array, vector: jax.Array
) -> jax.Array:
    """The Hessian of the free energy in the centroids, times a vector [k, d].

    Of an inactive row nothing is read, and it is zero.
    """
    block = plan.block_size or block_for(*centroids.shape)

    # Not `soft_pass`, whose rule is as fast but copies the points.
    def pull(c: jax.Array) -> jax.Array:
        found = soft_sums(plan, problem, c, block)
        return pull_of(problem, c, Statistics(found.loss, found.counts, found.shifts))

    return -jax.jvp(pull, (centroids,), (vector,))[1]


def smallest_eigenvalue(
    product: Callable[[jax.Array], jax.Array], start: jax.Array, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """The smallest Ritz value of a symmetric operator, and how far an eigenvalue is.

    Lanczos' method, every vector made orthogonal to all earlier ones, twice. It ends
    early where these span an invariant subspace: then the Ritz value is an eigenvalue,
    the smallest of those whose eigenvectors are not orthogonal to the start.
    """
    eps = float(jnp.finfo(start.dtype).eps)

    def step(carry: tuple, i: jax.Array):
        basis, q, scale = carry
        running = jnp.any(q != 0)
        basis = basis.at[i].set(q)
        w = product(q.reshape(start.shape)).reshape(-1)
        alpha = jnp.sum(q * w)
        for _ in range(2):
            w -= matmul(matmul(basis, w), basis)
        beta = jnp.sqrt(jnp.sum(w * w))
        scale = jnp.maximum(scale, jnp.abs(alpha) + beta)
        beta = jnp.where(beta > eps * scale, beta, 0)
        q = jnp.where(beta > 0, w / jnp.where(beta > 0, beta, 1), 0)
        return (basis, q, scale), (alpha, beta, running)

    q = start.reshape(-1) / jnp.sqrt(jnp.sum(start * start))
    basis = jnp.zeros((num_steps, start.size), start.dtype)
    begin = vary_as((basis, q, jnp.zeros_like(jnp.sum(q))), q)
    _, (alpha, beta, running) = jax.lax.scan(step, begin, jnp.arange(num_steps))
    # Steps after the end must not look like eigenvalues below the others.
    top = jnp.max(jnp.abs(alpha)) + 2 * jnp.max(beta)
    alpha = jnp.where(running, alpha, top)
    matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(matrix)
    return values[0], jnp.abs(beta[-1] * vectors[-1, 0])
