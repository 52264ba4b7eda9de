"""Hundreds of lanes with a shared argument, as one program and one after another.

On CPUs kernels of jaxlib 0.10.2 and 0.11.0 get some sums of products wrong in this.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from maps import noise_for

import diffkm_jax as dk
from diffkm_jax import estimators as es

RNG = np.random.default_rng(0)
LANES, ROWS = 700, 16


def assert_lanes_are_the_loop(f, lanes):
    mapped, looped = jax.jit(jax.vmap(f))(lanes), jax.lax.map(jax.jit(f), lanes)
    for found, expected in zip(*map(jax.tree.leaves, (mapped, looped)), strict=True):
        bound = 1e-4 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=bound)


@pytest.mark.parametrize("name", ["softmax", "reinmax", "reinmax_rao", "reinmax_cv"])
def test_the_gradient_of_a_map_at_shared_logits(name):
    logits = jnp.asarray(RNG.normal(size=(ROWS, 8)), "float32")
    noise = noise_for(name, logits.shape, dtype=np.float32)
    f = partial(getattr(dk, name), **noise)
    cotangents = jnp.asarray(RNG.normal(size=(LANES, ROWS, 8)), "float32")

    def pulled(g):
        return jax.vjp(f, logits)[1](g)[0]

    def pulled_along(g):
        return pulled(jnp.broadcast_to(g, (ROWS, 8)))

    assert_lanes_are_the_loop(pulled, cotangents)
    assert_lanes_are_the_loop(pulled_along, cotangents[:, :1])


def test_estimates_of_a_joint_cost_and_their_report():
    logits = jnp.asarray(RNG.normal(size=(ROWS, 8)), "float32")
    slope = jnp.arange(8, dtype="float32") / 8

    def cost(rows):
        return jnp.sum(rows @ slope) ** 2

    noise = jnp.asarray(RNG.gumbel(size=(LANES, 1, ROWS, 8)), "float32")

    def estimate(g):
        return jax.grad(lambda z: es.reinmax().expect(cost, z, g))(logits)

    assert_lanes_are_the_loop(estimate, noise)
    for num_samples in (300, 400, 2000):
        report = dk.evaluate(
            jax.random.key(0),
            cost,
            logits,
            es.reinmax(),
            reference=es.rloo(),
            num_samples=num_samples,
        )
        assert jnp.isfinite(report.bias).all()


def test_a_loss_by_cosine_at_shared_centroids():
    centroids = jnp.asarray(RNG.normal(size=(16, 64)), "float32")
    points = jnp.asarray(RNG.normal(size=(40, 300, 64)), "float32")

    def loss(x, c):
        return dk.soft_kmeans_loss(x, c, temperature=0.5, distance=dk.cosine)

    def both(x):
        return jax.value_and_grad(loss, (0, 1))(x, centroids)

    assert_lanes_are_the_loop(both, points)
