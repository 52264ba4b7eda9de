"""Fits inside larger programs: derivatives, jit, vmap, meshes, restarts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import DIGITS, C, X, status

import diffkm_jax as dk
from diffkm_jax.fitting._fit import fit_from
from diffkm_jax.fitting._step import step


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_gradient_of_the_fitted_loss_is_that_of_the_minimum(temperature):
    def fitted(x):
        options = {"tol": 0.0, "temperature": temperature, "max_steps": 2000}
        return dk.fit(x, C, **options).loss

    direction = jnp.cos(X)
    value, slope = jax.jvp(fitted, (X,), (direction,))
    gradient = jax.jit(jax.grad(fitted))(X)
    central = (fitted(X + 1e-6 * direction) - fitted(X - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.sum(gradient * direction), central, rtol=1e-6)
    np.testing.assert_allclose(slope, central, rtol=1e-6)
    assert jnp.isfinite(value)


@pytest.mark.parametrize("mode", ["implicit", "unrolled"])
def test_history_and_residual_have_gradient_zero(mode):
    def outcome(x):
        result = dk.fit(x, C, derivative=mode, max_steps=20)
        return result.history.sum() + result.residual

    np.testing.assert_array_equal(jax.grad(outcome)(X), jnp.zeros_like(X))


def test_an_update_is_differentiable_through_the_pass():
    def moved(x, w):
        return dk.update(x, dk.init(C), weights=w)[0].centroids[0, 0]

    w = jnp.ones(200)
    labels = dk.assign(X, C)
    in_x, in_w = jax.grad(moved, (0, 1))(X, w)
    mean = np.asarray(X)[np.asarray(labels == 0)].mean(0)
    own = np.asarray(labels == 0)
    np.testing.assert_allclose(in_x[:, 0], own / own.sum(), atol=1e-15)
    expected = own * (np.asarray(X)[:, 0] - mean[0]) / own.sum()
    np.testing.assert_allclose(in_w, expected, atol=1e-14)


def test_a_fit_is_one_program_for_all_temperatures_tolerances_and_starts():
    before = fit_from._cache_size()
    for temperature, tol in ((0.5, 1e-4), (0.7, 0.0), (jnp.asarray(0.9), 1e-3)):
        dk.fit(X[:150], C + temperature, temperature=temperature, tol=tol)
    assert fit_from._cache_size() == before + 1


def test_a_fit_runs_under_jit_without_leaving_the_device():
    with jax.transfer_guard("disallow"):
        compiled = jax.jit(lambda x, c: dk.fit(x, c)).lower(X, C).compile()
        inside = compiled(X, C)
    np.testing.assert_allclose(inside.centroids, dk.fit(X, C).centroids, rtol=1e-14)


def test_vmap_equals_the_loop_with_steps_and_status_of_each():
    xs = jnp.stack([X, 2 * X[::-1], X.at[0].set(jnp.nan)])
    cs = jnp.stack([C, 2 * X[50:56], C])
    mapped = jax.vmap(dk.fit)(xs, cs)
    for i in range(3):
        alone = dk.fit(xs[i], cs[i])
        assert int(mapped.num_steps[i]) == int(alone.num_steps)
        assert int(mapped.status[i]) == int(alone.status)
        np.testing.assert_allclose(mapped.centroids[i], alone.centroids, atol=1e-12)


@pytest.mark.parametrize("empty", ["keep", "farthest"])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_a_fit_inside_shard_map_is_the_fit_on_one_device(temperature, empty):
    c = C.at[5].add(60)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def f(x, c):
        options = {"temperature": temperature, "empty": empty, "axis_name": "data"}
        result = dk.fit(x, c, **options)
        return result._replace(labels=None), result.labels

    on_mesh = jax.shard_map(
        f, mesh=mesh, in_specs=(rows, whole), out_specs=(whole, rows)
    )
    sharded, labels = jax.jit(on_mesh)(X, c)
    alone = dk.fit(X, c, temperature=temperature, empty=empty)
    np.testing.assert_allclose(sharded.centroids, alone.centroids, atol=1e-11)
    np.testing.assert_array_equal(labels, alone.labels)
    assert int(sharded.num_steps) == int(alone.num_steps)
    assert int(sharded.status) == int(alone.status)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_data_are_fitted_in_float32_and_returned_in_their_dtype(dtype):
    x, c = X.astype(dtype), C.astype(dtype)
    result = dk.fit(x, c)
    assert result.centroids.dtype == dtype
    assert result.loss.dtype == result.state.centroids.dtype == jnp.float32
    wide = dk.fit(x.astype(jnp.float64), c.astype(jnp.float64))
    np.testing.assert_allclose(result.loss, wide.loss, rtol=2e-2)
    assert dk.Status.CONVERGED in status(result)


def test_restarts_return_the_best_of_their_fits():
    key = jax.random.key(0)
    best = dk.fit_restarts(key, DIGITS, 10, num_restarts=5)
    each = [
        dk.fit(DIGITS, dk.kmeans_plus_plus(k, jnp.asarray(DIGITS), 10))
        for k in jax.random.split(key, 5)
    ]
    losses = [float(r.loss) for r in each]
    chosen = each[int(np.argmin(losses))]
    np.testing.assert_allclose(best.loss, min(losses), rtol=1e-12)
    np.testing.assert_allclose(best.centroids, chosen.centroids, rtol=1e-10)
    assert int(best.num_steps) == int(chosen.num_steps)
    assert max(losses) > min(losses)


def test_restarts_take_the_options_of_a_fit_and_another_initializer():
    w = jnp.ones(200).at[::2].set(0)
    x = X.at[::2].set(jnp.nan)
    result = dk.fit_restarts(
        jax.random.key(1),
        x,
        5,
        num_restarts=3,
        initializer=dk.random_points,
        weights=w,
        temperature=0.3,
    )
    assert status(result) == dk.Status.CONVERGED
    np.testing.assert_allclose(result.counts.sum(), 100)


def test_restarts_on_data_that_are_not_finite_say_so():
    x = X.at[0].set(jnp.nan)
    result = dk.fit_restarts(jax.random.key(0), x, 3, num_restarts=2)
    assert dk.Status.NON_FINITE in status(result)


def test_restarts_are_differentiable_in_their_loss():
    def f(x):
        return dk.fit_restarts(jax.random.key(0), x, 3, num_restarts=2).loss

    result = dk.fit_restarts(jax.random.key(0), X, 3, num_restarts=2)
    expected = 2 * (X - result.centroids[result.labels])
    np.testing.assert_allclose(jax.grad(f)(X), expected, atol=1e-12)


def test_an_optimizer_without_extra_arguments_compiles_once():
    optimizer = optax.GradientTransformation(*optax.scale(-1e-3))
    state = dk.init(C, optimizer=optimizer)
    state, _ = dk.update(X, state, optimizer=optimizer)
    before = step._cache_size()
    for _ in range(3):
        state, _ = dk.update(X, state, optimizer=optimizer)
    assert step._cache_size() == before


def test_restarts_return_the_first_draw_if_no_loss_is_finite():
    x, key = X.at[0, 0].set(jnp.nan), jax.random.key(3)
    options = {"num_restarts": 4, "initializer": dk.random_points}
    first = dk.random_points(jax.random.split(key, 4)[0], x, 5)
    found = dk.fit_restarts(key, x, 5, **options).centroids
    np.testing.assert_array_equal(found, first)
