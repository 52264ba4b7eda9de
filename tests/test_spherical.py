"""Spherical k-means: `cosine` with Newton's step, rows of zeros, codebooks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import PartitionSpec as Spec

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 5)) * RNG.uniform(0.1, 10, (60, 1))
START = X[:4] * np.array([[3.0], [0.2], [1.0], [7.0]])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_it_is_half_of_squared_euclidean_on_unit_rows_normalized_every_step():
    state, squared = dk.init(jnp.asarray(START)), dk.init(jnp.asarray(unit(START)))
    for _ in range(8):
        state, cosine = dk.update(X, state, distance=dk.cosine)
        squared, found = dk.update(unit(X), squared)
        squared = squared._replace(centroids=jnp.asarray(unit(squared.centroids)))
        np.testing.assert_allclose(state.centroids, squared.centroids, rtol=1e-12)
        np.testing.assert_allclose(2 * cosine.loss, found.loss, rtol=1e-12)
        np.testing.assert_array_equal(cosine.counts, found.counts)
    soft = dk.statistics(X, START, distance=dk.cosine, temperature=0.1)
    twice = dk.statistics(unit(X), unit(START), temperature=0.2)
    np.testing.assert_allclose(2 * soft.loss, twice.loss, rtol=1e-12)
    np.testing.assert_allclose(soft.shifts, twice.shifts, atol=1e-12)


def test_centroids_of_a_fit_are_unit_rows_and_lengths_do_not_matter():
    result = dk.fit(X, START, distance=dk.cosine)
    assert result.flags == dk.Status.CONVERGED
    np.testing.assert_allclose(np.linalg.norm(result.centroids, axis=1), 1, rtol=1e-12)
    other = dk.fit(unit(X), unit(START), distance=dk.cosine)
    np.testing.assert_allclose(result.centroids, other.centroids, rtol=1e-9)
    assert int(result.num_steps) == int(other.num_steps)


@pytest.mark.parametrize("temperature", [None, 0.05])
@pytest.mark.parametrize("optimizer", [dk.newton(), optax.sgd(1e-2)])
def test_a_row_of_zeros_moves_nothing_and_makes_no_nan(temperature, optimizer):
    zeros = jnp.concatenate([jnp.asarray(X), jnp.zeros((2, 5))])

    def run(x):
        result = dk.fit(
            x,
            START,
            distance=dk.cosine,
            optimizer=optimizer,
            temperature=temperature,
            max_steps=4,
            tol=0.0,
        )
        return result.centroids, result

    (c, result), (without, other) = run(zeros), run(jnp.asarray(X))
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(run(x)[0])))(zeros)
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(c, without, rtol=1e-9)
    assert dk.Status.DOMAIN in result.flags
    # At a distance of 1 to all: of equal ones the first, if hard.
    extra = 2.0 if temperature is None else 2 * (1 - 0.05 * np.log(4))
    np.testing.assert_allclose(result.loss, other.loss + extra, rtol=1e-9)
    np.testing.assert_array_equal(result.labels[-2:], 0)


def test_a_mean_of_zero_keeps_the_old_direction():
    x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    state, _ = dk.update(x, dk.init(jnp.array([[0.0, 2.0]])), distance=dk.cosine)
    np.testing.assert_array_equal(state.centroids, [[0.0, 1.0]])
    state, _ = dk.update(x * 0, state, distance=dk.cosine)
    np.testing.assert_array_equal(state.centroids, [[0.0, 1.0]])


def test_a_centroid_of_zeros_takes_the_direction_of_its_points():
    x = jnp.array([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    start = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(dk.assign(x, start, distance=dk.cosine), [0, 1, 1])
    result = dk.fit(x, start, distance=dk.cosine)
    np.testing.assert_allclose(result.centroids, [[1, 0], [-1, 0]], atol=1e-12)
    assert dk.Status.DOMAIN in result.flags


def test_restarts_draw_directions():
    # One long row, which squares would choose for ever.
    x = jnp.asarray(X).at[0].multiply(1e6)
    found = dk.fit_restarts(jax.random.key(0), x, 4, distance=dk.cosine)
    same = dk.fit_restarts(jax.random.key(0), jnp.asarray(unit(x)), 4)
    spherical = dk.fit(unit(X), jnp.asarray(unit(same.centroids)), distance=dk.cosine)
    assert float(found.loss) <= float(spherical.loss) + 1e-9


def test_an_empty_cluster_takes_the_direction_of_the_costliest_point():
    x = jnp.asarray(X)
    start = jnp.concatenate([x[:3], -x[:3].sum(0, keepdims=True) * 0 - 100 * x[:1]])
    x = x[jnp.argmax(x @ x[0] < 0) :]
    result = dk.fit(x, start, distance=dk.cosine, empty="farthest")
    np.testing.assert_allclose(np.linalg.norm(result.centroids, axis=1), 1, rtol=1e-12)
    assert (result.counts > 0).all()


def test_a_cosine_codebook_chooses_directions_and_costs_angles():
    found = dk.quantize(X, START, distance=dk.cosine)
    np.testing.assert_array_equal(found.labels, (unit(X) @ unit(START).T).argmax(1))
    np.testing.assert_array_equal(found.values, START[found.labels])
    cost = (1 - (unit(X) * unit(START[found.labels])).sum(1)).sum()
    np.testing.assert_allclose(found.codebook_loss, cost, rtol=1e-9)

    def losses(x, c):
        q = dk.quantize(x, c, distance=dk.cosine)
        return q.codebook_loss + 0.25 * q.commitment_loss

    gradients = jax.grad(losses, (0, 1))(jnp.asarray(X), jnp.asarray(START))
    plain = jax.grad(lambda x, c: dk.kmeans_loss(x, c, distance=dk.cosine), (0, 1))(
        jnp.asarray(X), jnp.asarray(START)
    )
    np.testing.assert_allclose(gradients[0], 0.25 * plain[0], atol=1e-12)
    np.testing.assert_allclose(gradients[1], plain[1], atol=1e-12)


@pytest.mark.parametrize("distance", [dk.manhattan, dk.kl_divergence])
def test_a_codebook_of_any_distance(distance):
    x, c = jnp.exp(jnp.asarray(X) / 9), jnp.exp(jnp.asarray(START) / 9)
    found = dk.quantize(x, c, distance=distance)
    costs = dk.pairwise(x, c, distance=distance)
    np.testing.assert_array_equal(found.labels, costs.argmin(1))
    np.testing.assert_allclose(found.commitment_loss, costs.min(1).sum(), rtol=1e-12)


@pytest.mark.parametrize("length", [1e-200, 1e12, 1e15, 1e200])
def test_a_start_of_long_rows_is_as_good_as_one_of_unit_rows(length):
    expected = dk.fit(X, unit(START), distance=dk.cosine)
    assert expected.num_steps > 3
    found = dk.fit(X, length * START, distance=dk.cosine)
    torches = map(torch.as_tensor, (X, length * START))
    other = dt.fit(*torches, distance=dt.cosine)
    for result in (found, other):
        assert result.status == dk.Status.CONVERGED.value
        assert int(result.num_steps) == int(expected.num_steps)
        np.testing.assert_allclose(result.centroids, expected.centroids, rtol=1e-9)


def powers(a, v):
    return jnp.sum(a * v**4) + jnp.sum(v**2)


WITH_ARRAYS = dk.bregman(jax.tree_util.Partial(powers, jnp.ones(5)))


@pytest.mark.parametrize(
    ("distance", "temperature"),
    [
        (dk.cosine, 0.1),
        (dk.mahalanobis(jnp.diag(jnp.arange(1.0, 6.0))), 3.0),
        (WITH_ARRAYS, 3000.0),
    ],
    ids=["cosine", "mahalanobis", "bregman"],
)
def test_a_soft_fit_inside_shard_map_has_the_gradient_of_one_outside(
    distance, temperature
):
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("i",), axis_types=auto, devices=jax.devices()[:2])
    options = {"distance": distance, "temperature": temperature, "tol": 0.0}

    @jax.shard_map(mesh=mesh, in_specs=Spec("i"), out_specs=Spec())
    def inside(x):
        return dk.fit(x, START, axis_name="i", **options).centroids[0]

    def outside(x):
        return dk.fit(x, START, **options).centroids[0]

    x = jnp.asarray(X)
    found, expected = (
        jax.jit(jax.grad(lambda x, f=f: f(x).sum()))(x) for f in (inside, outside)
    )
    assert jnp.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
