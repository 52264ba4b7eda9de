"""What most users run: JAX as it comes, without x64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from maps import MAPS, noise_for, scalar
from problems import problem
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from twins import compare

import diffkm_jax as dk
import diffkm_torch as dt

DIGITS = load_digits().data.astype(np.float32)
START = DIGITS[:10] + 1e-2 * np.random.default_rng(0).normal(size=(10, 64))
START = START.astype(np.float32)


def test_x64_is_off():
    assert jnp.asarray(np.float64(1)).dtype == jnp.float32


@pytest.mark.parametrize("name", ["random", "ties", "zero weights", "inactive"])
def test_losses_and_gradients_agree_with_torch(name):
    arrays = problem(name, np.float32)
    perturb = name != "ties"
    compare(dk.statistics, dt.statistics, perturb=perturb, **arrays)
    arrays["temperature"] = np.float32(0.7).reshape(())
    compare(dk.statistics, dt.statistics, perturb=perturb, **arrays)


def test_every_output_is_float32_and_every_index_int32():
    result = dk.fit(DIGITS, START, temperature=5.0)
    for leaf in (result.centroids, result.loss, result.counts, result.history):
        assert leaf.dtype == jnp.float32
    for leaf in (result.labels, result.num_steps, result.status, result.state.step):
        assert leaf.dtype == jnp.int32


@pytest.mark.parametrize("tol", [0.0, 1e-4])
def test_newton_takes_scikit_learns_steps(tol):
    theirs = KMeans(10, init=START, n_init=1, tol=tol, algorithm="lloyd").fit(DIGITS)
    ours = dk.fit(DIGITS, START, tol=tol)
    assert int(ours.num_steps) == theirs.n_iter_
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-6)


def test_gradients_equal_float64_autograd():
    x, c = DIGITS[:333], START
    for t in (None, 50.0):
        ours = jax.grad(
            lambda x, c, t=t: dk.statistics(x, c, temperature=t).loss, (0, 1)
        )
        tensors = [dt_tensor(a) for a in (x, c)]
        dt.statistics(*tensors, temperature=t).loss.backward()
        for mine, tensor in zip(ours(x, c), tensors, strict=True):
            scale = float(tensor.grad.abs().max())
            np.testing.assert_allclose(mine, tensor.grad, atol=1e-5 * scale)


def dt_tensor(array):
    import torch

    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("initializer", [dk.random_points, dk.kmeans_plus_plus])
def test_seeding_and_restarts(initializer):
    key = jax.random.key(0)
    assert initializer(key, DIGITS, 10).dtype == jnp.float32
    result = dk.fit_restarts(key, DIGITS, 10, num_restarts=3, initializer=initializer)
    assert result.flags == dk.Status.CONVERGED
    np.testing.assert_allclose(result.loss, 1.165e6, rtol=0.05)


@pytest.mark.parametrize("name", ["sgd", "adam", "lbfgs", "macqueen"])
def test_optimizers_descend(name):
    optimizer = {
        "sgd": optax.sgd(1e-3),
        "adam": optax.adam(0.3),
        "lbfgs": optax.lbfgs(),
        "macqueen": dk.macqueen(),
    }[name]
    with jax.numpy_dtype_promotion("standard"):  # optax promotes inside.
        result = dk.fit(DIGITS, START, optimizer=optimizer, empty="farthest")
    assert result.loss < 1.25e6
    assert not result.flags & dk.Status.NON_FINITE


def test_straight_through_in_float32():
    logits = jnp.asarray(START)
    rows = dk.straight_through(logits, tau=0.5)
    assert rows.dtype == jnp.float32
    assert set(np.unique(rows)) == {0.0, 1.0}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_assignments_agree_with_torch(name, tau):
    rng = np.random.default_rng(0)
    arrays = {"logits": rng.normal(size=(6, 5)).astype(np.float32)}
    arrays |= noise_for(name, (6, 5), 1, np.float32)
    if scalar(name):
        arrays[scalar(name)] = np.asarray(tau, np.float32)
    functions = getattr(dk, name), getattr(dt, name)
    compare(*functions, **arrays, size_of_gradient=1 / tau)
    assert getattr(dk, name)(**arrays).dtype == jnp.float32


@pytest.mark.parametrize(
    "record",
    [
        dk.estimators.reinmax(),
        dk.estimators.gumbel_rao(tau=0.5),
        dk.estimators.rloo(num_samples=2),
        dk.estimators.rebar(),
    ],
    ids=lambda record: record.name,
)
def test_estimators_are_measured(record):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)

    def cost(rows):
        return 100 + jnp.exp(jnp.sum(rows[:, 0]))

    key = jax.random.key(0)
    report = dk.evaluate(key, cost, logits, record, num_samples=5000)
    leaves = jax.tree.leaves(report)
    assert all(leaf.dtype in (jnp.float32, jnp.bool_) for leaf in leaves)
    assert all(jnp.isfinite(leaf).all() for leaf in leaves)
    rows = jnp.eye(2)[jnp.asarray(np.indices((2, 2, 2)).reshape(3, 8).T)]
    p = jax.nn.softmax(logits)
    weights = jnp.prod(jnp.sum(rows * p[None], -1), -1)
    costs = jax.vmap(cost)(rows) - 100
    exact = jnp.einsum("c,crk->rk", weights * costs, rows - p[None])
    np.testing.assert_allclose(report.exact, exact, atol=1e-6)
    np.testing.assert_allclose(report.cosine, 1, atol=0.05)


def test_quantizers_in_float32():
    for method in (dk.straight_through_vector, dk.rotation_trick):
        result = dk.quantize(DIGITS, START, method=method)
        np.testing.assert_array_equal(result.values, START[result.labels])
        loss = dk.kmeans_loss(DIGITS, START)
        np.testing.assert_allclose(result.commitment_loss, loss, rtol=1e-6)


def test_the_soft_gradient_in_points_does_not_depend_on_the_offset():
    x = np.random.default_rng(0).integers(-64, 64, (12, 2)) / 16
    c = x[:3] + 0.25

    def gradient(offset):
        loss = partial(dk.soft_kmeans_loss, temperature=0.3)
        return jax.grad(loss)(np.float32(x + offset), np.float32(c + offset))

    near = gradient(0.0)
    for offset in (1e3, 1e4, 1e5):
        np.testing.assert_allclose(gradient(offset), near, atol=2e-6)


def test_the_covariance_of_a_certificate_does_not_depend_on_the_offset():
    x = (np.random.default_rng(0).integers(-64, 64, (50, 2)) / 16).astype(np.float32)
    near, far = (
        dk.certificate(x + np.float32(o), x[:3] + np.float32(o)).critical_temperature
        for o in (0, 2.0**19)
    )
    np.testing.assert_allclose(far, near, rtol=1e-5)
