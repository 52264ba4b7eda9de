"""The estimator: scikit-learn's checks, its results, and every argument beyond."""

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import polars as pl
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.cluster import KMeans as Theirs
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import diffkm_jax as dk
from diffkm_jax import _by_name
from diffkm_jax._checks import as_tree
from diffkm_jax.cluster import KMeans, _given
from diffkm_jax.distances._forms import form_of

N, D, K = 200, 3, 4
X, TRUE, CENTERS = make_blobs(
    N, D, centers=K, cluster_std=1.5, random_state=0, return_centers=True
)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 2, N)
# Rows of the data, so that a fit takes some steps.
START = X[[0, 1, 2, 4]]

# A start is drawn among other rows where rows are repeated: in scikit-learn, which
# expects the same failures of its own KMeans, as here.
DRAWN = "a row that is repeated is another draw than one of twice the weight"
FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": DRAWN,
    "check_sample_weight_equivalence_on_sparse_data": DRAWN,
}
# These two read a tag of classifiers of whatever has predict_proba and takes sparse
# data, and find that a clusterer has none.
MEMBERS = "what has predict_proba is taken for a classifier, of a number of classes"
MORE = {
    "check_estimator_sparse_array": MEMBERS,
    "check_estimator_sparse_matrix": MEMBERS,
}


@pytest.fixture
def promoting():
    """optax promotes dtypes inside."""
    with jax.numpy_dtype_promotion("standard"):
        yield


OF_OPTAX = pytest.mark.usefixtures("promoting")


@parametrize_with_checks(
    [
        KMeans(n_clusters=3),
        KMeans(n_clusters=3, temperature=1.0, max_iter=20),
        KMeans(n_clusters=3, batch_size=10, max_iter=20),
    ],
    expected_failed_checks=lambda of: FAILURES | (MORE if of.temperature else {}),
)
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def assert_same(ours, theirs, rtol):
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol)
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol)
    assert ours.n_iter_ == theirs.n_iter_


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("settings", [{}, {"tol": 0.0}, {"tol": 0.1}, {"max_iter": 2}])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 2e-5)])
def test_from_the_same_start_it_is_scikit_learns(dtype, rtol, settings, weights):
    x = X.astype(dtype)
    ours, theirs = (
        model(K, init=START, n_init=1, **settings).fit(x, sample_weight=weights)
        for model in (KMeans, Theirs)
    )
    assert theirs.n_iter_ >= 2
    assert_same(ours, theirs, rtol)
    new = np.random.default_rng(1).normal(size=(20, D)).astype(dtype)
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))
    np.testing.assert_allclose(
        ours.transform(new), theirs.transform(new), rtol=10 * rtol
    )
    np.testing.assert_allclose(
        ours.score(new, sample_weight=WEIGHTS[:20]),
        theirs.score(new, sample_weight=WEIGHTS[:20]),
        rtol=rtol,
    )


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("float64", "float64"),
        ("float32", "float32"),
        ("float16", "float64"),
        ("int32", "float64"),
    ],
)
def test_dtypes_are_those_of_scikit_learn_whatever_jax_is_set_to(given, found, x64):
    x = (4 * X).astype(given)
    with jax.enable_x64(x64):
        model = KMeans(K, random_state=0).fit(x)
        arrays = [model.cluster_centers_, model.transform(x)]
        assert jax.config.jax_enable_x64 == x64
        labels = model.predict(x)
    assert [a.dtype for a in arrays] == [found, found]
    theirs = Theirs(K, random_state=0, n_init=1).fit(x)
    assert theirs.cluster_centers_.dtype == found
    assert type(model.inertia_) is float
    np.testing.assert_array_equal(labels, model.labels_)
    assert labels.dtype == np.int32


@pytest.mark.parametrize("settings", [{}, {"init": "random"}, {"batch_size": 50}])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(settings):
    fits = [
        KMeans(8, n_init=2, max_iter=3, random_state=seed, **settings).fit(X)
        for seed in (0, 0, np.random.RandomState(0), 1)
    ]
    first, again, state, other = (fit.cluster_centers_ for fit in fits)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, state)
    assert not np.array_equal(first, other)


