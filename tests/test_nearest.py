"""Which centroid is nearest, and its loss, where that is found by a way of its own."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from scipy.spatial.distance import cdist

import diffkm_jax as dk
from diffkm_jax._geometry import best_of

NAMES = {dk.euclidean: "euclidean", dk.manhattan: "cityblock"}
every = pytest.mark.parametrize("distance", NAMES)


def data(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(k, d))


@every
@pytest.mark.parametrize(("d", "k"), [(0, 3), (1, 1), (3, 17), (70, 50)])
def test_labels_and_losses_are_those_of_all_distances(distance, d, k):
    x, c = data(37, d, k)
    costs = cdist(x, c, NAMES[distance]) if d else np.zeros((37, k))

    @jax.jit
    def both(x, c):
        options = {"distance": distance, "block_size": 8}
        return dk.assign(x, c, **options), dk.kmeans_loss(x, c, **options)

    labels, loss = both(x, c)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, costs.argmin(1))
    np.testing.assert_allclose(loss, costs.min(1).sum(), rtol=1e-12)


@every
@pytest.mark.parametrize("k", [4, 60])
def test_ties_go_to_the_lowest_index_and_its_gradient(distance, k):
    x, c = (
        np.zeros((5, 3)),
        np.ones((k, 3)) * np.where(np.arange(k) % 2, 1, -1)[:, None],
    )
    c[0] = 9.0
    np.testing.assert_array_equal(dk.assign(x, c, distance=distance), np.ones(5))
    gradient = jax.jit(jax.grad(partial(dk.kmeans_loss, distance=distance), 1))(x, c)
    assert gradient[1].all()
    np.testing.assert_array_equal(gradient.at[1].set(0), np.zeros((k, 3)))


@every
def test_the_gradient_is_zero_where_a_point_equals_its_centroid(distance):
    x, c = data(6, 3, 2)
    x[:2] = c
    x[2] = c[0] + [1.0, 0.0, 0.0]
    gradient = jax.jit(jax.grad(partial(dk.kmeans_loss, distance=distance)))(x, c)
    np.testing.assert_array_equal(gradient[:2], np.zeros((2, 3)))
    np.testing.assert_allclose(gradient[2], [1, 0, 0], atol=1e-15)


@every
@pytest.mark.parametrize("k", [3, 60])
def test_a_row_of_nan_has_a_label_in_range_and_leaves_the_others(distance, k):
    x, c = data(9, 3, k)
    clean = dk.assign(x, c, distance=distance)
    for bad in (np.nan, np.inf):
        found = dk.assign(
            np.where(np.arange(9)[:, None] == 4, bad, x), c, distance=distance
        )
        assert 0 <= found[4] < k
        np.testing.assert_array_equal(np.delete(found, 4), np.delete(clean, 4))


@every
def test_inactive_clusters_and_rows_without_weight_are_as_if_not_there(distance):
    x, c = data(40, 3, 6)
    active = np.array([True, False, True, True, False, True])
    c[1], c[4] = np.nan, x[0]
    labels = dk.assign(x, c, active=active, distance=distance)
    few = dk.assign(x, c[active], distance=distance)
    np.testing.assert_array_equal(labels, np.flatnonzero(active)[few])
    w = np.random.default_rng(1).uniform(0.1, 2, 40)
    w[:4] = 0
    loss = partial(dk.kmeans_loss, distance=distance)
    expected = jax.jit(jax.value_and_grad(loss, 1))(x[4:], c[active], weights=w[4:])
    ours = partial(loss, active=active, block_size=16)
    ours = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))
    # The last is finite, and what it costs is not.
    for fill in (np.nan, np.inf, 1e300, 1.7e308):
        x[:3] = fill
        value, gradients = ours(x, c, weights=w)
        np.testing.assert_allclose(value, expected[0], rtol=1e-12)
        np.testing.assert_allclose(gradients[1][active], expected[1], atol=1e-12)
        np.testing.assert_array_equal(gradients[1][~active], np.zeros((2, 3)))
        np.testing.assert_array_equal(gradients[0][:4], np.zeros((4, 3)))


@every
def test_they_vectorize_compile_and_export_for_any_number_of_points(distance):
    x, c = data(60, 3, 4)
    assign = partial(dk.assign, distance=distance)
    loss = partial(dk.kmeans_loss, distance=distance)
    starts = np.stack([c, c[::-1] + 0.1])

    def both(x, c):
        return assign(x, c), jax.value_and_grad(loss, (0, 1))(x, c)

    expected = [jax.jit(both)(x, start) for start in starts]
    mapped = jax.jit(jax.vmap(both, (None, 0)))(x, starts)
    for a, *b in zip(*map(jax.tree.leaves, (mapped, *expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    (n,) = export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct(s, x.dtype) for s in ((n, 3), c.shape)]
    loaded = export.export(jax.jit(assign))(*shapes)
    for n in (7, 60):
        np.testing.assert_array_equal(loaded.call(x[:n], c), assign(x[:n], c))


@every
def test_second_derivatives_are_those_of_the_distances_to_the_nearest(distance):
    x, c = data(20, 3, 4)
    own = cdist(x, c, NAMES[distance]).argmin(1)

    def dense(x, c, w):
        return jnp.sum(w * distance(x, c[own]))

    def ours(x, c, w):
        return dk.kmeans_loss(x, c, weights=w, distance=distance, block_size=8)

    arguments = x, c, np.linspace(0.5, 1, 20)
    found, expected = (
        jax.jit(jax.hessian(f, (0, 1, 2)))(*arguments) for f in (ours, dense)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@every
def test_a_program_holds_no_distance_of_every_pair(distance):
    n, d, k = 400_000, 4, 64
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (k, d))]
    loss = partial(dk.kmeans_loss, distance=distance)
    program = jax.jit(jax.value_and_grad(loss, 1)).lower(*shapes).compile()
    assert program.memory_analysis().temp_size_in_bytes < n * k * 4 / 4


def test_labels_of_euclidean_are_found_by_a_product():
    x, c = data(40, 3, 7)
    text = jax.jit(partial(dk.assign, distance=dk.euclidean)).lower(x, c).as_text()
    assert "dot_general" in text
    assert "tensor<40x7x3xf64>" not in text


def test_a_gradient_takes_the_distance_of_every_pair_once():
    def distance(x, y):
        return jnp.cbrt(jnp.sum((x - y) ** 2, -1))

    x, c = data(40, 3, 7)
    loss = partial(dk.kmeans_loss, distance=distance)
    for f in (loss, jax.value_and_grad(loss, (0, 1))):
        text = jax.jit(f).lower(x, c).as_text()
        assert len(re.findall(r"stablehlo\.cbrt .*tensor<40x7xf64>", text)) == 1


@pytest.mark.parametrize("k", [1, 2, 3, 17, 48, 49, 64, 65, 800])
def test_the_lowest_index_of_the_largest_score_is_found_and_is_in_range(k):
    rng = np.random.default_rng(k)
    score = rng.integers(4, size=(k, 300)).astype(float)
    score[:, :2] = -np.inf, np.inf
    score[:, 2] = np.nan
    score[rng.integers(k, size=50), np.arange(50, 100)] = np.nan
    best, index = jax.jit(best_of)(score)
    assert index.dtype == jnp.int32
    assert ((index >= 0) & (index < k)).all()
    clean = np.r_[0:2, 3:50, 100:300]
    np.testing.assert_array_equal(index[clean], score.argmax(0)[clean])
    np.testing.assert_array_equal(best[clean], score.max(0)[clean])


@pytest.mark.parametrize("k", [4, 24, 60])
def test_a_loop_of_gradients_by_a_distance_compiles(k):
    # Where a reducer calls a function, jaxlib 0.10.2 ends the process.
    def half(x, y):
        return 0.5 * dk.squared_euclidean(x, y)

    x, c = data(80, 3, k)
    settings = {"optimizer": optax.sgd(0.1), "max_steps": 2, "derivative": "none"}
    found = dk.fit(x, c, distance=half, **settings)
    expected = dk.fit(x, c, **settings | {"optimizer": optax.sgd(0.05)})
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-12)
