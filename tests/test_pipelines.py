"""K-means inside larger programs, as `benchmarks/pipelines.py` trains them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.metrics import normalized_mutual_info_score

import diffkm_jax as dk
from benchmarks import pipelines

pytestmark = pytest.mark.slow

POINTS, CLASSES = pipelines.digits("float64")
POINTS, CLASSES = POINTS[:300], CLASSES[:300]
K = 4
STEPS = 100
SOFT = 0.25


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def start():
    """A pretrained autoencoder with centroids, and the temperature of its clusters."""
    with jax.numpy_dtype_promotion("standard"):
        # As in the other pipeline, so that it is compiled once.
        arguments = pipelines.VECTOR_WIDTHS, STEPS
        params = pipelines.pretrained(jax.random.key(0), POINTS, *arguments)
        z = pipelines.apply(params["encoder"], POINTS)
        fitted = dk.fit(z, z[7 : 7 + K])
    return params | {
        "centroids": fitted.centroids
    }, pipelines.SOFTNESS * 2 * fitted.loss / z.size


@pytest.fixture(scope="module")
def resting():
    """Centroids at rest, hard and soft."""
    first = dk.fit(POINTS, POINTS[:K], tol=0.0).centroids
    soft = dk.fit(POINTS, first, temperature=SOFT, tol=0.0, max_steps=2000)
    assert int(soft.status) == dk.Status.CONVERGED
    return {None: first, SOFT: soft.centroids}


def test_an_autoencoder_trains_through_a_fit_in_one_compiled_step(start):
    params, temperature = start
    traces, reports = [], []

    @jax.jit
    def step(params, opt_state):
        traces.append(1)
        arguments = params, opt_state, POINTS, temperature
        return pipelines.cluster_step(*arguments, mode="implicit")

    opt_state = pipelines.ADAM.init(params)
    for _ in range(40):
        before = params
        params, opt_state, report = step(params, opt_state)
        reports.append(report)
    assert len(traces) == 1
    assert {int(report.status) for report in reports} == {dk.Status.CONVERGED}
    assert reports[-1].loss < 0.9 * reports[0].loss
    assert reports[-1].divergence < 0.7 * reports[0].divergence
    # The start of the next fit is the last one, untouched by Adam.
    z = pipelines.apply(before["encoder"], POINTS)
    options = {"temperature": temperature, "tol": pipelines.TOL}
    last = dk.fit(z, before["centroids"], **options)
    np.testing.assert_allclose(params["centroids"], last.centroids, rtol=1e-9)


def test_the_gradient_of_the_encoder_goes_through_the_fit(start):
    params, temperature = start
    loss = partial(pipelines.cluster_loss, tol=0.0)
    flat, unravel = ravel_pytree(params["encoder"])
    direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))

    def of_encoder(mode, size, target=None):
        moved = params | {"encoder": unravel(flat + size * direction)}
        return loss(moved, POINTS, temperature, mode, target=target)

    def slope(mode):
        differentiated = jax.jit(jax.grad(partial(of_encoder, mode), has_aux=True))
        found, (_, target, fitted) = differentiated(0.0)
        assert int(fitted.status) == dk.Status.CONVERGED
        return float(found), target

    found, target = slope("implicit")
    # The target is no part of what is differentiated.
    value = jax.jit(lambda size: of_encoder("none", size, target)[0])
    expected = float(value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(slope("none")[0] / expected - 1) > 0.1


@pytest.mark.parametrize(
    ("method", "averaged"),
    [(dk.straight_through_vector, False), (dk.rotation_trick, True)],
)
def test_a_vector_quantized_autoencoder_trains_in_one_compiled_step(method, averaged):
    traces, errors = [], []
    codec = start = pipelines.start_codec(jax.random.key(0), POINTS, STEPS)

    @jax.jit
    def step(codec, key):
        traces.append(1)
        options = {"method": method, "averaged": averaged}
        return pipelines.vector_step(codec, key, POINTS, **options)

    for key in jax.random.split(jax.random.key(1), 80):
        codec, squared_error = step(codec, key)
        errors.append(float(squared_error))
    assert len(traces) == 1
    assert np.mean(errors[-10:]) < 0.8 * np.mean(errors[:10])
    book = codec.params["codebook"]
    assert not jnp.array_equal(book, start.params["codebook"])
    assert jnp.array_equal(book, codec.book.centroids) == averaged
    labels = dk.assign(pipelines.encode(codec.params, POINTS), book)
    assert pipelines.use(labels)[0] > pipelines.BOOK_SIZE // 3


def test_the_influence_of_a_point_on_a_mean_is_its_formula(resting):
    """(x − c) / n on its own centroid; with w less weight c moves w(c − x)/(n − w)."""
    centroids = resting[None]
    labels = np.asarray(dk.assign(POINTS, centroids))
    counts = np.bincount(labels, minlength=K)
    rows = np.arange(0, 300, 10)
    own = np.arange(K)[:, None] == labels[rows]
    away = np.asarray(POINTS[rows] - centroids[labels[rows]]).T
    expected = own[:, None] * away / counts[labels[rows]]
    found = np.asarray(pipelines.influence(POINTS, centroids))[..., rows]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    for amount in (1.0, 1e-3):
        moves, changed = pipelines.removals(
            POINTS, centroids, jnp.asarray(rows), amount=amount
        )
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
    found = np.asarray(pipelines.influence(POINTS, centroids, SOFT))[..., rows]
    found = np.moveaxis(found, -1, 0)
    errors = {}
    for amount in (1.0, 1e-2, 1e-4):
        moves, _ = pipelines.removals(
            POINTS, centroids, jnp.asarray(rows), SOFT, amount=amount
        )
        true = np.asarray(moves)
        errors[amount] = pipelines.relative_errors(-amount * found, true)
        if amount == 1:
            assert np.corrcoef(-found.ravel(), true.ravel())[0, 1] > 0.99
    # The error of a first order is in proportion to the step.
    np.testing.assert_allclose(errors[1e-2] / errors[1e-4], 100, rtol=0.1)
    assert errors[1e-4].max() < 1e-3


def test_agreement_with_classes_is_what_scikit_learn_says():
    permuted = (3 * CLASSES + 1) % 10
    np.testing.assert_allclose(pipelines.agreement(permuted, CLASSES), (1, 1))
    labels = np.where(np.arange(300) % 4 == 0, 0, permuted)
    accuracy, nmi = pipelines.agreement(labels, CLASSES)
    np.testing.assert_allclose(nmi, normalized_mutual_info_score(CLASSES, labels))
    assert accuracy == pytest.approx(np.mean(labels == permuted))
