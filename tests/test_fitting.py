"""Fits: scikit-learn's steps, the stop rule, temperatures, going on, status."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import DIGITS, C, X, lloyd, start, status

import diffkm_jax as dk


@pytest.mark.parametrize("tol", [0.0, 1e-4])
@pytest.mark.parametrize("k", [3, 10])
@pytest.mark.parametrize("seed", range(4))
def test_newton_is_scikit_learns_lloyd_step_for_step(seed, k, tol):
    c = start(seed, k)
    theirs, ours = lloyd(DIGITS, c, tol), dk.fit(DIGITS, c, tol=tol)
    assert int(ours.num_steps) == theirs.n_iter_
    assert status(ours) == dk.Status.CONVERGED
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-12)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-10)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)


@pytest.mark.parametrize("tol", [0.0, 1e-4])
def test_float32_far_from_the_origin_takes_the_same_steps(tol):
    x, c = (DIGITS + 1e3).astype(np.float32), (start(5) + 1e3).astype(np.float32)
    theirs, ours = lloyd(x, c, tol), dk.fit(x, c, tol=tol)
    assert int(ours.num_steps) == theirs.n_iter_
    assert status(ours) == dk.Status.CONVERGED
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-5)


def test_weights_are_scikit_learns_but_for_the_tolerance():
    w = np.random.default_rng(1).uniform(0.1, 2, len(DIGITS))
    theirs = lloyd(DIGITS, start(1), 0.0, weights=w)
    ours = dk.fit(DIGITS, start(1), weights=w, tol=0.0)
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-12)
    assert int(ours.num_steps) == theirs.n_iter_


def test_one_update_is_one_lloyd_iteration():
    c = start(2)
    state, stats = dk.update(DIGITS, dk.init(c))
    theirs = lloyd(DIGITS, c, max_iter=10).cluster_centers_
    for _ in range(9):
        state, _ = dk.update(DIGITS, state)
    np.testing.assert_allclose(state.centroids, theirs, atol=1e-10)
    np.testing.assert_allclose(stats.loss, dk.kmeans_loss(DIGITS, c))
    assert int(state.step) == 10


OPTIMIZERS = {
    "sgd": (optax.sgd(1e-3), {}),
    "momentum": (optax.sgd(3e-4, momentum=0.9), {}),
    "adam": (optax.adam(0.3), {}),
    "lbfgs": (optax.lbfgs(), {}),
    "chain": (optax.chain(optax.clip_by_global_norm(1e5), optax.sgd(1e-3)), {}),
    "noise": (optax.chain(dk.newton(), optax.add_noise(1e-6, 2.0, 0)), {}),
    "soft": (dk.newton(), {"temperature": 5.0}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_converges_to_a_stationary_point_by_the_same_rule(name):
    optimizer, options = OPTIMIZERS[name]
    with jax.numpy_dtype_promotion("standard"):  # optax promotes inside.
        result = dk.fit(
            DIGITS, start(0), optimizer=optimizer, max_steps=2000, **options
        )
    assert dk.Status.CONVERGED in status(result)
    variance = np.var(DIGITS, axis=0).mean()
    assert result.residual <= 1.5e-4 * variance
    newton = dk.fit(DIGITS, start(0)).loss
    assert result.loss < 1.08 * newton


def test_the_stop_rule_reads_the_residual_and_its_unit_is_the_variance():
    c = start(3)
    loose, tight = (dk.fit(DIGITS, c, tol=tol) for tol in (1e-2, 1e-6))
    assert loose.num_steps < tight.num_steps
    for result, tol in ((loose, 1e-2), (tight, 1e-6)):
        state = dk.init(c)
        limit = tol * np.var(DIGITS, axis=0).mean()
        residuals = []
        for _ in range(int(result.num_steps)):
            before = state.centroids
            state, _ = dk.update(DIGITS, state)
            residuals.append(float(jnp.sum((state.centroids - before) ** 2)))
        assert residuals[-1] <= limit
        assert min(residuals[:-1]) > limit


def test_scaling_the_data_changes_no_step():
    c = start(3)
    a, b = dk.fit(DIGITS, c), dk.fit(1e3 * DIGITS, 1e3 * c)
    assert a.num_steps == b.num_steps


def test_history_holds_the_loss_after_every_step_padded_with_the_last():
    result = dk.fit(DIGITS, start(4))
    steps = int(result.num_steps)
    assert result.history.shape == (301,)
    state = dk.init(start(4))
    for t in range(steps):
        state, stats = dk.update(DIGITS, state)
        np.testing.assert_allclose(result.history[t], stats.loss, rtol=1e-12)
    np.testing.assert_array_equal(result.history[steps:], result.loss)
    assert (np.diff(result.history) <= 1e-9 * result.loss).all()


def test_labels_loss_and_counts_are_those_of_the_returned_centroids():
    result = dk.fit(X, C, max_steps=3)
    np.testing.assert_array_equal(result.labels, dk.assign(X, result.centroids))
    stats = dk.statistics(X, result.centroids)
    np.testing.assert_allclose(result.loss, stats.loss, rtol=1e-14)
    np.testing.assert_array_equal(result.counts, stats.counts)
    assert status(result) == dk.Status.MAX_STEPS


def test_no_steps_evaluate():
    result = dk.fit(X, C, max_steps=0)
    np.testing.assert_array_equal(result.centroids, C)
    assert result.loss == dk.kmeans_loss(X, C)
    assert int(result.num_steps) == 0
    assert result.history.shape == (1,)


@pytest.mark.parametrize("name", ["newton", "macqueen", "adam", "soft schedule"])
def test_going_on_from_a_state_is_the_same_as_not_stopping(name):
    optimizer, options = {
        "newton": (dk.newton(), {}),
        "macqueen": (dk.macqueen(), {}),
        "adam": (optax.adam(0.1), {}),
        "soft schedule": (
            dk.newton(),
            {"temperature": optax.exponential_decay(2.0, 1, 0.9)},
        ),
    }[name]
    run = partial(dk.fit, X, optimizer=optimizer, tol=0.0, **options)
    with jax.numpy_dtype_promotion("standard"):
        whole = run(C, max_steps=8)
        part = run(C, max_steps=4)
        rest = run(part.state, max_steps=4)
    np.testing.assert_array_equal(whole.centroids, rest.centroids)
    assert int(part.num_steps) + int(rest.num_steps) == int(whole.num_steps)
    assert int(rest.state.step) == int(whole.state.step)


def blobs():
    rng = np.random.default_rng(0)
    centers = 10 * np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    x = (centers[:, None] + 0.5 * rng.normal(size=(4, 100, 2))).reshape(-1, 2)
    return jnp.asarray(x), jnp.asarray(x.mean(0) + 0.01 * rng.normal(size=(4, 2)))


def test_annealing_finds_the_blobs_that_a_cold_start_in_the_middle_may_miss():
    x, c = blobs()
    critical = 2 * jnp.linalg.eigvalsh(jnp.cov(x.T, ddof=0))[-1]
    schedule = optax.exponential_decay(0.9 * float(critical), 1, 0.9, end_value=0.05)
    result = dk.fit(x, c, temperature=schedule)
    best = 400 * 2 * 0.5**2
    np.testing.assert_allclose(dk.kmeans_loss(x, result.centroids), best, rtol=0.1)
    assert status(result) == dk.Status.CONVERGED
    np.testing.assert_allclose(result.temperature, 0.05)
    assert len(np.unique(result.labels)) == 4


def test_a_schedule_does_not_stop_while_it_is_hot():
    x, c = blobs()
    schedule = optax.linear_schedule(500.0, 1.0, 40)
    result = dk.fit(x, c, temperature=schedule, max_steps=100)
    assert int(result.num_steps) > 40
    np.testing.assert_allclose(result.temperature, 1.0, rtol=1e-5)


def test_a_soft_fit_at_low_temperature_is_a_hard_one():
    hard, soft = dk.fit(X, C), dk.fit(X, C, temperature=1e-6)
    np.testing.assert_allclose(soft.centroids, hard.centroids, atol=1e-6)
    assert int(hard.num_steps) == int(soft.num_steps)
    assert hard.temperature is None


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_data_that_are_not_finite_never_converge_and_keep_the_start(bad, temperature):
    result = dk.fit(X.at[3, 1].set(bad), C, temperature=temperature)
    assert dk.Status.NON_FINITE in status(result)
    assert dk.Status.CONVERGED not in status(result)
    np.testing.assert_array_equal(result.centroids, C)
    assert int(result.num_steps) == 0


def test_a_diverging_optimizer_is_caught_with_finite_centroids():
    result = dk.fit(X, C, optimizer=optax.sgd(1e3), max_steps=300)
    assert status(result) & dk.Status.NON_FINITE
    assert not status(result) & dk.Status.CONVERGED
    assert jnp.isfinite(result.centroids).all()


def test_weights_that_are_all_zero_are_not_called_converged():
    result = dk.fit(X, C, weights=jnp.zeros(200))
    assert dk.Status.CONVERGED not in status(result)
    assert dk.Status.EMPTY_CLUSTER in status(result)
    assert jnp.isfinite(result.centroids).all()


@jax.jit
def fitted_and_certified(t):
    return dk.fit(X, C, temperature=t), dk.certificate(X, C, temperature=t).valid


@pytest.mark.parametrize("bad", [jnp.nan, 0.0, -0.5, -500.0])
def test_a_traced_temperature_that_is_not_positive_is_flagged(bad):
    result, is_valid = fitted_and_certified(bad)
    assert dk.Status.NON_FINITE in status(result)
    assert dk.Status.CONVERGED not in status(result)
    assert not is_valid


@pytest.mark.parametrize("distance", [dk.euclidean, dk.manhattan, dk.cosine])
def test_other_distances_descend_with_a_gradient_optimizer(distance):
    optimizer = optax.sgd(3e-3)
    result = dk.fit(X, C, distance=distance, optimizer=optimizer, max_steps=60)
    assert result.history[-1] < result.history[0]
    np.testing.assert_allclose(
        result.loss, dk.kmeans_loss(X, result.centroids, distance=distance), rtol=1e-12
    )
    np.testing.assert_array_equal(
        result.labels, dk.assign(X, result.centroids, distance=distance)
    )
    assert result.counts.sum() == 200


def test_the_residual_of_another_distance_is_its_gradient_over_twice_the_counts():
    result = dk.fit(X, C, distance=dk.manhattan, optimizer=optax.sgd(1e-3), max_steps=5)
    gradient = jax.grad(lambda c: dk.kmeans_loss(X, c, distance=dk.manhattan))(
        result.centroids
    )
    expected = jnp.sum((gradient / (2 * result.counts[:, None])) ** 2)
    np.testing.assert_allclose(result.residual, expected, rtol=1e-10)


@pytest.mark.parametrize(
    "optimizer",
    [dk.newton(), dk.macqueen(), optax.chain(dk.newton(), optax.scale(0.5))],
)
def test_newton_and_macqueen_refuse_another_distance_even_in_a_chain(optimizer):
    with pytest.raises(ValueError, match="squared_euclidean"):
        dk.fit(X, C, distance=dk.manhattan, optimizer=optimizer)


def test_a_variance_that_overflows_is_no_reason_to_converge():
    x = X.astype(jnp.float32)
    x = jnp.concatenate([x, x.at[:, 0].add(4e18)])
    result = dk.fit(x, jnp.concatenate([x[:4], x[200:201]]))
    assert dk.Status.CONVERGED not in status(result)
