"""Which points move a centroid: the derivative of a fit in weights, against refits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import diffkm_jax as dk

pytestmark = pytest.mark.slow

POINTS = jnp.asarray(load_digits().data[:300] / 16, "float64")
K = 4
SOFT = 0.25


@jax.jit
def influence(points, start, temperature=None):
    """How the centroids move with the weight of each point, [k, d, n].

    Source: Koh & Liang 2017 (influence functions), https://arxiv.org/abs/1703.04730
    """

    def centroids(weights):
        options = {"weights": weights, "temperature": temperature, "max_steps": 2000}
        return dk.fit(points, start, tol=0.0, **options).centroids

    return jax.jacrev(centroids)(jnp.ones(len(points), points.dtype))


@jax.jit
def removals(points, centroids, rows, temperature=None, *, amount=1.0):
    """Refits without one of some points each, or with that amount of weight less.

    Returns the moves, [m, k, d], and how many labels changed, [m], that of the point
    itself aside: once it is removed, nothing depends on it.
    """
    labels = dk.assign(points, centroids)
    ones = jnp.ones(len(points), points.dtype)

    def without(row):
        weights = ones.at[row].add(-amount)
        options = {"weights": weights, "temperature": temperature, "max_steps": 2000}
        fitted = dk.fit(points, centroids, tol=0.0, **options)
        changed = (fitted.labels != labels).at[row].set(False)
        return fitted.centroids - centroids, jnp.sum(changed)

    return jax.lax.map(without, rows)


def relative_errors(found, true):
    """Of each of several moves, [m]."""
    norm = partial(np.linalg.norm, axis=(1, 2))
    return norm(found - true) / norm(true)


@pytest.fixture(scope="module")
def resting():
    """Centroids at rest, hard and soft."""
    first = dk.fit(POINTS, POINTS[:K], tol=0.0).centroids
    soft = dk.fit(POINTS, first, temperature=SOFT, tol=0.0, max_steps=2000)
    assert int(soft.status) == dk.Status.CONVERGED
    return {None: first, SOFT: soft.centroids}


def test_the_influence_of_a_point_on_a_mean_is_its_formula(resting):
    """(x − c) / n on its own centroid; with w less weight c moves w(c − x)/(n − w)."""
    centroids = resting[None]
    labels = np.asarray(dk.assign(POINTS, centroids))
    counts = np.bincount(labels, minlength=K)
    rows = np.arange(0, 300, 10)
    own = np.arange(K)[:, None] == labels[rows]
    away = np.asarray(POINTS[rows] - centroids[labels[rows]]).T
    expected = own[:, None] * away / counts[labels[rows]]
    found = np.asarray(influence(POINTS, centroids))[..., rows]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    for amount in (1.0, 1e-3):
        moves, changed = removals(POINTS, centroids, jnp.asarray(rows), amount=amount)
        same = np.asarray(changed) == 0
        assert same.mean() > 0.5
        n = counts[labels[rows]]
        exact = np.moveaxis(-amount * found * n / (n - amount), -1, 0)
        np.testing.assert_allclose(
            np.asarray(moves)[same], exact[same], rtol=0, atol=1e-9 * amount
        )


def test_the_influence_on_soft_centroids_is_the_refit_to_first_order(resting):
    centroids = resting[SOFT]
    rows = np.arange(0, 300, 30)
    found = np.asarray(influence(POINTS, centroids, SOFT))[..., rows]
    found = np.moveaxis(found, -1, 0)
    errors = {}
    for amount in (1.0, 1e-2, 1e-4):
        moves, _ = removals(POINTS, centroids, jnp.asarray(rows), SOFT, amount=amount)
        true = np.asarray(moves)
        errors[amount] = relative_errors(-amount * found, true)
        if amount == 1:
            assert np.corrcoef(-found.ravel(), true.ravel())[0, 1] > 0.99
    # The error of a first order is in proportion to the step.
    np.testing.assert_allclose(errors[1e-2] / errors[1e-4], 100, rtol=0.1)
    assert errors[1e-4].max() < 1e-3
