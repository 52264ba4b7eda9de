"""Many problems at once: ragged batches, frozen lanes, flags and gradients of each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import status

import diffkm_jax as dk

SGD = optax.sgd(5e-3)
SIZES, CLUSTERS = [40, 25, 33], [4, 2, 3]
RNG = np.random.default_rng(0)
PROBLEMS = [jnp.asarray(RNG.normal(size=(n, 2)) + 3) for n in SIZES]
STARTS = [x[:k] for x, k in zip(PROBLEMS, CLUSTERS, strict=True)]


def padded(value=jnp.nan):
    """The problems as one batch: points, weights, centroids, active."""
    n, k = max(SIZES), max(CLUSTERS)
    points, weights, centroids, active = [], [], [], []
    for x, c in zip(PROBLEMS, STARTS, strict=True):
        more, fewer = n - len(x), k - len(c)
        points.append(jnp.pad(x, ((0, more), (0, 0)), constant_values=value))
        weights.append(jnp.arange(n) < len(x))
        centroids.append(jnp.pad(c, ((0, fewer), (0, 0)), constant_values=value))
        active.append(jnp.arange(k) < len(c))
    weights = jnp.stack(weights).astype(jnp.float64)
    return jnp.stack(points), weights, jnp.stack(centroids), jnp.stack(active)


OPTIONS = {
    "hard": {},
    "farthest": {"empty": "farthest"},
    "macqueen": {"optimizer": dk.macqueen()},
    "sgd": {"optimizer": SGD},
    "soft": {"temperature": 0.3},
    "annealed": {
        "temperature": optax.exponential_decay(0.5, 1, 0.8, end_value=0.1),
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_ragged_batch_is_the_loop_over_its_problems(name):
    options = OPTIONS[name]

    @jax.jit
    @jax.vmap
    def batch(x, w, c, on):
        return dk.fit(x, c, weights=w, active=on, **options)

    found = batch(*padded())
    for i, (x, c) in enumerate(zip(PROBLEMS, STARTS, strict=True)):
        alone, (n, k) = dk.fit(x, c, **options), (len(x), len(c))
        assert int(found.num_steps[i]) == int(alone.num_steps)
        assert int(found.status[i]) == int(alone.status)
        np.testing.assert_allclose(found.centroids[i, :k], alone.centroids, rtol=1e-12)
        np.testing.assert_allclose(found.loss[i], alone.loss, rtol=1e-12)
        np.testing.assert_allclose(found.counts[i, :k], alone.counts, rtol=1e-12)
        np.testing.assert_array_equal(found.counts[i, k:], 0)
        np.testing.assert_array_equal(found.labels[i, :n], alone.labels)


def test_hard_padding_changes_no_bit_of_the_centroids():
    x, w, c, on = padded()
    for i in range(3):
        inside = dk.fit(x[i], c[i], weights=w[i], active=on[i])
        without = dk.fit(PROBLEMS[i], STARTS[i], weights=jnp.ones(SIZES[i]))
        k = CLUSTERS[i]
        np.testing.assert_array_equal(inside.centroids[:k], without.centroids)
        np.testing.assert_array_equal(inside.counts[:k], without.counts)


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_gradients_of_a_ragged_batch_are_those_of_its_problems_and_zero_in_padding(
    temperature,
):
    options = {"temperature": temperature, "tol": 1e-12, "max_steps": 2000}

    def value(x, w, c, on):
        result = dk.fit(x, c, weights=w, active=on, **options)
        return jnp.sum(jnp.cos(result.centroids), where=on[:, None])

    found = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1))))(*padded())
    for i, (x, c) in enumerate(zip(PROBLEMS, STARTS, strict=True)):
        w, on = jnp.ones(len(x)), jnp.ones(len(c), bool)
        alone = jax.jit(jax.grad(value, argnums=(0, 1)))(x, w, c, on)
        np.testing.assert_allclose(found[0][i, : len(x)], alone[0], atol=1e-10)
        np.testing.assert_allclose(found[1][i, : len(x)], alone[1], atol=1e-10)
        np.testing.assert_array_equal(found[0][i, len(x) :], 0)


def test_a_lane_that_finished_stays_frozen():
    x = jnp.stack([PROBLEMS[0]] * 2)
    slow = 3 + jnp.array([[0.0, 0.0], [0.1, 0.1], [0.2, 0.1], [0.3, 0.3]])
    c = jnp.stack([dk.fit(x[0], STARTS[0], tol=0.0).centroids, slow])
    found = jax.vmap(partial(dk.fit, tol=0.0))(x, c)
    assert found.num_steps[0] == 1
    assert found.num_steps[1] > 4
    np.testing.assert_allclose(found.centroids[0], c[0], rtol=1e-14)
    np.testing.assert_array_equal(found.history[0, 1:], found.loss[0])
    assert int(found.state.step[0]) == 1


def test_only_the_lane_with_nan_is_flagged_and_only_its_gradient_is_lost():
    x = jnp.stack([PROBLEMS[0], PROBLEMS[0].at[3, 0].set(jnp.nan)])
    c = jnp.stack([STARTS[0]] * 2)

    def value(x):
        result = jax.vmap(dk.fit)(x, c)
        return jnp.sum(jnp.cos(result.centroids)), result.status

    (_, flags), gradient = jax.value_and_grad(value, has_aux=True)(x)
    assert dk.Status(int(flags[0])) == dk.Status.CONVERGED
    assert dk.Status.NON_FINITE in dk.Status(int(flags[1]))
    alone = jax.grad(lambda x: jnp.sum(jnp.cos(dk.fit(x, c[0]).centroids)))(x[0])
    np.testing.assert_allclose(gradient[0], alone, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"distance": dk.euclidean, "optimizer": SGD}],
    ids=["hard", "soft", "euclidean"],
)
def test_the_gradient_of_a_batch_with_its_flags_is_the_batch_of_gradients(options):
    x = jnp.stack([PROBLEMS[0], 1.5 * PROBLEMS[0][::-1]])

    def one(x, c):
        result = dk.fit(x, c, **options)
        return jnp.sum(jnp.cos(result.centroids)), result.status

    def batch(x):
        values, flags = jax.vmap(one)(x, x[:, :3])
        return jnp.sum(values), flags

    together, flags = jax.grad(batch, has_aux=True)(x)
    each = jax.vmap(jax.grad(lambda x: one(x, x[:3]), has_aux=True))
    apart, expected = each(x)
    np.testing.assert_array_equal(flags, expected)
    np.testing.assert_allclose(together, apart, atol=1e-9)
    assert jax.jvp(batch, (x,), (x,), has_aux=True)[2].shape == (2,)


def test_one_data_set_many_starts_keys_and_temperatures():
    x, keys = PROBLEMS[0], jax.random.split(jax.random.key(0), 4)
    temperatures = jnp.array([0.05, 0.1, 0.2, 0.4])

    def one(key, t):
        start = dk.kmeans_plus_plus(key, x, 3)
        # Far above rounding, which at tol = 0 decides the last step.
        result = dk.fit(x, start, temperature=t, tol=1e-20, max_steps=2000)
        return jnp.sum(jnp.cos(result.centroids)), result.num_steps

    slope = jax.value_and_grad(one, argnums=1, has_aux=True)
    (values, steps), slopes = jax.jit(jax.vmap(slope))(keys, temperatures)
    single = jax.jit(slope)
    for i in range(4):
        (value, count), at = single(keys[i], temperatures[i])
        assert int(count) == int(steps[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-12)
        np.testing.assert_allclose(slopes[i], at, rtol=1e-7, atol=1e-10)


def test_many_restarts_are_the_loop():
    keys = jax.random.split(jax.random.key(1), 3)
    x = jnp.stack([PROBLEMS[0], PROBLEMS[0][::-1], 2 * PROBLEMS[0]])
    run = partial(dk.fit_restarts, k=3, num_restarts=2)
    found = jax.vmap(run)(keys, x)
    for i in range(3):
        np.testing.assert_allclose(found.loss[i], run(keys[i], x[i]).loss, rtol=1e-12)


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_no_active_cluster_is_flagged_and_harms_no_other_lane(temperature):
    x = jnp.stack([PROBLEMS[0]] * 2)
    c = jnp.stack([STARTS[0]] * 2)
    on = jnp.array([[True] * 4, [False] * 4])

    @jax.vmap
    def batch(x, c, on):
        return dk.fit(x, c, active=on, temperature=temperature)

    found = batch(x, c, on)
    alone = dk.fit(PROBLEMS[0], STARTS[0], temperature=temperature)
    assert int(found.status[0]) == int(alone.status)
    assert dk.Status(int(found.status[1])) == dk.Status.NON_FINITE
    np.testing.assert_allclose(found.centroids[0], alone.centroids, rtol=1e-12)
    np.testing.assert_array_equal(found.centroids[1], c[1])


def test_weights_that_are_all_zero_in_one_lane_are_not_called_converged():
    w = jnp.stack([jnp.ones(40), jnp.zeros(40)])
    found = jax.vmap(lambda w: dk.fit(PROBLEMS[0], STARTS[0], weights=w))(w)
    assert dk.Status(int(found.status[0])) == dk.Status.CONVERGED
    assert not dk.Status(int(found.status[1])) & dk.Status.CONVERGED
    assert status(dk.fit(PROBLEMS[0], STARTS[0])) == dk.Status.CONVERGED
