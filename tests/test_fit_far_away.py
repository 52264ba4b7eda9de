"""Fits far from the origin, where no float32 holds a mean of the points."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

OFFSETS = [0.0, 1e3, 1e4, 1e5, 1e6]
EPS = float(np.finfo(np.float32).eps)
MODULES = [(dk, jnp.asarray), (dt, torch.tensor)]
START = slice(0, 20)


def data(offset, n=1000, d=5, seed=0):
    """Float32 points at an offset, and the same points, exactly, about zero."""
    x = np.random.default_rng(seed).normal(size=(n, d)) + offset
    x = x.astype(np.float32)
    return x, (x.astype(np.float64) - offset).astype(np.float32)


def both_fits(module, array, offset, **options):
    return (module.fit(array(x), array(x[START]), **options) for x in data(offset))


@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(("module", "array"), MODULES)
def test_a_fit_is_that_of_the_shifted_data(module, array, offset, temperature):
    options = {"temperature": temperature, "max_steps": 60}
    far, near = both_fits(module, array, offset, **options)
    steps = int(near.num_steps)
    assert int(far.num_steps) == steps
    histories = (np.asarray(f.history)[:steps] for f in (far, near))
    np.testing.assert_allclose(*histories, rtol=1e-6)
    # The loss is that of the centroids as float32 holds them.
    rounding = np.sum(np.asarray(near.counts)) * 5 * (EPS * offset / 2) ** 2
    assert float(far.loss) <= float(near.loss) * (1 + 1e-6) + rounding
    held = np.asarray(far.state.centroids, float) + np.asarray(far.state.remainder)
    np.testing.assert_allclose(held - offset, near.state.centroids, atol=2e-5)


@pytest.mark.parametrize("offset", OFFSETS)
def test_nothing_converges_with_a_residual_above_what_rounding_explains(offset):
    fit = jax.jit(lambda x: dk.fit(x, x[START]))
    seen = set()
    for seed in range(30):
        x, near = data(offset, n=400, d=2, seed=seed)
        found = fit(jnp.asarray(x))
        status = found.flags
        bound = 1e-4 * near.var(0).mean()
        bound += EPS**2 * np.sum(np.asarray(found.centroids, float) ** 2)
        rests = float(found.residual) <= bound * (1 + 1e-3)
        assert (status & ~dk.Status.EMPTY_CLUSTER) in (
            (dk.Status.CONVERGED, dk.Status.MAX_STEPS)
            if rests
            else (dk.Status.NOT_AT_REST, dk.Status.MAX_STEPS)
        )
        seen.add(status)
    assert dk.Status.CONVERGED in seen


@pytest.mark.parametrize(("module", "array"), MODULES)
def test_a_point_that_changes_its_cluster_in_the_last_step_is_told(module, array):
    # The centroids 0 and 4.2 move to 0 and 4.1, less than the tolerance; then 2.05
    # is nearer to the second.
    x = np.array([[-1.0], [-1.05], [2.06], [4.1], [4.1]])
    start = np.array([[0.0], [4.2]])
    found = module.fit(array(x), array(start), tol=0.01, max_steps=10)
    assert int(found.num_steps) == 1
    assert int(found.status) == module.Status.NOT_AT_REST
    assert float(found.residual) > 0.01 * x.var()
    again = module.fit(array(x), found.state, tol=0.01)
    assert int(again.status) == module.Status.CONVERGED
    assert float(again.residual) <= 0.01 * x.var()


@pytest.mark.parametrize(("module", "array"), MODULES)
def test_updates_go_on_from_where_the_last_one_really_ended(module, array):
    ends = []
    for x in data(1e6):
        state = module.init(array(x[START]), optimizer=module.macqueen())
        for batch in np.split(x, 20):
            state, stats = module.update(
                array(batch), state, optimizer=module.macqueen()
            )
        ends.append((state, stats))
    (far, far_stats), (near, near_stats) = ends
    held = np.asarray(far.centroids, float) + np.asarray(far.remainder)
    np.testing.assert_allclose(held - 1e6, near.centroids, atol=1e-5)
    np.testing.assert_allclose(far_stats.loss, near_stats.loss, rtol=1e-6)
    np.testing.assert_array_equal(far.opt_state.counts, near.opt_state.counts)


def test_an_optimizer_is_given_the_centroids_in_data_coordinates():
    x, _ = data(1e4)
    optimizer = optax.add_decayed_weights(0.5)
    start = dk.init(jnp.asarray(x[:2]), optimizer=optimizer)
    state, stats = dk.update(jnp.asarray(x), start, optimizer=optimizer)
    expected = 1.5 * x[:2].astype(float) - 2 * np.asarray(stats.shifts, float)
    held = np.asarray(state.centroids, float) + np.asarray(state.remainder)
    np.testing.assert_allclose(held, expected, rtol=1e-6)


@pytest.mark.parametrize(("module", "array"), MODULES)
def test_a_state_without_a_remainder_has_lost_nothing(module, array):
    x, _ = data(10.0, n=100)
    full = module.init(array(x[:3]))
    bare = full._replace(remainder=None)
    expected, _ = module.update(array(x), full)
    updated, _ = module.update(array(x), bare)
    for state in (updated, module.fit(array(x), bare, max_steps=1).state):
        np.testing.assert_array_equal(state.centroids, expected.centroids)
        np.testing.assert_array_equal(state.remainder, expected.remainder)


def test_a_tile_of_laser_points_in_metres_fits_as_well_as_its_centered_copy():
    rng = np.random.default_rng(1)
    near = rng.uniform(-50, 50, (2000, 3)).astype(np.float32)
    x = (near + np.array([4.5e5, 5.4e6, 300.0])).astype(np.float32)
    near = (x - np.array([4.5e5, 5.4e6, 300.0])).astype(np.float32)
    far, near = (dk.fit(jnp.asarray(a), jnp.asarray(a[:80])) for a in (x, near))
    assert int(far.num_steps) == int(near.num_steps)
    np.testing.assert_allclose(far.loss, near.loss, rtol=1e-3)


@pytest.mark.parametrize("away", [1e4, 1e6, 1e8])
@pytest.mark.parametrize(("module", "array"), MODULES)
def test_a_cluster_without_weight_far_away_ends_no_fit(module, array, away):
    x, _ = data(0.0)
    stray = np.full((1, 5), away, np.float32)
    with_stray = module.fit(array(x), array(np.concatenate([x[START], stray])))
    without = module.fit(array(x), array(x[START]))
    assert int(with_stray.num_steps) == int(without.num_steps)
    np.testing.assert_allclose(with_stray.loss, without.loss, rtol=1e-6)
