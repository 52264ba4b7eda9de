"""How often a program multiplies and goes over the points, as XLA optimizes it."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import diffkm_jax as dk

# A block is 16384 points: the first takes what remains, and a loop the others.
POINTS, CENTROIDS = (40_000, 16), (32, 16)


def operations(f):
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (POINTS, CENTROIDS)]
    text = jax.jit(f).lower(*args).compile().as_text()
    return Counter(re.findall(r" (dot|while|scatter)\(", text))


def soft(f):
    return partial(f, temperature=1.0)


@pytest.mark.parametrize(
    ("f", "products", "scatters"),
    [
        (dk.statistics, 1, 2),
        (dk.assign, 1, 0),
        (jax.value_and_grad(dk.kmeans_loss, 1), 1, 1),
        (soft(dk.statistics), 2, 0),
        (jax.value_and_grad(soft(dk.soft_kmeans_loss), 1), 2, 0),
    ],
    ids=["statistics", "assign", "gradient", "soft statistics", "soft gradient"],
)
def test_a_pass_goes_over_the_points_once(f, products, scatters):
    found = operations(f)
    assert found["while"] == 1
    # Of the first block, and of those in the loop.
    assert found["dot"] == 2 * products
    assert found["scatter"] == 2 * scatters


def test_a_fit_passes_once_a_step_and_once_at_the_end():
    found = operations(dk.fit)
    # The steps and the pass in each, the last pass, the mean and the variance.
    assert found["while"] == 5
    assert found["dot"] == 4
