"""Labels in float32, far from the origin."""

import jax
import numpy as np
import pytest

import diffkm_jax as dk


@pytest.mark.parametrize("k", [5, 40, 100])
def test_labels_of_euclidean_are_those_of_its_square_and_float64s_far_away(k):
    rng = np.random.default_rng(k)
    centers = rng.normal(size=(k, 8))
    x = np.float32(1e4 + rng.normal(size=(20_000, 8)))
    c = np.float32(1e4 + centers)
    found = np.asarray(dk.assign(x, c, distance=dk.euclidean))
    np.testing.assert_array_equal(found, dk.assign(x, c))
    with jax.enable_x64(True):
        right = dk.assign(np.float64(x), np.float64(c), distance=dk.euclidean)
    assert np.mean(found == right) >= 0.9999
    loss = dk.kmeans_loss(x, c, distance=dk.euclidean)
    e = np.float64(x) - np.float64(c)[np.asarray(right)]
    np.testing.assert_allclose(loss, np.linalg.norm(e, axis=1).sum(), rtol=1e-6)


def test_labels_of_manhattan_are_float64s():
    rng = np.random.default_rng(0)
    x, c = (
        np.float32(rng.normal(size=(20_000, 40))),
        np.float32(rng.normal(size=(60, 40))),
    )
    found = np.asarray(dk.assign(x, c, distance=dk.manhattan))
    with jax.enable_x64(True):
        right = dk.assign(np.float64(x), np.float64(c), distance=dk.manhattan)
    assert np.mean(found == right) >= 0.9999
