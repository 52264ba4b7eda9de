"""Initializers: rows of the data, the right law, weights and duplicates honored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(60, 3)))
KEYS = jax.random.split(jax.random.key(0), 2000)
BOTH = [dk.random_points, dk.kmeans_plus_plus]


def rows_of(centroids, points):
    """For every centroid the index of the point it equals."""
    equal = (np.asarray(centroids)[:, None] == np.asarray(points)[None]).all(-1)
    assert equal.any(1).all()
    return equal.argmax(1)


@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("initializer", BOTH)
def test_centroids_are_different_rows_of_the_data(initializer, k):
    for key in KEYS[:3]:
        assert len(set(rows_of(initializer(key, X, k), X))) == k


@pytest.mark.parametrize("initializer", BOTH)
def test_the_same_key_draws_the_same_and_another_key_others(initializer):
    a, b = initializer(KEYS[0], X, 5), initializer(KEYS[0], X, 5)
    np.testing.assert_array_equal(a, b)
    assert (initializer(KEYS[1], X, 5) != a).any()


@pytest.mark.parametrize("initializer", BOTH)
def test_rows_of_weight_zero_are_never_drawn_even_of_nan(initializer):
    w = jnp.ones(60).at[::2].set(0)
    x = X.at[::2].set(jnp.nan)
    drawn = jax.vmap(lambda key: initializer(key, x, 5, weights=w))(KEYS[:200])
    assert jnp.isfinite(drawn).all()


@pytest.mark.parametrize("initializer", BOTH)
def test_fewer_weighted_rows_than_centroids_gives_no_nan(initializer):
    w = jnp.zeros(60).at[:3].set(1)
    x = X.at[3:].set(jnp.nan)
    assert jnp.isfinite(initializer(KEYS[0], x, 5, weights=w)).all()


@pytest.mark.parametrize("initializer", BOTH)
def test_the_first_row_is_drawn_in_proportion_to_its_weight(initializer):
    x, w = X[:4], jnp.array([1.0, 2.0, 3.0, 4.0])
    first = jax.vmap(lambda key: initializer(key, x, 1, weights=w)[0])(KEYS)
    share = np.bincount(rows_of(first, x), minlength=4) / len(KEYS)
    # Three standard deviations of a share of 2000 draws.
    np.testing.assert_allclose(share, w / 10, atol=3 * 0.5 / np.sqrt(len(KEYS)))


def test_plain_kmeans_plus_plus_draws_by_weight_times_squared_distance():
    x = jnp.array([[0.0], [1.0], [3.0]])
    w = jnp.array([1.0, 2.0, 1.0])
    pairs = jax.vmap(
        lambda key: dk.kmeans_plus_plus(key, x, 2, weights=w, num_candidates=1)[:, 0]
    )(KEYS)
    after_first = np.asarray(pairs[pairs[:, 0] == 0][:, 1])
    share = (after_first == 3).mean()
    expected = 9 / (2 * 1 + 9)
    deviation = np.sqrt(expected * (1 - expected) / len(after_first))
    assert abs(share - expected) < 3 * deviation


def test_greedy_seeding_is_better_than_plain_and_plain_than_random():
    def mean_loss(initializer):
        return jax.vmap(lambda key: dk.kmeans_loss(X, initializer(key)))(
            KEYS[:200]
        ).mean()

    greedy = mean_loss(lambda key: dk.kmeans_plus_plus(key, X, 8))
    plain = mean_loss(lambda key: dk.kmeans_plus_plus(key, X, 8, num_candidates=1))
    assert greedy < plain < mean_loss(lambda key: dk.random_points(key, X, 8))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_every_different_row_is_found_among_many_copies(dtype):
    few = (RNG.normal(size=(6, 3)) + 100).astype(dtype)
    x = jnp.asarray(few[RNG.integers(0, 6, 3000)])
    for key in KEYS[:10]:
        assert len(np.unique(dk.kmeans_plus_plus(key, x, 6), axis=0)) == 6
    repeated = dk.kmeans_plus_plus(KEYS[0], x, 9)
    assert len(np.unique(repeated, axis=0)) == 6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_are_nearer_than_rounding_of_a_product_are_told_apart(dtype):
    # In float32 x·y of these rows has no digit of their distance.
    far = np.array([[0.0, 0.0], [1.0, 1.0]])
    near = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) * 2.0**-14
    x = jnp.asarray((far[:, None] + near).reshape(-1, 2), dtype)
    for key in KEYS[:20]:
        assert len(set(rows_of(dk.kmeans_plus_plus(key, x, 6), x))) == 6


@pytest.mark.parametrize("initializer", BOTH)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_centroids_have_the_dtype_of_the_points(initializer, dtype):
    assert initializer(KEYS[0], X.astype(dtype), 4).dtype == dtype


@pytest.mark.parametrize("initializer", BOTH)
def test_the_gradient_is_that_of_a_gather(initializer):
    chosen = rows_of(initializer(KEYS[0], X, 4), X)
    gradient = jax.grad(lambda x: jnp.sum(initializer(KEYS[0], x, 4) ** 2))(X)
    expected = np.zeros_like(X)
    expected[chosen] = 2 * np.asarray(X)[chosen]
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("initializer", BOTH)
def test_a_key_means_the_same_rows_at_every_precision(initializer, weighted):
    rng = np.random.default_rng(0)
    x = rng.integers(-2000, 2000, (300, 2)).astype(np.float16)
    w = rng.integers(0, 9, 300).astype(np.float16)
    starts = []
    for dtype in (np.float16, np.float32, np.float64):
        weights = w.astype(dtype) if weighted else None
        start = initializer(jax.random.key(3), x.astype(dtype), 8, weights=weights)
        starts.append(np.float64(start))
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[1], starts[2])


@pytest.mark.parametrize("initializer", BOTH)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_weight_of_nan_gives_no_start(initializer, weight):
    w = jnp.full(60, weight).at[5].set(jnp.nan)
    assert jnp.isnan(initializer(KEYS[0], X, 4, weights=w)).all()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e19, -1e38])
def test_squared_distances_that_are_not_finite_give_no_start_but_at_weight_zero(bad):
    x = X.astype(jnp.float32).at[5, 1].set(bad)
    assert jnp.isnan(dk.kmeans_plus_plus(KEYS[0], x, 4)).all()
    w = jnp.ones(60).at[5].set(0)
    assert jnp.isfinite(dk.kmeans_plus_plus(KEYS[0], x, 4, weights=w)).all()
    result = dk.fit_restarts(KEYS[0], x, 4, num_restarts=2)
    assert dk.Status.NON_FINITE in result.flags


def test_candidates_of_k_means_parallel_count_for_the_points_nearest_to_them():
    """One of 100 points is far: it is always a candidate, and rarely the one drawn."""
    x = jnp.zeros((100, 1)).at[7].set(9.0)
    keys = jax.random.split(jax.random.key(0), 60)
    draw = jax.vmap(lambda key: dk.kmeans_parallel(key, x, 1)[0, 0])
    assert int((draw(keys) == 9).sum()) <= 4


def test_k_means_parallel_is_as_good_a_start_as_k_means_plus_plus():
    rng = np.random.default_rng(0)
    sizes = np.array([300, 100, 30, 10, 10, 5])
    centers = 20 * rng.normal(size=(6, 2))
    x = jnp.asarray(np.repeat(centers, sizes, axis=0) + rng.normal(size=(455, 2)))
    keys = jax.random.split(jax.random.key(1), 20)

    def losses(start, **options):
        found = jax.vmap(lambda key: start(key, x, 6, **options))(keys)
        return jax.vmap(lambda c: dk.kmeans_loss(x, c))(found)

    expected = losses(dk.kmeans_plus_plus).mean()
    assert losses(dk.kmeans_parallel).mean() < 1.2 * expected
    few = losses(dk.kmeans_parallel, num_rounds=2, oversampling=4).mean()
    assert few < 2 * expected < losses(dk.random_points).mean()


def test_what_k_means_parallel_cannot_be_given_is_said():
    x, key = jnp.zeros((9, 2)), jax.random.key(0)
    message = (
        r"^oversampling must be such that 2 rounds draw k = 9 rows or more, got 3$"
    )
    with pytest.raises(ValueError, match=message):
        dk.kmeans_parallel(key, x, 9, num_rounds=2, oversampling=3)
    for name in ("num_rounds", "oversampling", "block_size"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1"):
            dk.kmeans_parallel(key, x, 2, **{name: 0})
    assert jnp.isnan(dk.kmeans_parallel(key, x.at[3].set(jnp.nan), 2)).all()
