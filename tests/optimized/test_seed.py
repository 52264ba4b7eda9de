"""The program diffkm was asked for from: gradient descent through an argmin."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import diffkm_jax as dk

NUM_POINTS, DIMENSIONS, CLUSTERS, BATCH, RATE, STEPS = 1000, 200, 20, 100, 1e-5, 4001


def setting():
    rng = np.random.default_rng(0)
    points = rng.random((NUM_POINTS, DIMENSIONS))
    centroids = points[rng.choice(NUM_POINTS, CLUSTERS)]
    return points, centroids, rng.integers(0, NUM_POINTS, (STEPS, BATCH))


def by_torch(points, centroids, batches):
    """Descends by autograd through the distances that an argmin has picked."""
    points = torch.tensor(points)
    centroids = torch.tensor(centroids, requires_grad=True)
    losses = []
    for batch in batches:
        squared = ((points[batch][:, None] - centroids[None]) ** 2).sum(2)
        label = squared.argmin(1)
        loss = squared[torch.arange(len(batch)), label].sum()
        (gradient,) = torch.autograd.grad(loss, centroids)
        with torch.no_grad():
            centroids -= RATE * gradient
        losses.append(loss.item())
    return np.array(losses), centroids.detach().numpy()


def test_the_seeds_loop_has_the_same_losses_step_by_step():
    points, centroids, batches = setting()
    optimizer = optax.sgd(RATE)

    @jax.jit
    def by_diffkm(points, centroids, batches):
        def step(state, batch):
            state, stats = dk.update(points[batch], state, optimizer=optimizer)
            return state, stats.loss

        return jax.lax.scan(step, dk.init(centroids, optimizer=optimizer), batches)

    state, losses = by_diffkm(points, centroids, batches)
    expected, final = by_torch(points, centroids, batches)
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    np.testing.assert_allclose(state.centroids, final, rtol=1e-11)
    assert losses[-100:].mean() < losses[:100].mean()


def digits():
    data = load_digits().data
    rng = np.random.default_rng(0)
    start = data[rng.choice(len(data), 10, replace=False)]
    return data, start + 1e-3 * rng.normal(size=start.shape)


def test_newton_is_scikit_learns_lloyd_on_the_digits():
    data, start = digits()
    theirs = KMeans(10, init=start, n_init=1, algorithm="lloyd").fit(data)
    ours = dk.fit(data, start)
    assert int(ours.num_steps) == theirs.n_iter_
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-6)


def test_gradient_descent_reaches_scikit_learns_inertia_in_more_steps():
    data, start = digits()
    newton = dk.fit(data, start)
    descent = dk.fit(data, start, optimizer=optax.sgd(1 / 1000), max_steps=2000)
    assert descent.flags == dk.Status.CONVERGED
    np.testing.assert_allclose(descent.loss, newton.loss, rtol=1e-2)
    assert descent.num_steps > newton.num_steps


def test_the_hessian_is_twice_the_counts_so_a_newton_step_is_lloyds():
    data, start = digits()
    gradient = jax.grad(dk.kmeans_loss, 1)(data, start)
    _, curvature = jax.jvp(
        lambda c: jax.grad(dk.kmeans_loss, 1)(data, c),
        (jnp.asarray(start),),
        (jnp.ones_like(start),),
    )
    counts = dk.statistics(data, start).counts
    np.testing.assert_array_equal(
        curvature, np.broadcast_to(2 * counts[:, None], start.shape)
    )
    newton = start - gradient / curvature
    lloyd = KMeans(10, init=start, n_init=1, max_iter=2, tol=1e30, algorithm="lloyd")
    np.testing.assert_allclose(newton, lloyd.fit(data).cluster_centers_, atol=1e-10)


def test_between_ties_the_loss_along_a_line_is_a_parabola_and_kinked_across_them():
    data, start = digits()
    direction = np.random.default_rng(1).normal(size=start.shape)

    def along(t):
        return dk.kmeans_loss(data, start + t * direction)

    ts = np.linspace(0, 0.02, 2001)
    labels = np.asarray(
        jax.lax.map(lambda t: dk.assign(data, start + t * direction), jnp.asarray(ts))
    )
    changes = (labels[1:] != labels[:-1]).any(1)
    assert changes.any()
    slopes = np.asarray(jax.lax.map(jax.grad(along), jnp.asarray(ts)))
    quiet = ~(changes[1:] | changes[:-1])
    bend = np.diff(slopes, 2)
    # A slope that is linear between ties, and jumps down where a point changes sides.
    assert quiet.sum() > 1000
    assert np.abs(bend[quiet]).max() < 1e-7 * np.abs(slopes).max()
    jumps = np.diff(slopes)[changes] - np.median(np.diff(slopes)[~changes])
    assert jumps.max() < 1e-6 * np.abs(slopes).max()
    assert jumps.min() < -1e-5 * np.abs(slopes).max()