def test_the_data_are_not_written_to_nor_the_start():
    x, start = X.copy(), START.copy()
    for array in (x, start):
        array.setflags(write=False)
    model = KMeans(K, init=start, n_init=1, copy_x=False).fit(x)
    np.testing.assert_array_equal(x, X)
    assert model.cluster_centers_.flags.writeable
    assert model.labels_.flags.writeable
    assert not np.shares_memory(model.cluster_centers_, start)


def test_lloyd_and_elkan_are_one_program():
    fits = [KMeans(K, init=START, algorithm=a).fit(X) for a in ("lloyd", "elkan")]
    np.testing.assert_array_equal(*(fit.cluster_centers_ for fit in fits))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_of_several_fits_that_of_the_least_loss_is_kept(init):
    many = KMeans(8, init=init, n_init=5, max_iter=1, random_state=3).fit(X)
    random = np.random.RandomState(3)
    alone = [
        KMeans(8, init=init, n_init=1, max_iter=1, random_state=random).fit(X)
        for _ in range(5)
    ]
    losses = [fit.inertia_ for fit in alone]
    assert len(set(losses)) == 5
    assert many.inertia_ == min(losses)


@pytest.mark.parametrize(
    ("init", "number"),
    [
        ("k-means++", 1),
        ("random", 10),
        (START, 1),
        (lambda X, k, random_state: X[:k], 10),
    ],
)
def test_the_number_of_fits_by_itself_is_scikit_learns(init, number):
    for model in (KMeans, Theirs):
        assert model(K, init=init).fit(X)._n_init == number


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_rows_of_weight_zero_are_not_drawn_as_a_start(init):
    weights = np.where(np.arange(N) % 2 == 0, 0, WEIGHTS)
    drawn = KMeans(20, init=init, max_iter=1, tol=1e9, random_state=0)
    drawn.fit(X, sample_weight=weights)
    zeroed = X.copy()
    zeroed[::2] = 1e6
    again = clone(drawn).fit(zeroed, sample_weight=weights)
    np.testing.assert_array_equal(drawn.cluster_centers_, again.cluster_centers_)


def test_a_function_is_given_the_data_the_number_and_a_random_state():
    seen = []

    def start(x, k, random_state):
        seen.append((x, k, random_state))
        return x[random_state.permutation(len(x))[:k]].tolist()

    random = np.random.RandomState(0)
    KMeans(K, init=start, n_init=2, random_state=random).fit(X)
    np.testing.assert_array_equal(seen[0][0], X)
    assert [k for _, k, _ in seen] == [K, K]
    assert all(state is random for *_, state in seen)


def test_an_empty_cluster_takes_the_farthest_point():
    start = np.vstack([X[:3], [[1e3] * D]])
    ours, theirs = (m(K, init=start, n_init=1).fit(X) for m in (KMeans, Theirs))
    assert len(set(ours.labels_)) == K
    assert_same(ours, theirs, 1e-12)


# What scikit-learn warns of -------------------------------------------------------


def test_fewer_clusters_than_asked_for_are_warned_of():
    x = np.array([[0.0], [0.0], [1.0]])
    message = r"distinct clusters \(2\) found smaller than n_clusters \(3\)"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        KMeans(3, random_state=0).fit(x)
    assert caught[0].filename == __file__
    with pytest.warns(ConvergenceWarning, match=r"or to the temperature"):
        KMeans(3, random_state=0, temperature=0.1).fit(x)


def test_several_fits_from_one_start_are_warned_of():
    with pytest.warns(RuntimeWarning, match=r"performing only one init") as caught:
        KMeans(K, init=START, n_init=3).fit(X)
    assert caught[0].filename == __file__


def test_elkan_of_one_cluster_is_warned_of():
    with pytest.warns(RuntimeWarning, match=r"'elkan' doesn't make sense") as caught:
        KMeans(1, algorithm="elkan").fit(X)
    assert caught[0].filename == __file__


