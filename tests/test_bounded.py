"""Hard fits with bounds on sizes: optimal, met exactly, monotone, differentiable."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from problems import DIGITS, start, status

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
C = X[:4] + 0.01


@pytest.mark.parametrize("seed", range(48))
def test_labels_are_of_least_cost_and_sizes_within_bounds(seed):
    x, c, low, high = sizes.problem(seed)
    costs = sizes.squares(x, c)
    labels = dk.assign_bounded(x, c, min_size=low, max_size=high)
    found = np.bincount(labels, minlength=len(c))
    assert (low <= found).all()
    assert (found <= high).all()
    total = costs[np.arange(len(x)), labels].sum()
    best = sizes.optimum(costs, low, high)
    np.testing.assert_allclose(total, best, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("k", [2, 5, 10])
def test_equal_sizes_are_the_assignment_problem_of_scipy(k):
    x, c = DIGITS[:100], start(k, k)
    labels = dk.assign_bounded(x, c, min_size=100 // k, max_size=100 // k)
    assert np.bincount(labels).tolist() == [100 // k] * k
    costs = sizes.squares(x, c)
    best = sizes.optimum_of_given(costs, np.full(k, 100 // k))
    total = costs[np.arange(100), labels].sum()
    np.testing.assert_allclose(total, best, rtol=1e-13)


def test_sizes_of_one_are_a_permutation_of_least_cost():
    x = RNG.normal(size=(12, 2))
    c = x[RNG.permutation(12)] + 0.3 * RNG.normal(size=(12, 2))
    labels = dk.assign_bounded(x, c, min_size=1, max_size=1)
    assert sorted(labels.tolist()) == list(range(12))
    costs = sizes.squares(x, c)
    best = sizes.optimum_of_given(costs, np.ones(12))
    np.testing.assert_allclose(costs[np.arange(12), labels].sum(), best, rtol=1e-12)


def test_without_bounds_that_hold_labels_are_the_nearest():
    every = dk.assign_bounded(X, C, min_size=0)
    np.testing.assert_array_equal(every, dk.assign(X, C))
    bounds = {"min_size": 2, "max_size": 39}
    np.testing.assert_array_equal(dk.assign_bounded(X, C, **bounds), dk.assign(X, C))


def test_by_default_no_cluster_is_empty():
    c = np.concatenate([C, C + 100])
    counts = np.bincount(dk.assign_bounded(X, c), minlength=8)
    assert counts.min() == 1
    result = dk.fit_bounded(X, c)
    assert status(result) == dk.Status.CONVERGED
    assert result.counts.min() >= 1
    empty = dk.fit_bounded(X, c, min_size=0)
    assert dk.Status.EMPTY_CLUSTER in status(empty)


@pytest.mark.parametrize("seed", range(16))
def test_the_loss_never_rises_and_sizes_are_met(seed):
    x, c, low, high = sizes.problem(seed)
    result = dk.fit_bounded(x, c, min_size=low, max_size=high, tol=0.0)
    history = np.asarray(result.history)
    assert (np.diff(history) <= 1e-12 * history[0]).all()
    assert dk.Status.CONVERGED in status(result)
    counts = np.bincount(result.labels, minlength=len(c))
    np.testing.assert_array_equal(counts, result.counts)
    assert ((low <= counts) & (counts <= high)).all()
    own = np.asarray(result.centroids)[result.labels]
    np.testing.assert_allclose(((x - own) ** 2).sum(), result.loss, rtol=1e-12)
    labels = dk.assign_bounded(x, result.centroids, min_size=low, max_size=high)
    total = sizes.squares(x, np.asarray(result.centroids))
    np.testing.assert_allclose(
        total[np.arange(len(x)), labels].sum(), result.loss, rtol=1e-10, atol=1e-12
    )


def test_without_bounds_that_hold_it_is_the_fit():
    ours, plain = dk.fit_bounded(DIGITS, start(0), min_size=1), dk.fit(DIGITS, start(0))
    assert int(ours.num_steps) == int(plain.num_steps)
    np.testing.assert_array_equal(ours.labels, plain.labels)
    for name in ("centroids", "loss", "counts", "history"):
        a, b = getattr(ours, name), getattr(plain, name)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8)


def test_every_step_is_optimal_on_digits():
    x, c = DIGITS[:200], start(3)
    result = dk.fit_bounded(x, c, min_size=20, max_size=20, max_steps=3, tol=0.0)
    losses = []
    for _ in range(4):
        costs = sizes.squares(x, c)
        losses.append(sizes.optimum_of_given(costs, np.full(10, 20)))
        labels = np.asarray(dk.assign_bounded(x, c, min_size=20, max_size=20))
        c = np.stack([x[labels == j].mean(0) for j in range(10)])
    np.testing.assert_allclose(result.history, losses, rtol=1e-12)
    assert int(result.num_steps) == 3
    assert status(result) == dk.Status.MAX_STEPS


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_never_rises_on_digits(seed):
    result = dk.fit_bounded(DIGITS, start(seed), min_size=179, max_size=180, tol=0.0)
    assert status(result) == dk.Status.CONVERGED
    history = np.asarray(result.history)
    assert (np.diff(history) <= 1e-12 * history[0]).all()
    counts = np.bincount(result.labels)
    assert ((counts == 179) | (counts == 180)).all()


DISTANCES = {
    "cosine": dk.cosine,
    "kl_divergence": dk.kl_divergence,
    "itakura_saito": dk.itakura_saito,
    "mahalanobis": dk.mahalanobis(jnp.diag(jnp.array([1.0, 4.0, 0.5]))),
    "bregman": dk.bregman(lambda v: jnp.sum(v**4)),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_other_distances(name):
    distance, x = DISTANCES[name], np.exp(X)
    c, bounds = x[:4] * 1.1, {"min_size": 8, "max_size": 12}
    labels = dk.assign_bounded(x, c, distance=distance, **bounds)
    costs = np.asarray(dk.pairwise(x, c, distance=distance))
    best = sizes.optimum(costs, np.full(4, 8), np.full(4, 12))
    total = costs[np.arange(40), labels].sum()
    np.testing.assert_allclose(total, best, rtol=1e-10)
    result = dk.fit_bounded(x, c, distance=distance, tol=0.0, **bounds)
    assert dk.Status.CONVERGED in status(result)
    assert (np.diff(result.history) <= 1e-12).all()
    means = np.stack([x[np.asarray(result.labels) == j].mean(0) for j in range(4)])
    if name == "cosine":
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        sums = [unit[np.asarray(result.labels) == j].sum(0) for j in range(4)]
        means = np.stack([s / np.linalg.norm(s) for s in sums])
    np.testing.assert_allclose(result.centroids, means, rtol=1e-7)


def test_infinite_distances_are_avoided_where_they_can_be():
    x = np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [3.0, 0.0]])
    c = np.array([[2.0, 0.0], [1.0, 1.0]])
    labels = dk.assign_bounded(x, c, distance=dk.kl_divergence, min_size=2, max_size=2)
    assert labels[2] == 1  # From the first it is infinitely far.
    forced = dk.fit_bounded(
        x, c, distance=dk.kl_divergence, min_size=[4, 0], max_size=4, max_steps=0
    )
    assert status(forced) & dk.Status.NON_FINITE


@pytest.mark.parametrize("option", [{}, {"weights": True}])
def test_the_jacobian_is_that_of_finite_differences(option):
    weights = np.ones(40)
    weights[[3, 7]] = 0
    options = {"weights": weights} if option else {}

    def outputs(x):
        found = dk.fit_bounded(x, C, min_size=9, max_size=11, tol=0.0, **options)
        return jnp.concatenate([found.centroids.ravel(), found.loss[None]])

    direction = RNG.normal(size=X.shape)
    _, slope = jax.jvp(outputs, (jnp.asarray(X),), (jnp.asarray(direction),))
    h = 1e-6
    ahead, behind = (outputs(X + s * direction) for s in (h, -h))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), atol=1e-7)
    reverse = jax.jacrev(outputs)(jnp.asarray(X))
    np.testing.assert_allclose(
        jnp.tensordot(reverse, direction), slope, rtol=1e-10, atol=1e-12
    )


def test_second_derivatives_are_those_of_the_clusters():
    def loss(x):
        return dk.fit_bounded(x, C, min_size=10, max_size=10, tol=0.0).loss

    labels = np.asarray(dk.fit_bounded(X, C, min_size=10, max_size=10).labels)
    same = (labels[:, None] == labels).astype(float)
    expected = 2 * (np.eye(40) - same / 10)
    hessian = jax.hessian(loss)(jnp.asarray(X))
    np.testing.assert_allclose(hessian[:, 0, :, 0], expected, atol=1e-12)


def test_derivatives_by_mode():
    def slope(derivative):
        def centroid(x):
            found = dk.fit_bounded(x, C, min_size=10, tol=0.0, derivative=derivative)
            return found.centroids.sum()

        return np.asarray(jax.grad(centroid)(jnp.asarray(X)))

    np.testing.assert_array_equal(slope("one_step"), slope("implicit"))
    assert np.abs(slope("implicit")).max() > 0.05
    np.testing.assert_array_equal(slope("none"), 0)


def test_rows_of_weight_zero_are_rows_removed_even_of_nan():
    weights = np.ones(40)
    weights[[0, 5, 39]] = 0
    x = X.copy()
    x[5] = np.nan
    x[39] = np.inf
    bounds = {"min_size": [9, 9, 9, 9], "max_size": 10}
    ours = dk.fit_bounded(x, C, weights=weights, **bounds)
    fewer = dk.fit_bounded(X[weights > 0], C, **bounds)
    assert status(ours) == dk.Status.CONVERGED
    np.testing.assert_allclose(ours.centroids, fewer.centroids, rtol=1e-12)
    np.testing.assert_allclose(ours.loss, fewer.loss, rtol=1e-12)
    np.testing.assert_array_equal(ours.labels[weights > 0], fewer.labels)
    gradient = jax.grad(lambda x: dk.fit_bounded(x, C, weights=weights, **bounds).loss)(
        jnp.asarray(x)
    )
    np.testing.assert_array_equal(gradient[np.array([0, 5, 39])], 0)
    assert np.isfinite(gradient).all()


def test_vmap_is_the_loop_and_jit_changes_nothing():
    x = RNG.normal(size=(5, 30, 2))
    low, high = np.array([0, 3, 5, 10, 2]), np.array([30, 15, 10, 10, 28])

    def fit(x, low, high):
        return dk.fit_bounded(x, x[:3], min_size=low, max_size=high, tol=0.0)

    many = jax.jit(jax.vmap(fit))(x, low, high)
    for i in range(5):
        one = fit(jnp.asarray(x[i]), jnp.asarray(low[i]), jnp.asarray(high[i]))
        np.testing.assert_array_equal(many.labels[i], one.labels)
        np.testing.assert_allclose(many.centroids[i], one.centroids, rtol=1e-12)
        assert many.num_steps[i] == one.num_steps
        assert many.status[i] == one.status


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes_meet_sizes_exactly(dtype):
    x, c = jnp.asarray(DIGITS, dtype), jnp.asarray(start(1), dtype)
    result = dk.fit_bounded(x, c, min_size=179, max_size=180)
    assert result.centroids.dtype == dtype
    assert result.loss.dtype == "float32"
    counts = np.bincount(result.labels, minlength=10)
    assert ((counts == 179) | (counts == 180)).all()
    assert status(result) & (dk.Status.CONVERGED | dk.Status.NOT_AT_REST)
    wide = dk.fit_bounded(np.float64(x), np.float64(c), min_size=179, max_size=180)
    np.testing.assert_allclose(result.loss, wide.loss, rtol=0.01)


def test_one_cluster_has_all():
    result = dk.fit_bounded(X, C[:1], min_size=40, max_size=40)
    assert status(result) == dk.Status.CONVERGED
    np.testing.assert_allclose(result.centroids[0], X.mean(0), rtol=1e-12)


def test_it_goes_on_from_a_state_and_is_saved(tmp_path):
    bounds = {"min_size": 179, "max_size": 180}
    whole = dk.fit_bounded(DIGITS, start(2), **bounds)
    part = dk.fit_bounded(DIGITS, start(2), max_steps=3, **bounds)
    dk.save(tmp_path / "part.npz", part)
    part = dk.load(tmp_path / "part.npz")
    rest = dk.fit_bounded(DIGITS, part.state, **bounds)
    np.testing.assert_allclose(rest.centroids, whole.centroids, atol=1e-9)
    assert int(rest.num_steps) == int(whole.num_steps) - 3


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_size": 11},
        {"max_size": 9},
        {"min_size": 5, "max_size": 4},
        {"min_size": -1},
        {"min_size": [9.5] * 4, "max_size": [10.4, 9.6, 10.0, 10.0]},
        {"min_size": np.nan},
    ],
)
def test_traced_sizes_that_cannot_be_met_are_never_a_result(bounds):
    traced = {key: jnp.asarray(value) for key, value in bounds.items()}
    result = jax.jit(partial(dk.fit_bounded, X, C))(**traced)
    assert status(result) == dk.Status.NON_FINITE
    assert np.isnan(result.loss)
    np.testing.assert_array_equal(result.labels, -1)
    np.testing.assert_array_equal(result.centroids, C)
    np.testing.assert_array_equal(dk.assign_bounded(X, C, **traced), -1)


@pytest.mark.parametrize("where", ["points", "centroids", "weights"])
def test_data_that_are_not_finite_never_converge(where):
    given = {"points": X.copy(), "centroids": C.copy(), "weights": np.ones(40)}
    given[where].flat[0] = np.nan
    given = {key: jnp.asarray(a) for key, a in given.items()}
    result = dk.fit_bounded(**given)
    assert dk.Status.NON_FINITE in status(result)
    assert dk.Status.CONVERGED not in status(result)


def test_traced_weights_that_divide_points_are_refused_by_status():
    result = dk.fit_bounded(X, C, weights=jnp.full(40, 0.5))
    assert status(result) == dk.Status.NON_FINITE


@pytest.mark.parametrize("name", ["fit_bounded", "assign_bounded"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_size": 11}, ValueError, r"min_size must add up to .* 40 .*, got 44$"),
        ({"max_size": 9}, ValueError, r"max_size must add up to .* 40 .*, got 36$"),
        (
            {"min_size": 11, "weights": np.arange(40) > 1},
            ValueError,
            r"min_size must add up to at most 38 \(the points\), got 44",
        ),
        (
            {"min_size": [1, 9, 1, 1], "max_size": [9, 8, 20, 20]},
            ValueError,
            r"min_size must be at most max_size, got 9.0 and 8.0 of cluster 1",
        ),
        ({"min_size": -1}, ValueError, "min_size must not be negative, got -1.0"),
        ({"max_size": np.nan}, ValueError, "max_size must not be negative, got nan"),
        ({"max_size": 10.5}, ValueError, "max_size must be a number of points.*10.5"),
        ({"min_size": np.ones(3)}, ValueError, r"min_size must be .*k = 4, got .*\(3,"),
        ({"min_size": "one"}, TypeError, "min_size must be an array of real numbers"),
        ({"max_size": 1j}, TypeError, "max_size must be floating, got dtype complex"),
        ({"weights": np.full(40, 0.5)}, ValueError, "weights must be 0 or 1 .* 0.5"),
        ({"distance": dk.manhattan}, ValueError, "distance must be one .*manhattan"),
        ({"distance": "l2"}, TypeError, "distance must be a function, got 'l2'"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        getattr(dk, name)(X, C, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"derivative": "unrolled"}, ValueError, "derivative must be 'implicit', 'on"),
        ({"max_steps": -1}, ValueError, "max_steps must be at least 0, got -1"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be a Python integer"),
        ({"tol": -1.0}, ValueError, "tol must be finite and not negative, got -1.0"),
        ({"temperature": 0}, ValueError, "temperature must be .*positive, got 0"),
        (
            {"temperature": 1.0, "min_size": 10.5},
            ValueError,
            r"min_size must add up to at most 40 \(the sum of weights\), got 42",
        ),
    ],
)
def test_bad_options_of_a_fit_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        dk.fit_bounded(X, C, **options)


def test_a_result_and_another_optimizers_state_are_no_start():
    result = dk.fit_bounded(X, C, max_steps=1)
    with pytest.raises(TypeError, match=r"^centroids must be .*: pass result\.state"):
        dk.fit_bounded(X, result)
    state = dk.init(C, optimizer=dk.macqueen())
    with pytest.raises(ValueError, match=r"^state must be of the optimizer given"):
        dk.fit_bounded(X, state)


def test_a_plan_needs_a_temperature():
    with pytest.raises(ValueError, match=r"^temperature must be .*, got None"):
        dk.soft_assign_bounded(X, C, temperature=None)
    rows = -np.abs(X)
    with pytest.raises(ValueError, match=r"^points must .* under kl_divergence"):
        dk.soft_assign_bounded(
            rows, np.abs(C), temperature=1.0, distance=dk.kl_divergence
        )


def test_sharded_points_are_refused():
    mesh = jax.make_mesh((4,), ("data",))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    for call in (
        lambda: dk.fit_bounded(x, C, max_size=20),
        lambda: dk.assign_bounded(x, C, max_size=20),
        lambda: dk.soft_assign_bounded(x, C, temperature=1.0, max_size=20),
    ):
        with pytest.raises(ValueError, match="points must be on one device"):
            call()
