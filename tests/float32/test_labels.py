"""Labels in float32 are those of float64, whatever the distance, scale and spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkm_jax as dk

N, D, K = 4000, 8, 30


def kullback_leibler(x, c):
    return (x * np.log(x / c) - x + c).sum(-1)


def itakura_saito(x, c):
    return (x / c - np.log(x / c) - 1).sum(-1)


def squared(x, c):
    return ((x - c) ** 2).sum(-1)


def angle(x, c):
    x, c = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, c))
    return squared(x, c) / 2


def wrong(distance, by_hand, x, c):
    """The share of labels that are not those of float64, for the same float32 data."""
    x, c = x.astype(np.float32), c.astype(np.float32)
    labels = dk.assign(jnp.asarray(x), jnp.asarray(c), distance=distance)
    wide, centroids = x.astype(np.longdouble), c.astype(np.longdouble)
    costs = np.stack([by_hand(wide, row) for row in centroids], axis=1)
    return np.mean(costs.argmin(1) != np.asarray(labels))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1, 2.0])
def test_divergences_of_positive_rows(spread, scale):
    rng = np.random.default_rng(0)
    base = scale * np.exp(rng.normal(size=D))
    c = base * np.exp(spread * rng.normal(size=(K, D)))
    x = c[rng.integers(K, size=N)] * np.exp(spread * rng.normal(size=(N, D)))
    assert wrong(dk.kl_divergence, kullback_leibler, x, c) <= 1e-4
    assert wrong(dk.itakura_saito, itakura_saito, x, c) <= 1e-4


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_pairs_of_clusters_over_a_wide_range_of_a_coordinate(ratio, spread):
    rng = np.random.default_rng(1)
    level = np.exp(rng.uniform(0, np.log(ratio), (K // 2, D)))
    c = np.repeat(level, 2, axis=0) * np.exp(spread * rng.normal(size=(K, D)))
    x = c[rng.integers(K, size=N)] * np.exp(spread * rng.normal(size=(N, D)))
    assert wrong(dk.kl_divergence, kullback_leibler, x, c) <= 1e-4
    assert wrong(dk.itakura_saito, itakura_saito, x, c) <= 1e-4


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_mahalanobis_far_away(offset, scale):
    rng = np.random.default_rng(2)
    c = (offset + rng.normal(size=(K, D))) * scale
    x = c[rng.integers(K, size=N)] + 0.7 * scale * rng.normal(size=(N, D))
    root = rng.normal(size=(D, D))
    precision = ((root @ root.T / D + 0.05 * np.eye(D)) / scale**2).astype(np.float32)

    def by_hand(x, c):
        e = x - c
        return ((e @ precision.astype(np.longdouble)) * e).sum(-1)

    distance = dk.mahalanobis(jnp.asarray(precision))
    assert wrong(distance, by_hand, x, c) <= 1e-4


@pytest.mark.parametrize("spread", [1e-3, 1e-1])
def test_nearly_parallel_embeddings(spread):
    rng = np.random.default_rng(3)
    d = 768
    mean = rng.normal(size=d) / np.sqrt(d)
    c = mean + spread * rng.normal(size=(K, d)) / np.sqrt(d)
    x = c[rng.integers(K, size=1000)] + spread * rng.normal(size=(1000, d)) / np.sqrt(d)
    assert wrong(dk.cosine, angle, x * rng.uniform(0.1, 20, (1000, 1)), c) <= 1e-4


@pytest.mark.parametrize("distance", [dk.kl_divergence, dk.itakura_saito, dk.cosine])
@pytest.mark.parametrize("spread", [1e-2, 1.0])
def test_soft_losses_and_gradients(distance, spread):
    rng = np.random.default_rng(4)
    c = np.exp(rng.normal(size=D)) * np.exp(spread * rng.normal(size=(K, D)))
    x = c[rng.integers(K, size=500)] * np.exp(spread * rng.normal(size=(500, D)))
    t = np.float32(spread**2 * D)

    def found(dtype):
        def loss(x, c, t):
            return dk.soft_kmeans_loss(x, c, temperature=t, distance=distance)

        args = [jnp.asarray(a.astype(np.float32), dtype) for a in (x, c, t)]
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*args)

    narrow = jax.tree.leaves(found(jnp.float32))
    with jax.enable_x64(True):
        wide = jax.tree.leaves(found(jnp.float64))
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())