def test_the_limit_of_steps_is_no_warning_but_a_flag():
    model = KMeans(K, init=START, max_iter=1).fit(X)
    assert model.result_.flags == dk.Status.MAX_STEPS
    assert model.n_iter_ == 1


# Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n_clusters": 0}, r"'n_clusters' parameter"),
        ({"n_clusters": N + 1}, r"n_samples=200 should be >= n_clusters=201"),
        ({"init": "kmeans"}, r"'init' parameter"),
        ({"init": X[:2]}, r"centers \(2, 3\) does not match the number of clusters 4"),
        ({"init": X[:4, :2]}, r"does not match the number of features of the data 3"),
        ({"init": lambda x, k, random_state: x[:2]}, r"the number of clusters 4"),
        ({"init": np.full((4, 3), np.nan)}, r"contains NaN"),
        ({"n_init": 0}, r"'n_init' parameter"),
        ({"max_iter": 0}, r"'max_iter' parameter"),
        ({"tol": -1.0}, r"'tol' parameter"),
        ({"algorithm": "full"}, r"'algorithm' parameter"),
        ({"optimizer": "rmsprop"}, r"'optimizer' parameter"),
        ({"optimizer": optax.adam}, r"'optimizer' parameter"),
        ({"distance": "chebyshev"}, r"'distance' parameter"),
        ({"temperature": 0.0}, r"'temperature' parameter"),
        ({"batch_size": 0}, r"'batch_size' parameter"),
        ({"distance": "manhattan"}, r"^optimizer must .*'adam'.* None and manhattan$"),
        ({"distance": "euclidean", "optimizer": "ema"}, r"^optimizer must .*'ema' and"),
        ({"distance": "kl_divergence"}, r"^X must .* in row 0"),
        ({"random_state": "seed"}, r"'random_state' parameter"),
    ],
)
def test_an_argument_out_of_range_is_refused(settings, match):
    x = X.copy()
    x[0] = -1
    with pytest.raises(ValueError, match=match):
        KMeans(**{"n_clusters": K, "n_init": 1} | settings).fit(x)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (-WEIGHTS, r"sample_weight must not be negative, got -1\.9.* in row"),
        (0 * WEIGHTS, r"(?i)sample.weight.*zero"),
        (WEIGHTS[1:], r"sample_weight.shape"),
        (np.full(N, np.nan), r"contains NaN"),
    ],
)
def test_weights_out_of_range_are_refused(weights, match):
    with pytest.raises(ValueError, match=match):
        KMeans(K).fit(X, sample_weight=weights)


def test_rows_outside_the_domain_are_refused_wherever_they_come():
    model = KMeans(K, distance="cosine", random_state=0).fit(X)
    zero = np.vstack([X[:2], np.zeros((1, D))])
    for method in ("predict", "transform", "score", "partial_fit", "fit"):
        with pytest.raises(ValueError, match=r"^X must .* in row 2"):
            getattr(clone(model).fit(X).set_params(n_clusters=2), method)(zero)
    start = START.copy()
    start[1] = 0
    with pytest.raises(ValueError, match=r"^init must .* in row 1"):
        clone(model).set_params(init=start).fit(X)


def test_a_fit_that_ends_in_infinity_is_an_error():
    with pytest.raises(ValueError, match=r"NON_FINITE"):
        KMeans(K, optimizer=optax.sgd(1e300), init=START).fit(X)
    with pytest.raises(ValueError, match=r"NON_FINITE"):
        KMeans(K, init=1e180 * START).fit(1e180 * X)


def test_a_distance_that_is_negative_is_an_error():
    distance = dk.mahalanobis(-jnp.eye(D))
    with pytest.raises(ValueError, match=r"distance must .* Mahalanobis.*DOMAIN"):
        KMeans(K, distance=distance, init=START).fit(X)


