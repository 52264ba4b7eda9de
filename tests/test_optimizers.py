"""Newton and MacQueen: exact steps, composition with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.cluster import MiniBatchKMeans

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(60, 3)))
C = jnp.asarray(RNG.normal(size=(4, 3))).at[2].add(100)
STATS = dk.statistics(X, C)


def step(optimizer, stats=STATS, c=C):
    state = optimizer.init(c)
    updates, state = optimizer.update(-2 * stats.shifts, state, c, counts=stats.counts)
    return optax.apply_updates(c, updates), state


def test_newton_steps_to_the_means_and_leaves_empty_clusters():
    labels = np.asarray(dk.assign(X, C))
    moved, _ = step(dk.newton())
    for j in (0, 1, 3):
        np.testing.assert_allclose(moved[j], X[labels == j].mean(0), rtol=1e-12)
    np.testing.assert_array_equal(moved[2], C[2])


def test_a_newton_step_is_the_solution_of_the_newton_system():
    flat = C.ravel()
    gradient = jax.grad(lambda c: dk.kmeans_loss(X, c.reshape(C.shape)))(flat)
    hessian = jax.hessian(lambda c: dk.kmeans_loss(X, c.reshape(C.shape)))(flat)
    solution = -jnp.linalg.lstsq(hessian, gradient)[0]
    moved, _ = step(dk.newton())
    np.testing.assert_allclose(moved.ravel() - flat, solution, atol=1e-10)


def test_macqueen_is_the_running_mean_of_all_points_seen():
    c, optimizer = C, dk.macqueen()
    state = dk.init(c, optimizer=optimizer)
    sums, counts = np.zeros((4, 3)), np.zeros(4)
    for batch in np.split(np.asarray(X), 6):
        labels = np.asarray(dk.assign(batch, state.centroids))
        state, _ = dk.update(batch, state, optimizer=optimizer)
        np.add.at(sums, labels, batch)
        np.add.at(counts, labels, 1)
    seen = counts > 0
    np.testing.assert_array_equal(state.opt_state.counts, counts)
    np.testing.assert_allclose(
        state.centroids[seen], (sums / np.maximum(counts, 1)[:, None])[seen], rtol=1e-10
    )
    np.testing.assert_array_equal(state.centroids[~seen], C[~seen])


def test_macqueen_is_the_partial_fit_of_scikit_learn():
    start = np.asarray(C.at[2].add(-100))
    theirs = MiniBatchKMeans(4, init=start, n_init=1, reassignment_ratio=0)
    state = dk.init(start, optimizer=dk.macqueen())
    for batch in np.split(np.asarray(X), 6):
        theirs.partial_fit(batch)
        state, _ = dk.update(batch, state, optimizer=dk.macqueen())
    np.testing.assert_allclose(state.centroids, theirs.cluster_centers_, rtol=1e-6)


@pytest.mark.parametrize("make", [dk.newton, dk.macqueen])
def test_they_are_the_same_object_at_every_call(make):
    assert make() is make()


@pytest.mark.parametrize("make", [dk.newton, dk.macqueen])
def test_zero_counts_give_no_nan_and_no_step(make):
    zeros = jax.tree.map(jnp.zeros_like, STATS)
    np.testing.assert_array_equal(step(make(), zeros)[0], C)


@pytest.mark.parametrize("make", [dk.newton, dk.macqueen])
def test_a_step_is_differentiable_in_gradient_and_counts(make):
    def moved(shifts, counts):
        return jnp.sum(step(make(), STATS._replace(shifts=shifts, counts=counts))[0])

    in_shifts, in_counts = jax.grad(moved, (0, 1))(STATS.shifts, STATS.counts)
    n = np.asarray(STATS.counts)[:, None]
    inverse = np.divide(1, n, where=n > 0, out=np.zeros_like(n))
    np.testing.assert_allclose(in_shifts, np.broadcast_to(inverse, C.shape))
    expected = -(np.asarray(STATS.shifts) * inverse**2).sum(1)
    np.testing.assert_allclose(in_counts, expected, rtol=1e-10)


def test_they_chain_with_optax():
    half = optax.chain(dk.newton(), optax.scale(0.5))
    moved, _ = step(half)
    np.testing.assert_allclose(moved - C, 0.5 * (step(dk.newton())[0] - C), rtol=1e-12)


def test_they_work_on_one_part_of_a_tree_of_parameters():
    params = {"encoder": jnp.ones(3), "centroids": C}
    optimizer = optax.partition(
        {"gradient": optax.sgd(0.1), "newton": dk.newton()},
        {"encoder": "gradient", "centroids": "newton"},
    )
    grads = {"encoder": jnp.ones(3), "centroids": -2 * STATS.shifts}
    updates, _ = optimizer.update(
        grads, optimizer.init(params), params, counts=STATS.counts
    )
    np.testing.assert_allclose(updates["encoder"], -0.1 * jnp.ones(3))
    np.testing.assert_allclose(C + updates["centroids"], step(dk.newton())[0])


def test_masks_and_wrappers_of_optax_keep_the_steps_of_newton():
    wrapped = optax.apply_if_finite(optax.masked(dk.newton(), mask=True), 3)
    scheduled = optax.chain(wrapped, optax.scale_by_schedule(lambda _: 1.0))
    result = dk.fit(X, C, optimizer=scheduled, max_steps=3)
    expected = dk.fit(X, C, max_steps=3).centroids
    np.testing.assert_allclose(result.centroids, expected, rtol=1e-12)


def test_a_mask_freezes_centroids():
    frozen = jnp.arange(4) == 0
    hold = optax.stateless(lambda u, _: jnp.where(frozen[:, None], 0, u))
    result = dk.fit(X, C, optimizer=optax.chain(dk.newton(), hold))
    np.testing.assert_array_equal(result.centroids[0], C[0])
    assert (result.centroids[1] != C[1]).all()


def test_newton_without_counts_names_the_distance():
    with pytest.raises(ValueError, match=r"needs counts.*squared_euclidean"):
        dk.newton().update(C, dk.newton().init(C), C)
