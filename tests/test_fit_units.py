"""Only the ratios of weights matter to a fit, wherever in their range they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

MODULES = [(dk, jnp.asarray), (dt, torch.tensor)]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)).astype(np.float32)
C = X[:4]
WEIGHTS = RNG.uniform(0.5, 1, 200).astype(np.float32)
SCALES = [2.0**-122, 1e-37, 1e-30, 1e30, 1e36]


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("module", "array"), MODULES)
def test_a_fit_is_that_of_weights_near_one(module, array, scale, temperature):
    scale = np.float32(scale)

    def fit(weights):
        options = {"temperature": temperature, "max_steps": 20}
        return module.fit(array(X), array(C), weights=array(weights), **options)

    plain, scaled = fit(WEIGHTS), fit(WEIGHTS * scale)
    assert int(scaled.num_steps) == int(plain.num_steps)
    assert int(scaled.status) == int(plain.status)
    np.testing.assert_allclose(scaled.centroids, plain.centroids, atol=1e-5)
    for field in ("loss", "counts", "history"):
        ours, theirs = (np.asarray(getattr(r, field)) for r in (scaled, plain))
        np.testing.assert_allclose(ours, theirs * scale, rtol=1e-5)


@pytest.mark.parametrize("name", ["macqueen", "ema"])
@pytest.mark.parametrize(("module", "array"), MODULES)
def test_running_counts_are_in_the_unit_of_the_weights(module, array, name):
    scale = np.float32(2.0**-122)
    optimizer = getattr(module, name)()

    def fit(weights):
        options = {"optimizer": optimizer, "weights": array(weights), "max_steps": 3}
        found = module.fit(array(X), array(C), **options)
        return module.fit(array(X), found.state, **options)

    plain, scaled = fit(WEIGHTS), fit(WEIGHTS * scale)
    np.testing.assert_allclose(scaled.centroids, plain.centroids, atol=1e-6)
    ours, theirs = (np.asarray(r.state.opt_state.counts) for r in (scaled, plain))
    np.testing.assert_allclose(ours, theirs * scale, rtol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_the_soft_implicit_derivative_is_that_of_weights_near_one(scale):
    scale = np.float32(scale)

    @jax.jit
    def slope(x, w):
        def end(x):
            fit = dk.fit(x, C, weights=w, temperature=0.5, tol=0, max_steps=100)
            return jnp.sum(fit.centroids[0]), fit.status

        return jax.grad(end, has_aux=True)(x)

    expected, _ = slope(X, WEIGHTS)
    found, status = slope(X, WEIGHTS * scale)
    assert not int(status) & (dk.Status.LINEAR_SOLVE | dk.Status.NON_FINITE)
    size = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(found, expected, atol=1e-4 * size)


@pytest.mark.parametrize(("module", "array"), MODULES)
def test_a_gradient_optimizer_sees_the_true_weights(module, array):
    scale = np.float32(2.0**100)
    optimizer = module.sgd(2.0**-108) if module is dt else optax.sgd(2.0**-108)
    found = module.fit(
        array(X), array(C), weights=array(WEIGHTS * scale), optimizer=optimizer
    )
    optimizer = module.sgd(2.0**-8) if module is dt else optax.sgd(2.0**-8)
    plain = module.fit(array(X), array(C), weights=array(WEIGHTS), optimizer=optimizer)
    assert int(found.num_steps) == int(plain.num_steps)
    np.testing.assert_allclose(found.centroids, plain.centroids, atol=1e-6)


def test_the_best_of_several_fits_is_chosen_by_weights_of_any_size():
    key = jax.random.key(3)
    plain, scaled = (
        dk.fit_restarts(key, X, 4, num_restarts=3, weights=jnp.asarray(w))
        for w in (WEIGHTS, WEIGHTS * np.float32(2.0**-122))
    )
    np.testing.assert_allclose(scaled.centroids, plain.centroids, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("draw", [dk.kmeans_plus_plus, dk.random_points])
def test_a_start_is_drawn_by_the_ratios_of_weights(draw, scale):
    far = X.copy()
    far[[50, 120]] += 1e3
    weights = WEIGHTS.copy()
    weights[120] = 1e-3
    starts = [
        draw(jax.random.key(0), jnp.asarray(far), 4, weights=jnp.asarray(w))
        for w in (weights, weights * np.float32(scale))
    ]
    np.testing.assert_array_equal(*starts)


@pytest.mark.parametrize(("module", "array"), MODULES)
def test_weights_of_zero_are_no_unit(module, array):
    found = module.fit(array(X), array(C), weights=array(0 * WEIGHTS), max_steps=2)
    np.testing.assert_array_equal(found.centroids, C)
    assert int(found.status) & module.Status.EMPTY_CLUSTER


@pytest.mark.parametrize("name", ["newton", "macqueen", "ema", "scheduled ema"])
@pytest.mark.parametrize(("module", "array"), MODULES)
def test_an_update_moves_by_the_ratios_of_weights(module, array, name):
    scheduled = module.ema(lambda t: 0.5 * (t / (t + 1)))
    optimizer = scheduled if " " in name else getattr(module, name)()

    def twice(weights):
        state = module.init(array(C), optimizer=optimizer)
        for _ in range(2):
            state, stats = module.update(
                array(X), state, optimizer=optimizer, weights=array(weights)
            )
        return state, stats

    plain, of_plain = twice(WEIGHTS)
    for scale in map(np.float32, (2.0**-122, 1e36)):
        scaled, of_scaled = twice(WEIGHTS * scale)
        np.testing.assert_allclose(scaled.centroids, plain.centroids, atol=1e-5)
        # Counts of the true weights, and running ones: what is added to others.
        sums = [(of_scaled.counts, of_plain.counts), (of_scaled.loss, of_plain.loss)]
        if scaled.opt_state:
            sums.append((scaled.opt_state.counts, plain.opt_state.counts))
        for ours, theirs in sums:
            np.testing.assert_allclose(ours, np.asarray(theirs) * scale, rtol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_a_certificate_is_that_of_weights_near_one(scale, temperature):
    plain, scaled = (
        dk.certificate(X, C, weights=w, temperature=temperature, num_iterations=12)
        for w in (WEIGHTS, WEIGHTS * np.float32(scale))
    )
    per_weight = ("gradient_norm", "smallest_eigenvalue", "eigenvalue_error")
    for field, expected in plain._asdict().items():
        unit = scale if field in per_weight else 1
        found = np.asarray(getattr(scaled, field), float) / unit
        np.testing.assert_allclose(found, np.asarray(expected, float), rtol=1e-5)


@pytest.mark.parametrize("largest", [2.0**-126, 2.0**-64, 2.0**-63, 2.0**100])
def test_the_derivative_of_a_step_does_not_know_the_unit_of_the_weights(largest):
    # It holds squares of counts, which are about one weight each.
    def step(module, c, weights):
        options = {"weights": weights, "temperature": 0.5}
        return module.update(x, module.init(c), **options)[0].centroids

    few, ones = X[:5], np.ones(5, np.float32)
    for module, array in MODULES:
        jacobian = jax.jacrev if module is dk else torch.func.jacrev
        x, c = array(few), array(C)
        plain, scaled = (
            jacobian(lambda c, w=w, module=module: step(module, c, w))(c)
            for w in (array(ones), array(ones * np.float32(largest)))
        )
        np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-7)