def test_nothing_is_predicted_before_a_fit():
    for method in ("predict", "transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(KMeans(K), method)(X)


# Beyond scikit-learn --------------------------------------------------------------


@OF_OPTAX
@pytest.mark.parametrize("name", ["newton", "lbfgs", "adam", "sgd"])
def test_every_optimizer_finds_the_clusters(name):
    model = KMeans(K, init=CENTERS + 1, optimizer=name, max_iter=2000).fit(X)
    best = KMeans(K, init=CENTERS + 1).fit(X)
    np.testing.assert_allclose(model.inertia_, best.inertia_, rtol=1e-3)


@OF_OPTAX
def test_an_optimizer_by_its_name_is_that_of_optax_in_every_fit():
    rate = 0.05 * np.sqrt(X.var(axis=0).mean())
    by_name, given = (
        KMeans(K, init=START, optimizer=optimizer).fit(X)
        for optimizer in ("adam", optax.adam(rate))
    )
    assert by_name.n_iter_ == given.n_iter_
    np.testing.assert_allclose(by_name.cluster_centers_, given.cluster_centers_)


@OF_OPTAX
def test_the_rate_of_a_name_is_of_points_where_the_distance_takes_them():
    fits = [
        KMeans(K, init=CENTERS + 1, distance="cosine", optimizer="adam").fit(scale * X)
        for scale in (1, 1000)
    ]
    centers = [fit.cluster_centers_ for fit in fits]
    np.testing.assert_allclose(*centers, rtol=1e-9)


def test_descent_needs_a_rate_of_your_own_where_none_is_stable():
    model = KMeans(K, distance="kl_divergence", optimizer="sgd")
    with pytest.raises(ValueError, match=r"^optimizer must .* under kl_divergence,"):
        model.fit(abs(X))


@pytest.mark.parametrize("name", _by_name.DISTANCES)
def test_names_are_those_of_the_distances_that_have_means_or_not(name):
    distance = _by_name.distance_of(name)
    has_means = form_of(as_tree(distance)) is not None
    assert (distance.__name__, has_means) == (name, _by_name.DISTANCES[name])


@pytest.mark.parametrize("name", ["macqueen", "ema"])
def test_averages_over_batches_find_the_clusters(name):
    model = KMeans(K, init=CENTERS + 1, optimizer=name, batch_size=100, max_iter=400)
    best = KMeans(K, init=CENTERS + 1).fit(X)
    np.testing.assert_allclose(model.fit(X).inertia_, best.inertia_, rtol=0.02)


def test_numbers_of_rows_share_programs_and_change_no_result(monkeypatch):
    monkeypatch.setattr(_given, "BLOCK", D * 128)  # 64 rows, in fact, and more blocks.
    model = KMeans(K, init=START, temperature=2.0).fit(X)
    whole = model.predict(X), model.transform(X), model.predict_proba(X)
    for n in (1, 5, 64, 65, 100, 127, 128, 129, N):
        for found, of_all in zip(
            (model.predict(X[:n]), model.transform(X[:n]), model.predict_proba(X[:n])),
            whole,
            strict=True,
        ):
            np.testing.assert_array_equal(found, of_all[:n])
        cost = np.sum(WEIGHTS[:n] * np.min(whole[1][:n] ** 2, axis=1))
        score = model.score(X[:n], sample_weight=WEIGHTS[:n])
        np.testing.assert_allclose(-score, cost, rtol=1e-12)
    assert len({len(_given.padded(np.zeros((n, 1)))) for n in range(1, 4097)}) == 68


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e-19), ("float64", 1e-153)])
def test_squares_that_are_rounded_to_zero_are_refused(dtype, scale):
    small = (scale * X).astype(dtype)
    with pytest.raises(ValueError, match=r"^X must be in units .* multiply it by"):
        KMeans(K, init=small[:K]).fit(small)
    with pytest.raises(ValueError, match=r"^X must be in units"):
        KMeans(K, init=small[:K]).partial_fit(small)
    cosine = KMeans(K, init=X[:K], distance="cosine").fit(X.astype(dtype))
    assert np.isfinite(cosine.inertia_)
    many = KMeans(2, init=[[0.0], [1.0]]).fit(np.array([[0.0], [1.0]] * 3, dtype))
    assert many.inertia_ == 0


