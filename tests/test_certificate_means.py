"""Certificates of every distance that has means, against what they are by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from means import DISTANCES, NAMES, TEMPERATURES, C, W, X, by_hand

import diffkm_jax as dk

named = pytest.mark.parametrize("name", NAMES)


def eigenvalues(loss, c):
    """Of the Hessian in the centroids, but for directions along which it is flat."""
    values = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(c).reshape(c.size, c.size))
    return values[np.abs(values) > 1e-9 * values[-1]]


@named
def test_a_hard_certificate(name):
    distance = DISTANCES[name]
    c = dk.fit(X, C, weights=W, distance=distance, tol=0.0).centroids
    found = dk.certificate(X, c, weights=W, distance=distance)
    assert found.valid
    assert found.num_undecided == 0
    costs = np.sort(by_hand(name, X, np.asarray(c)), axis=1)
    np.testing.assert_allclose(found.margin, costs[:, 1] - costs[:, 0], rtol=1e-9)
    loss = partial(dk.kmeans_loss, X, weights=W, distance=distance)
    smallest = eigenvalues(loss, c)[0]
    np.testing.assert_allclose(found.smallest_eigenvalue, smallest, rtol=1e-9)
    np.testing.assert_allclose(found.gradient_norm, 0, atol=1e-10)
    np.testing.assert_allclose(found.distance, 0, atol=1e-10)
    # A start is not at rest, unless its labels are those of its means.
    start = dk.certificate(X, C, weights=W, distance=distance)
    labels = dk.assign(X, C, distance=distance)
    state, _ = dk.update(X, dk.init(C), weights=W, distance=distance)
    rests = (dk.assign(X, state.centroids, distance=distance) == labels).all()
    assert not (start.valid and not rests)
    gradient = jax.grad(loss)(jnp.asarray(C))
    np.testing.assert_allclose(start.gradient_norm, jnp.linalg.norm(gradient))


@pytest.mark.parametrize("name", ["squared_euclidean", "mahalanobis", "cosine"])
def test_no_label_changes_within_the_radius(name):
    distance = DISTANCES[name]
    c = dk.fit(X, C, distance=distance, tol=0.0).centroids
    radius = dk.certificate(X, c, distance=distance).label_radius
    assert radius > 0
    moves = jax.random.normal(jax.random.key(0), (200, *c.shape))
    moves *= 0.999 * radius / jnp.linalg.norm(moves, axis=2, keepdims=True)
    assign = partial(dk.assign, X, distance=distance)
    labels = jax.jit(jax.vmap(lambda m: assign(c + m)))(moves)
    assert (labels == assign(c)[None]).all()


@pytest.mark.parametrize("name", ["kl_divergence", "itakura_saito", "bregman"])
def test_a_radius_that_is_not_known_is_nan_and_a_tie_is_zero(name):
    distance = DISTANCES[name]
    c = dk.fit(X, C, distance=distance, tol=0.0).centroids
    found = dk.certificate(X, c, distance=distance)
    assert jnp.isnan(found.label_radius)
    assert jnp.isnan(found.point_radius)
    tied = dk.certificate(X, c.at[1].set(c[0]), distance=distance)
    assert tied.num_undecided > 0
    assert tied.label_radius == 0
    assert not tied.valid


@named
def test_a_soft_certificate_has_the_smallest_eigenvalue(name):
    distance, t = DISTANCES[name], jnp.asarray(TEMPERATURES[name])
    fit = partial(dk.fit, X, C[:3], distance=distance, temperature=t)
    c = fit(tol=0.0, max_steps=3000).centroids
    found = dk.certificate(X, c, distance=distance, temperature=t)
    loss = partial(dk.soft_kmeans_loss, X, distance=distance, temperature=t)
    smallest = eigenvalues(loss, c)[0]
    np.testing.assert_allclose(found.smallest_eigenvalue, smallest, rtol=1e-6)
    assert found.valid == (smallest > float(found.eigenvalue_error))


@named
def test_centroids_merge_above_the_critical_temperature_and_part_below(name):
    distance = DISTANCES[name]
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    mean = (unit if name == "cosine" else X).mean(0)
    critical = dk.certificate(X, mean[None], distance=distance).critical_temperature
    start = mean + 1e-3 * np.random.default_rng(0).normal(size=(2, 3))

    @jax.jit
    def apart(t):
        fit = dk.fit(
            X, start, distance=distance, temperature=t, tol=0.0, max_steps=3000
        )
        return jnp.linalg.norm(fit.centroids[0] - fit.centroids[1])

    assert apart(1.03 * critical) < 1e-8
    assert apart(0.97 * critical) > 1e-2
