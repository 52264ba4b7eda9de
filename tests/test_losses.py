"""Losses: what they tend to, the envelope, closed-over arrays, straight-through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(41, 3)))
C = jnp.asarray(RNG.normal(size=(5, 3)))
W = jnp.asarray(RNG.uniform(0.2, 2, 41))
OTHERS = [dk.euclidean, dk.manhattan, dk.cosine, dk.mahalanobis(jnp.eye(3) * 2)]


def test_the_losses_are_those_of_the_statistics():
    assert dk.kmeans_loss(X, C, weights=W) == dk.statistics(X, C, weights=W).loss
    soft = dk.soft_kmeans_loss(X, C, weights=W, temperature=0.5)
    assert soft == dk.statistics(X, C, weights=W, temperature=0.5).loss


def test_the_soft_loss_tends_to_the_hard_one_from_below():
    hard = dk.kmeans_loss(X, C)
    gaps = [hard - dk.soft_kmeans_loss(X, C, temperature=t) for t in (1, 0.1, 0.01)]
    bounds = [t * len(X) * np.log(len(C)) for t in (1, 0.1, 0.01)]
    assert all(0 <= gap <= bound for gap, bound in zip(gaps, bounds, strict=True))
    assert gaps[0] > gaps[1] > gaps[2]
    for t in (1e-3, 1e3):
        value, gradient = jax.value_and_grad(
            lambda c, t=t: dk.soft_kmeans_loss(X, c, temperature=t)
        )(C)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


def test_the_gradient_in_the_temperature_is_minus_the_entropy():
    def f(t):
        return dk.soft_kmeans_loss(X, C, temperature=t, weights=W)

    r = jax.nn.softmax(-dk.pairwise(X, C) / 0.7, axis=1)
    entropy = -jnp.sum(W * jnp.sum(r * jnp.log(r), axis=1))
    np.testing.assert_allclose(jax.grad(f)(0.7), -entropy, rtol=1e-12)


def test_the_hard_gradient_is_two_counts_times_the_way_from_the_mean():
    stats = dk.statistics(X, C)
    labels = np.asarray(dk.assign(X, C))
    means = np.stack([np.asarray(X)[labels == j].mean(0) for j in range(5)])
    expected = 2 * stats.counts[:, None] * (C - means)
    np.testing.assert_allclose(jax.grad(dk.kmeans_loss, 1)(X, C), expected, rtol=1e-10)


@pytest.mark.parametrize("distance", OTHERS)
@pytest.mark.parametrize("temperature", [None, 0.6])
def test_other_distances_equal_dense_autodiff_in_every_mode(distance, temperature):
    def dense(x, c, w):
        d = dk.pairwise(x, c, distance=distance)
        if temperature is None:
            own = jnp.argmin(d, axis=1)
            return jnp.sum(w * jnp.take_along_axis(d, own[:, None], 1)[:, 0])
        return -temperature * jnp.sum(w * jax.nn.logsumexp(-d / temperature, axis=1))

    def ours(x, c, w):
        options = {"weights": w, "distance": distance, "block_size": 8}
        if temperature is None:
            return dk.kmeans_loss(x, c, **options)
        return dk.soft_kmeans_loss(x, c, temperature=temperature, **options)

    every = (0, 1, 2)
    for mode in (jax.value_and_grad, lambda f, i: jax.jacfwd(f, i)):
        found, expected = (jax.jit(mode(f, every))(X, C, W) for f in (ours, dense))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    hessians = [jax.jit(jax.hessian(f, 1))(X, C, W) for f in (ours, dense)]
    np.testing.assert_allclose(*hessians, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("temperature", [None, 0.6])
def test_arrays_that_a_distance_closes_over_have_gradients(temperature):
    def loss(precision):
        distance = dk.mahalanobis(precision)
        if temperature is None:
            return dk.kmeans_loss(X, C, distance=distance)
        return dk.soft_kmeans_loss(X, C, distance=distance, temperature=temperature)

    precision = jnp.diag(jnp.array([1.0, 2.0, 0.5]))
    step = 1e-6 * jnp.eye(3)
    central = (loss(precision + step) - loss(precision - step)) / 2e-6
    gradient = jax.jit(jax.grad(loss))(precision)
    np.testing.assert_allclose(jnp.trace(gradient), central, rtol=1e-7)


@pytest.mark.parametrize("temperature", [None, 0.6])
def test_other_distances_ignore_inactive_clusters_and_inert_rows(temperature):
    active = jnp.array([True, False, True, True, False])
    c = C.at[1].set(jnp.nan)
    x, w = X.at[0].set(jnp.nan), W.at[0].set(0)

    def f(x, c, w, **options):
        options |= {"weights": w, "distance": dk.manhattan, "block_size": 8}
        if temperature is None:
            return dk.kmeans_loss(x, c, **options)
        return dk.soft_kmeans_loss(x, c, temperature=temperature, **options)

    value, gradient = jax.value_and_grad(f, 1)(x, c, w, active=active)
    few, expected = jax.value_and_grad(f, 1)(X[1:], C[active], W[1:])
    np.testing.assert_allclose(value, few, rtol=1e-12)
    np.testing.assert_allclose(gradient[active], expected, rtol=1e-10)
    np.testing.assert_array_equal(gradient[~active], jnp.zeros((2, 3)))


def test_assigned_loss_with_hard_is_the_kmeans_loss_and_has_its_gradient():
    for options in ({}, {"distance": dk.manhattan}, {"weights": W}):
        found = jax.value_and_grad(dk.assigned_loss, (0, 1))(X, C, dk.hard, **options)
        expected = jax.value_and_grad(dk.kmeans_loss, (0, 1))(X, C, **options)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_assigned_loss_with_softmax_is_the_free_energy_plus_the_entropy():
    r = dk.softmax(-dk.pairwise(X, C), tau=0.6)
    entropy = -0.6 * jnp.sum(r * jnp.log(r))
    found = dk.assigned_loss(X, C, dk.softmax, temperature=0.6)
    free = dk.soft_kmeans_loss(X, C, temperature=0.6)
    np.testing.assert_allclose(found, free + entropy, rtol=1e-12)


def test_straight_through_on_inertia_has_the_right_value_and_a_wrong_gradient():
    def biased(c):
        return dk.assigned_loss(X, c, dk.straight_through)

    value, gradient = jax.value_and_grad(biased)(C)
    np.testing.assert_allclose(value, dk.kmeans_loss(X, C), rtol=1e-12)
    exact = jax.grad(dk.kmeans_loss, 1)(X, C)
    assert jnp.linalg.norm(gradient - exact) > 0.1 * jnp.linalg.norm(exact)


def test_an_assignment_sees_inactive_clusters_as_minus_infinity():
    active = jnp.array([True, False, True, True, True])
    c = C.at[1].set(jnp.nan)
    for assignment in (dk.hard, dk.softmax, dk.straight_through):
        value, gradient = jax.value_and_grad(dk.assigned_loss, 1)(
            X, c, assignment, active=active
        )
        few = dk.assigned_loss(X, C[active], assignment)
        np.testing.assert_allclose(value, few, rtol=1e-12)
        assert jnp.isfinite(gradient).all()


def test_between_ties_the_loss_is_exactly_quadratic():
    stats = dk.statistics(X, C)
    gradient, direction = -2 * stats.shifts, jnp.cos(C)
    labels = dk.assign(X, C)
    for step in (1e-3, -1e-3):
        moved = C + step * direction
        assert (dk.assign(X, moved) == labels).all()
        curvature = jnp.sum(stats.counts[:, None] * direction**2)
        expected = stats.loss + step * jnp.sum(gradient * direction)
        expected += step**2 * curvature
        np.testing.assert_allclose(dk.kmeans_loss(X, moved), expected, rtol=1e-14)


@pytest.mark.parametrize("k", [5, 40])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_centroid_that_is_not_finite_makes_the_loss_nan(k, bad):
    for row in (0, k - 2):
        c = X[:k].at[row, 0].set(bad)
        assert jnp.isnan(dk.kmeans_loss(X, c))
        assert jnp.isnan(dk.soft_kmeans_loss(X, c, temperature=1.0))
        assert dk.fit(X, c).flags & dk.Status.NON_FINITE


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_huge_centroid_takes_no_point_from_the_others(dtype):
    x, huge = X.astype(dtype), 1e25 if dtype == jnp.float32 else 1e160
    for row in (0, 3):
        c = x[:6].at[row].set(huge)
        few = dk.kmeans_loss(x, jnp.delete(x[:6], row, axis=0))
        np.testing.assert_allclose(dk.kmeans_loss(x, c), few, rtol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_second_derivatives_inside_a_loop_are_those_outside(temperature):
    def loss(c):
        if temperature is None:
            return dk.kmeans_loss(X, c, block_size=8) ** 2
        return dk.soft_kmeans_loss(X, c, temperature=temperature, block_size=8) ** 2

    def looped(c):
        total = jnp.zeros((), c.dtype)
        return jax.lax.scan(lambda s, c: (s + loss(c), None), total, c)[0]

    def second(f):
        return jax.grad(lambda c: jnp.sum(jax.grad(f)(c) ** 2))(c)

    c = jnp.stack([C, 2 * C])
    expected = second(lambda c: loss(c[0]) + loss(c[1]))
    np.testing.assert_allclose(second(looped), expected, rtol=1e-11)