def test_a_zero_that_is_infinitely_far_is_named():
    counts = np.array([[0.0, 1.0], [0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    model = KMeans(2, init=counts[:2], distance="kl_divergence")
    with pytest.raises(ValueError, match=r"^X must be above 0 under kl_divergence"):
        model.fit(counts)


def test_a_temperature_that_came_after_the_fit_is_named():
    model = KMeans(K, init=START).fit(X).set_params(temperature=2.0)
    with pytest.raises(ValueError, match=r"^temperature must be given before fit"):
        model.predict_proba(X)


def test_traced_data_are_refused():
    with pytest.raises(TypeError, match=r"^X must not be traced, .* diffkm_jax.fit"):
        jax.jit(KMeans(K).fit_predict)(jnp.asarray(X))


def test_centroids_that_are_given_are_those_that_a_batch_moves():
    model = KMeans(K, init=START).fit(X[:100])
    counts = model.result_.counts
    model.cluster_centers_ = np.zeros((K, D))
    assert model.result_.centroids.any()
    assert (model.predict(X[:1]) == 0).all()
    model.partial_fit(X[100:])
    # All are as near to the first.
    mean = X[100:].sum(axis=0) / (counts[0] + 100)
    np.testing.assert_allclose(model.cluster_centers_[0], mean, rtol=1e-12)


@OF_OPTAX
def test_another_optimizer_than_before_is_refused_by_a_batch():
    model = KMeans(K, init=START).partial_fit(X).set_params(optimizer="adam")
    with pytest.raises(ValueError, match=r"^optimizer must be, .* init=model"):
        model.partial_fit(X)


def test_a_seed_means_the_same_whatever_keys_jax_makes():
    plain = KMeans(K, random_state=0).fit(X)
    with jax.default_prng_impl("rbg"):
        other = KMeans(K, random_state=0).fit(X)
    np.testing.assert_array_equal(plain.cluster_centers_, other.cluster_centers_)


def test_cosine_is_spherical_k_means():
    model = KMeans(K, distance="cosine", random_state=0).fit(X)
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1)
    expected = dk.pairwise(X, model.cluster_centers_, distance=dk.cosine)
    np.testing.assert_allclose(model.transform(X), expected, atol=1e-12)
    np.testing.assert_array_equal(model.predict(3 * X), model.labels_)
    np.testing.assert_allclose(model.inertia_, np.min(expected, axis=1).sum())


DISTANCES = {
    "kl_divergence": {},
    "itakura_saito": {},
    "euclidean": {"optimizer": "adam"},
    "manhattan": {"optimizer": "adam"},
}


@OF_OPTAX
@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_by_its_name_is_that_of_the_library(name):
    x = np.exp(X / 4)
    model = KMeans(K, distance=name, random_state=0, **DISTANCES[name]).fit(x)
    distances = dk.pairwise(x, model.cluster_centers_, distance=getattr(dk, name))
    np.testing.assert_allclose(model.transform(x), distances, rtol=1e-12)
    np.testing.assert_allclose(model.inertia_, np.min(distances, axis=1).sum())
    np.testing.assert_array_equal(model.labels_, np.argmin(distances, axis=1))
    assert model.score(x) == pytest.approx(-model.inertia_)


def test_a_distance_that_holds_arrays():
    scale = jnp.array([1.0, 4.0, 0.25])
    model = KMeans(K, distance=dk.mahalanobis(jnp.diag(scale)), init=START).fit(X)
    root = np.sqrt(np.asarray(scale))
    same = KMeans(K, init=START * root).fit(X * root)
    np.testing.assert_array_equal(model.labels_, same.labels_)
    np.testing.assert_allclose(model.transform(X), same.transform(X * root) ** 2)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.labels_)


def test_a_temperature_gives_memberships():
    model = KMeans(K, temperature=3.0, init=START).fit(X)
    p = model.predict_proba(X)
    logits = -(model.transform(X) ** 2) / 3
    np.testing.assert_allclose(p, jax.nn.softmax(logits), rtol=1e-9)
    np.testing.assert_array_equal(p.argmax(axis=1), model.labels_)
    free = -3 * np.log(np.exp(logits).sum(axis=1)).sum()
    np.testing.assert_allclose(model.result_.loss, free)
    np.testing.assert_allclose(model.inertia_, (model.transform(X) ** 2).min(1).sum())
    assert model.result_.loss < model.inertia_
    expected = dk.fit(X, START, temperature=3.0, empty="farthest").centroids
    np.testing.assert_allclose(model.cluster_centers_, expected)


def test_a_schedule_anneals_and_memberships_are_of_its_end():
    schedule = optax.exponential_decay(100.0, 5, 0.5, end_value=2.0)
    model = KMeans(K, temperature=schedule, init="random", n_init=1, random_state=0)
    model.fit(X)
    assert model.result_.temperature == 2
    logits = -(model.transform(X) ** 2) / 2
    np.testing.assert_allclose(model.predict_proba(X), jax.nn.softmax(logits))


def test_without_a_temperature_there_are_no_memberships():
    assert not hasattr(KMeans(K), "predict_proba")
    assert hasattr(KMeans(K, temperature=1.0), "predict_proba")
    with pytest.raises(AttributeError, match=r"predict_proba"):
        KMeans(K).fit(X).predict_proba(X)


def test_batches_are_those_of_fit_minibatch():
    model = KMeans(K, init=START, batch_size=50, max_iter=30, random_state=0).fit(X)
    seed = np.random.RandomState(0).randint(2**31 - 1)
    expected = dk.fit_minibatch(
        jax.random.key(seed), X, START, num_steps=30, batch_size=50
    )
    np.testing.assert_array_equal(model.cluster_centers_, expected.centroids)
    assert model.n_iter_ == 30
    assert model.inertia_ == float(expected.loss)


# One batch after another ----------------------------------------------------------


def test_batches_one_after_another_are_those_of_mini_batch_k_means():
    settings = {"init": CENTERS, "n_init": 1, "random_state": 0}
    ours, theirs = KMeans(K, **settings), MiniBatchKMeans(K, **settings)
    for rows in np.split(np.arange(N), 4):
        ours.partial_fit(X[rows], sample_weight=WEIGHTS[rows])
        theirs.partial_fit(X[rows], sample_weight=WEIGHTS[rows])
        np.testing.assert_allclose(
            ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-9
        )
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        np.testing.assert_allclose(ours.inertia_, theirs.inertia_)
    assert ours.n_iter_ == 4


def test_going_on_after_a_fit_averages_with_all_of_its_points():
    model = KMeans(K, init=CENTERS).fit(X[:150])
    counts, centers = model.result_.counts, model.cluster_centers_.copy()
    labels = model.predict(X[150:])
    model.partial_fit(X[150:])
    for j in range(K):
        mine = X[150:][labels == j]
        mean = (counts[j] * centers[j] + mine.sum(axis=0)) / (counts[j] + len(mine))
        np.testing.assert_allclose(model.cluster_centers_[j], mean)


@OF_OPTAX
def test_going_on_keeps_the_state_of_an_optimizer_through_a_pickle():
    model = KMeans(K, init=START, optimizer="adam", max_iter=3)
    for _ in range(2):
        model = pickle.loads(pickle.dumps(model.partial_fit(X)))
    whole = clone(model).set_params(max_iter=2).fit(X)
    np.testing.assert_allclose(model.cluster_centers_, whole.cluster_centers_)
    fitted = clone(model).fit(X).partial_fit(X)
    longer = clone(model).set_params(max_iter=4, tol=0.0).fit(X)
    np.testing.assert_allclose(fitted.cluster_centers_, longer.cluster_centers_)


def test_clusters_of_few_points_are_set_to_rows_of_a_batch():
    far = np.vstack([START[:3], [[1e4] * D]])
    model = KMeans(K, init=far, random_state=0).partial_fit(X)
    assert np.abs(model.cluster_centers_).max() < 100


def test_a_batch_may_have_fewer_rows_than_clusters_but_for_the_first():
    model = KMeans(K, init=CENTERS)
    with pytest.raises(ValueError, match=r"n_samples=2 should be >= n_clusters=4"):
        model.partial_fit(X[:2])
    model.partial_fit(X).partial_fit(X[:2]).partial_fit(X[:1].astype(np.float32))
    assert model.n_iter_ == 3
    assert model.cluster_centers_.dtype == np.float64
    assert model.labels_.shape == (1,)


def test_a_fit_after_batches_begins_anew():
    model = KMeans(K, init=START)
    expected = clone(model).fit(X)
    model.partial_fit(X[:50]).fit(X)
    np.testing.assert_array_equal(model.cluster_centers_, expected.cluster_centers_)
    assert model.n_iter_ == expected.n_iter_


# Among scikit-learn's tools -------------------------------------------------------


@pytest.mark.parametrize("make", [sparse.csr_array, sparse.coo_matrix])
def test_sparse_data_are_the_dense_ones(make, monkeypatch):
    monkeypatch.setattr("diffkm_jax.cluster._given.BLOCK", 30 * D)
    x = np.where(np.abs(X) < 3, 0, X)
    ours, dense = (KMeans(K, random_state=0).fit(a) for a in (make(x), x))
    np.testing.assert_array_equal(ours.cluster_centers_, dense.cluster_centers_)
    np.testing.assert_array_equal(ours.predict(make(x)), dense.labels_)
    np.testing.assert_array_equal(ours.transform(make(x)), dense.transform(x))
    score = ours.score(make(x), sample_weight=WEIGHTS)
    np.testing.assert_allclose(score, dense.score(x, sample_weight=WEIGHTS))
    batch = clone(ours).partial_fit(make(x)).cluster_centers_
    np.testing.assert_array_equal(batch, clone(ours).partial_fit(x).cluster_centers_)


def test_a_sparse_start_is_the_dense_one():
    ours, dense = (
        KMeans(K, init=start).fit(X)
        for start in (lambda x, k, random_state: sparse.csr_array(START), START)
    )
    np.testing.assert_array_equal(ours.cluster_centers_, dense.cluster_centers_)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_data_frames_give_their_names_and_take_the_output(frame):
    columns = ["a", "b", "c"]
    table = frame(dict(zip(columns, X.T, strict=True)))
    model = KMeans(K, init=START, n_init=1).fit(table)
    assert model.feature_names_in_.tolist() == columns
    assert model.n_features_in_ == D
    np.testing.assert_array_equal(model.labels_, KMeans(K, init=START).fit(X).labels_)
    kind = {pd.DataFrame: "pandas", pl.DataFrame: "polars"}[frame]
    model.set_output(transform=kind)
    for found in (model.transform(table), model.fit_transform(table)):
        assert isinstance(found, frame)
        assert [*found.columns] == [f"kmeans{i}" for i in range(K)]
        assert [*found.columns] == model.get_feature_names_out().tolist()
    with pytest.raises(ValueError, match=r"feature names should match"):
        model.predict(frame(dict(zip("abd", X.T, strict=True))))


@OF_OPTAX
@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adam"}, {"optimizer": "lbfgs"}, {"temperature": 2.0}],
)
def test_a_pickle_predicts_and_goes_on(settings):
    model = KMeans(K, init=START, **settings).fit(X)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.labels_)
    assert isinstance(again.result_, dk.FitResult)
    assert again.result_.flags == model.result_.flags
    assert all(isinstance(a, np.ndarray) for a in jax.tree.leaves(model.result_))
    if_gone_on = [m.partial_fit(X[:100]).cluster_centers_ for m in (model, again)]
    np.testing.assert_array_equal(*if_gone_on)


