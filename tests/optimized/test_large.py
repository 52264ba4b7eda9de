"""Shapes whose arithmetic takes long unless it is optimized."""

import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk


def test_shapes_past_the_budget_of_a_block_have_a_loss_too():
    wide = jnp.ones((4, 600_000), jnp.float32)
    assert dk.kmeans_loss(wide, wide[:2]) == 0
    x = jnp.asarray(np.random.default_rng(0).normal(size=(900, 800)))
    loss = dk.kmeans_loss(x, x[:700], distance=dk.manhattan)
    np.testing.assert_allclose(
        loss, dk.pairwise(x, x[:700], distance=dk.manhattan).min(1).sum(), rtol=1e-12
    )