@OF_OPTAX
def test_a_clone_has_the_arguments_and_nothing_else():
    given = {"optimizer": optax.adam(0.1), "distance": dk.cosine, "batch_size": 9}
    model = KMeans(K, **given).fit(X)
    copy = clone(model)
    assert copy.get_params().keys() == model.get_params().keys()
    assert copy.distance is dk.cosine
    assert copy.optimizer == given["optimizer"]
    assert not hasattr(copy, "cluster_centers_")
    assert "optimizer=" in repr(copy)


def test_in_a_pipeline_and_a_grid_search():
    pipeline = make_pipeline(StandardScaler(), KMeans(random_state=0))
    grid = {
        "kmeans__n_clusters": [2, K],
        "kmeans__distance": ["squared_euclidean", "cosine"],
    }
    search = GridSearchCV(pipeline, grid, cv=3).fit(X)
    assert search.best_params_["kmeans__n_clusters"] == K
    np.testing.assert_array_equal(search.predict(X), search.best_estimator_[-1].labels_)


def test_weights_are_routed_where_they_are_asked_for():
    with sklearn.config_context(enable_metadata_routing=True):
        model = KMeans(K, init=START).set_fit_request(sample_weight=True)
        pipeline = make_pipeline(model).fit(X, sample_weight=WEIGHTS)
        plain = KMeans(K, init=START).fit(X, sample_weight=WEIGHTS)
        np.testing.assert_array_equal(
            pipeline[-1].cluster_centers_, plain.cluster_centers_
        )
        for name in ("fit", "partial_fit", "score"):
            assert hasattr(model, f"set_{name}_request")
        with pytest.raises(ValueError, match=r"sample_weight.* not explicitly"):
            make_pipeline(KMeans(K, init=START)).fit(X, sample_weight=WEIGHTS)


def test_weights_are_taken_by_every_method_that_fits():
    model = KMeans(K, init=START)
    fitted = clone(model).fit(X, sample_weight=WEIGHTS)
    labels = clone(model).fit_predict(X, sample_weight=WEIGHTS)
    np.testing.assert_array_equal(labels, fitted.labels_)
    distances = clone(model).fit_transform(X, sample_weight=WEIGHTS)
    np.testing.assert_array_equal(distances, fitted.transform(X))
    assert fitted.score(X, sample_weight=WEIGHTS) == pytest.approx(-fitted.inertia_)
    once = clone(model).partial_fit(X, sample_weight=WEIGHTS)
    unweighted = clone(model).partial_fit(X)
    assert not np.array_equal(once.cluster_centers_, unweighted.cluster_centers_)


def test_the_tags_say_what_it_takes():
    tags = KMeans().__sklearn_tags__()
    assert tags.input_tags.sparse
    assert tags.estimator_type == "clusterer"
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]


# What is printed ------------------------------------------------------------------


def test_the_steps_are_printed_after_each_fit(capsys):
    model = KMeans(K, n_init=2, init="random", random_state=0, verbose=1).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("Initialization complete") == 2
    assert sum("center shift is within tolerance" in line for line in lines) == 2
    first = float(model.result_.history[0])
    assert f"Iteration 0, inertia {first}" in lines
    KMeans(K, init=START, verbose=1, tol=0).fit(X)
    assert "strict convergence" in capsys.readouterr().out
    KMeans(K, init=START, verbose=1, max_iter=1, temperature=1.0).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("Iteration 0, free energy ")
    assert lines[-1] == "Ended at iteration 0: MAX_STEPS"
    KMeans(K, init=START, verbose=1, max_iter=1, batch_size=20).fit(X)
    assert "Iteration 0, inertia by its batch" in capsys.readouterr().out
    KMeans(K, init=START).fit(X)
    assert capsys.readouterr().out == ""


def test_without_scikit_learn_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['sklearn'] = None; import diffkm_jax;"
        "import diffkm_jax.cluster"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert (
        'ImportError: diffkm_jax.cluster needs scikit-learn: pip install "diffkm'
        in (run.stderr)
    )
