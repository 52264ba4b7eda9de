"""Fits: scikit-learn's steps, the stop rule, policies, schedules, going on, status."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import diffkm_jax as dk
from diffkm_jax.fitting import _fit, _update

RNG = np.random.default_rng(0)
DIGITS = load_digits().data
X = jnp.asarray(RNG.normal(size=(200, 3)))
C = X[:6]


def start(seed, k=10, data=DIGITS):
    """Rows of the data, off the integer grid: scikit-learn breaks exact ties anew."""
    rng = np.random.default_rng(seed)
    rows = data[rng.choice(len(data), k, replace=False)]
    return rows + 1e-3 * rng.normal(size=rows.shape)


def lloyd(data, c, tol=1e-4, weights=None, **options):
    model = KMeans(len(c), init=c, n_init=1, tol=tol, algorithm="lloyd", **options)
    return model.fit(data, sample_weight=weights)


def status(result):
    return dk.Status(int(result.status))


@pytest.mark.parametrize("tol", [0.0, 1e-4])
@pytest.mark.parametrize("k", [3, 10])
@pytest.mark.parametrize("seed", range(4))
def test_newton_is_scikit_learns_lloyd_step_for_step(seed, k, tol):
    c = start(seed, k)
    theirs, ours = lloyd(DIGITS, c, tol), dk.fit(DIGITS, c, tol=tol)
    assert int(ours.num_steps) == theirs.n_iter_
    assert status(ours) == dk.Status.CONVERGED
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-12)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-10)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)


@pytest.mark.parametrize("tol", [0.0, 1e-4])
def test_float32_far_from_the_origin_takes_the_same_steps(tol):
    x, c = (DIGITS + 1e3).astype(np.float32), (start(5) + 1e3).astype(np.float32)
    theirs, ours = lloyd(x, c, tol), dk.fit(x, c, tol=tol)
    assert int(ours.num_steps) == theirs.n_iter_
    assert status(ours) == dk.Status.CONVERGED
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-5)


def test_weights_are_scikit_learns_but_for_the_tolerance():
    w = RNG.uniform(0.1, 2, len(DIGITS))
    theirs = lloyd(DIGITS, start(1), 0.0, weights=w)
    ours = dk.fit(DIGITS, start(1), weights=w, tol=0.0)
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-12)
    assert int(ours.num_steps) == theirs.n_iter_


def test_one_update_is_one_lloyd_iteration():
    c = start(2)
    state, stats = dk.update(DIGITS, dk.init(c))
    theirs = lloyd(DIGITS, c, max_iter=10).cluster_centers_
    for _ in range(9):
        state, _ = dk.update(DIGITS, state)
    np.testing.assert_allclose(state.centroids, theirs, atol=1e-10)
    np.testing.assert_allclose(stats.loss, dk.kmeans_loss(DIGITS, c))
    assert int(state.step) == 10


OPTIMIZERS = {
    "sgd": (optax.sgd(1e-3), {}),
    "momentum": (optax.sgd(3e-4, momentum=0.9), {}),
    "adam": (optax.adam(0.3), {}),
    "lbfgs": (optax.lbfgs(), {}),
    "chain": (optax.chain(optax.clip_by_global_norm(1e5), optax.sgd(1e-3)), {}),
    "noise": (optax.chain(dk.newton(), optax.add_noise(1e-6, 2.0, 0)), {}),
    "soft": (dk.newton(), {"temperature": 5.0}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_converges_to_a_stationary_point_by_the_same_rule(name):
    optimizer, options = OPTIMIZERS[name]
    with jax.numpy_dtype_promotion("standard"):  # optax promotes inside.
        result = dk.fit(
            DIGITS, start(0), optimizer=optimizer, max_steps=2000, **options
        )
    assert dk.Status.CONVERGED in status(result)
    variance = np.var(DIGITS, axis=0).mean()
    assert result.residual <= 1.5e-4 * variance
    newton = dk.fit(DIGITS, start(0)).loss
    assert result.loss < 1.08 * newton


def test_the_stop_rule_reads_the_residual_and_its_unit_is_the_variance():
    c = start(3)
    loose, tight = (dk.fit(DIGITS, c, tol=tol) for tol in (1e-2, 1e-6))
    assert loose.num_steps < tight.num_steps
    for result, tol in ((loose, 1e-2), (tight, 1e-6)):
        state = dk.init(c)
        limit = tol * np.var(DIGITS, axis=0).mean()
        residuals = []
        for _ in range(int(result.num_steps)):
            before = state.centroids
            state, _ = dk.update(DIGITS, state)
            residuals.append(float(jnp.sum((state.centroids - before) ** 2)))
        assert residuals[-1] <= limit
        assert min(residuals[:-1]) > limit


def test_scaling_the_data_changes_no_step():
    c = start(3)
    a, b = dk.fit(DIGITS, c), dk.fit(1e3 * DIGITS, 1e3 * c)
    assert a.num_steps == b.num_steps


def test_history_holds_the_loss_after_every_step_padded_with_the_last():
    result = dk.fit(DIGITS, start(4))
    steps = int(result.num_steps)
    assert result.history.shape == (301,)
    state = dk.init(start(4))
    for t in range(steps):
        state, stats = dk.update(DIGITS, state)
        np.testing.assert_allclose(result.history[t], stats.loss, rtol=1e-12)
    np.testing.assert_array_equal(result.history[steps:], result.loss)
    assert (np.diff(result.history) <= 1e-9 * result.loss).all()


def test_labels_loss_and_counts_are_those_of_the_returned_centroids():
    result = dk.fit(X, C, max_steps=3)
    np.testing.assert_array_equal(result.labels, dk.assign(X, result.centroids))
    stats = dk.statistics(X, result.centroids)
    np.testing.assert_allclose(result.loss, stats.loss, rtol=1e-14)
    np.testing.assert_array_equal(result.counts, stats.counts)
    assert status(result) == dk.Status.MAX_STEPS


def test_no_steps_evaluate():
    result = dk.fit(X, C, max_steps=0)
    np.testing.assert_array_equal(result.centroids, C)
    assert result.loss == dk.kmeans_loss(X, C)
    assert int(result.num_steps) == 0
    assert result.history.shape == (1,)


@pytest.mark.parametrize("name", ["newton", "macqueen", "adam", "soft schedule"])
def test_going_on_from_a_state_is_the_same_as_not_stopping(name):
    optimizer, options = {
        "newton": (dk.newton(), {}),
        "macqueen": (dk.macqueen(), {}),
        "adam": (optax.adam(0.1), {}),
        "soft schedule": (
            dk.newton(),
            {"temperature": optax.exponential_decay(2.0, 1, 0.9)},
        ),
    }[name]
    run = partial(dk.fit, X, optimizer=optimizer, tol=0.0, **options)
    with jax.numpy_dtype_promotion("standard"):
        whole = run(C, max_steps=9)
        part = run(C, max_steps=4)
        rest = run(part.state, max_steps=5)
    np.testing.assert_array_equal(whole.centroids, rest.centroids)
    assert int(part.num_steps) + int(rest.num_steps) == int(whole.num_steps)
    assert int(rest.state.step) == int(whole.state.step)


# Temperatures.


def blobs():
    rng = np.random.default_rng(0)
    centers = 10 * np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    x = (centers[:, None] + 0.5 * rng.normal(size=(4, 100, 2))).reshape(-1, 2)
    return jnp.asarray(x), jnp.asarray(x.mean(0) + 0.01 * rng.normal(size=(4, 2)))


def test_annealing_finds_the_blobs_that_a_cold_start_in_the_middle_may_miss():
    x, c = blobs()
    critical = 2 * jnp.linalg.eigvalsh(jnp.cov(x.T, ddof=0))[-1]
    schedule = optax.exponential_decay(0.9 * float(critical), 1, 0.9, end_value=0.05)
    result = dk.fit(x, c, temperature=schedule)
    best = 400 * 2 * 0.5**2
    np.testing.assert_allclose(dk.kmeans_loss(x, result.centroids), best, rtol=0.1)
    assert status(result) == dk.Status.CONVERGED
    np.testing.assert_allclose(result.temperature, 0.05)
    assert len(np.unique(result.labels)) == 4


def test_a_schedule_does_not_stop_while_it_is_hot():
    x, c = blobs()
    schedule = optax.linear_schedule(500.0, 1.0, 40)
    result = dk.fit(x, c, temperature=schedule, max_steps=100)
    assert int(result.num_steps) > 40
    np.testing.assert_allclose(result.temperature, 1.0, rtol=1e-5)


def test_a_soft_fit_at_low_temperature_is_a_hard_one():
    hard, soft = dk.fit(X, C), dk.fit(X, C, temperature=1e-6)
    np.testing.assert_allclose(soft.centroids, hard.centroids, atol=1e-6)
    assert int(hard.num_steps) == int(soft.num_steps)
    assert hard.temperature is None


# Empty clusters.


def with_empty():
    x = jnp.asarray(np.random.default_rng(7).normal(size=(100, 2)))
    return x, jnp.concatenate([x[:2], jnp.array([[90.0, 90.0], [95.0, 95.0]])])


def test_keep_leaves_empty_clusters_and_says_so():
    x, c = with_empty()
    result = dk.fit(x, c)
    np.testing.assert_array_equal(result.centroids[2:], c[2:])
    assert status(result) == dk.Status.CONVERGED | dk.Status.EMPTY_CLUSTER


def test_farthest_is_scikit_learns_relocation():
    x, c = with_empty()
    ours, theirs = dk.fit(x, c, empty="farthest"), lloyd(np.asarray(x), np.asarray(c))
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-12)
    assert int(ours.num_steps) == theirs.n_iter_
    assert status(ours) == dk.Status.CONVERGED
    assert (ours.counts > 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_farthest_gives_the_costliest_points_and_takes_them_from_their_clusters(
    weighted,
):
    x, c = with_empty()
    w = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, 100))
    w = w if weighted else jnp.ones(100)
    state, _ = dk.update(x, dk.init(c), weights=w, empty="farthest")
    costs = dk.pairwise(x, c).min(1)
    far = jnp.argsort(-costs)[:2]
    np.testing.assert_array_equal(state.centroids[2:], x[far])
    rest = jnp.delete(jnp.arange(100), far)
    expected = dk.update(x[rest], dk.init(c), weights=w[rest])[0].centroids
    np.testing.assert_allclose(state.centroids[:2], expected[:2], rtol=1e-12)


def test_farthest_under_any_optimizer_sets_the_row_and_forgets_its_state():
    x, c = with_empty()
    optimizer = optax.sgd(1e-3, momentum=0.9)
    state = dk.init(c, optimizer=optimizer)
    state = state._replace(opt_state=jax.tree.map(jnp.ones_like, state.opt_state))
    new, _ = dk.update(x, state, optimizer=optimizer, empty="farthest")
    far = jnp.argsort(-dk.pairwise(x, c).min(1))[:2]
    np.testing.assert_array_equal(new.centroids[2:], x[far])
    (trace,) = (
        leaf for leaf in jax.tree.leaves(new.opt_state) if leaf.shape == c.shape
    )
    np.testing.assert_array_equal(trace[2:], 0)
    assert (trace[:2] != 0).all()
    online, _ = dk.update(
        x,
        dk.init(c, optimizer=dk.macqueen()),
        optimizer=dk.macqueen(),
        empty="farthest",
    )
    np.testing.assert_array_equal(online.opt_state.counts[2:], 0)


def test_farthest_does_not_run_for_ever_on_too_few_different_points():
    x = jnp.asarray([[0.0, 0.0], [1.0, 1.0]] * 10)
    result = dk.fit(x, jnp.arange(8.0).reshape(4, 2), empty="farthest")
    assert status(result) == dk.Status.CONVERGED | dk.Status.EMPTY_CLUSTER
    assert result.loss == 0


def test_a_policy_of_the_user_sees_the_costliest_rows():
    x, c = with_empty()
    seen = {}

    def policy(centroids, counts, rows, costs):
        jax.debug.callback(
            lambda *a: seen.update(zip(("counts", "rows", "costs"), a, strict=True)),
            counts,
            rows,
            costs,
        )
        return jnp.where(counts[:, None] == 0, rows + 0.5, centroids)

    state, stats = dk.update(x, dk.init(c), empty=policy)
    jax.effects_barrier()
    costs = np.sort(dk.pairwise(x, c).min(1))[::-1][:4]
    np.testing.assert_allclose(seen["costs"], costs, rtol=1e-12)
    np.testing.assert_array_equal(seen["counts"], stats.counts)
    np.testing.assert_array_equal(state.centroids[2:], seen["rows"][2:] + 0.5)


def test_a_relocation_has_derivative_zero():
    x, c = with_empty()

    def moved(x):
        return jnp.sum(dk.update(x, dk.init(c), empty="farthest")[0].centroids[2:])

    np.testing.assert_array_equal(jax.grad(moved)(x), jnp.zeros_like(x))


# Inactive clusters, zero weights, padding.


def test_padding_by_weights_and_active_changes_nothing():
    x = jnp.concatenate([X, jnp.full((7, 3), jnp.nan)])
    w = jnp.concatenate([jnp.ones(200), jnp.zeros(7)])
    c = jnp.concatenate([C, jnp.full((2, 3), jnp.nan)])
    active = jnp.arange(8) < 6
    padded = dk.fit(x, c, weights=w, active=active, empty="farthest")
    plain = dk.fit(X, C, empty="farthest")
    np.testing.assert_allclose(padded.centroids[:6], plain.centroids, rtol=1e-12)
    np.testing.assert_array_equal(padded.labels[:200], plain.labels)
    np.testing.assert_allclose(padded.loss, plain.loss, rtol=1e-12)
    assert status(padded) == status(plain) == dk.Status.CONVERGED
    assert int(padded.num_steps) == int(plain.num_steps)


# What is not finite.


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_data_that_are_not_finite_never_converge_and_keep_the_start(bad, temperature):
    result = dk.fit(X.at[3, 1].set(bad), C, temperature=temperature)
    assert dk.Status.NON_FINITE in status(result)
    assert dk.Status.CONVERGED not in status(result)
    np.testing.assert_array_equal(result.centroids, C)
    assert int(result.num_steps) == 0


def test_a_diverging_optimizer_is_caught_with_finite_centroids():
    result = dk.fit(X, C, optimizer=optax.sgd(1e3), max_steps=300)
    assert status(result) & dk.Status.NON_FINITE
    assert not status(result) & dk.Status.CONVERGED
    assert jnp.isfinite(result.centroids).all()


def test_weights_that_are_all_zero_are_not_called_converged():
    result = dk.fit(X, C, weights=jnp.zeros(200))
    assert dk.Status.CONVERGED not in status(result)
    assert dk.Status.EMPTY_CLUSTER in status(result)
    assert jnp.isfinite(result.centroids).all()


def test_a_traced_temperature_of_nan_is_flagged():
    result = jax.jit(lambda t: dk.fit(X, C, temperature=t))(jnp.nan)
    assert dk.Status.NON_FINITE in status(result)


# Other distances.


@pytest.mark.parametrize("distance", [dk.euclidean, dk.manhattan, dk.cosine])
def test_other_distances_descend_with_a_gradient_optimizer(distance):
    optimizer = optax.sgd(3e-3)
    result = dk.fit(X, C, distance=distance, optimizer=optimizer, max_steps=60)
    assert result.history[-1] < result.history[0]
    np.testing.assert_allclose(
        result.loss, dk.kmeans_loss(X, result.centroids, distance=distance), rtol=1e-12
    )
    np.testing.assert_array_equal(
        result.labels, dk.assign(X, result.centroids, distance=distance)
    )
    assert result.counts.sum() == 200


def test_the_residual_of_another_distance_is_its_gradient_over_twice_the_counts():
    result = dk.fit(X, C, distance=dk.manhattan, optimizer=optax.sgd(1e-3), max_steps=5)
    gradient = jax.grad(lambda c: dk.kmeans_loss(X, c, distance=dk.manhattan))(
        result.centroids
    )
    expected = jnp.sum((gradient / (2 * result.counts[:, None])) ** 2)
    np.testing.assert_allclose(result.residual, expected, rtol=1e-10)


@pytest.mark.parametrize(
    "optimizer",
    [dk.newton(), dk.macqueen(), optax.chain(dk.newton(), optax.scale(0.5))],
)
def test_newton_and_macqueen_refuse_another_distance_even_in_a_chain(optimizer):
    with pytest.raises(ValueError, match="squared_euclidean"):
        dk.fit(X, C, distance=dk.kl_divergence, optimizer=optimizer)


# Derivatives of the result.


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


def test_the_returned_centroids_history_and_residual_have_gradient_zero():
    def outcome(x):
        result = dk.fit(x, C)
        return result.centroids.sum() + result.history.sum() + result.residual

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


# Programs.


def test_a_fit_is_one_program_for_all_temperatures_tolerances_and_starts():
    before = _fit._cache_size()
    for temperature, tol in ((0.5, 1e-4), (0.7, 0.0), (jnp.asarray(0.9), 1e-3)):
        dk.fit(X[:150], C + temperature, temperature=temperature, tol=tol)
    assert _fit._cache_size() == before + 1


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


# Restarts.


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


# Found by trying to break it.


def test_shapes_past_the_budget_of_a_block_are_fitted_too():
    wide = jnp.ones((4, 600_000), jnp.float32)
    assert dk.kmeans_loss(wide, wide[:2]) == 0
    x = jnp.asarray(RNG.normal(size=(900, 800)))
    loss = dk.kmeans_loss(x, x[:700], distance=dk.manhattan)
    np.testing.assert_allclose(
        loss, dk.pairwise(x, x[:700], distance=dk.manhattan).min(1).sum(), rtol=1e-12
    )


def test_an_optimizer_without_extra_arguments_compiles_once():
    optimizer = optax.GradientTransformation(*optax.scale(-1e-3))
    state = dk.init(C, optimizer=optimizer)
    state, _ = dk.update(X, state, optimizer=optimizer)
    before = _update._cache_size()
    for _ in range(3):
        state, _ = dk.update(X, state, optimizer=optimizer)
    assert _update._cache_size() == before


@pytest.mark.parametrize("k", [5, 40])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_centroid_that_is_not_finite_makes_the_loss_nan(k, bad):
    for row in (0, k - 2):
        c = X[:k].at[row, 0].set(bad)
        assert jnp.isnan(dk.kmeans_loss(X, c))
        assert jnp.isnan(dk.soft_kmeans_loss(X, c, temperature=1.0))
        assert dk.Status.NON_FINITE in status(dk.fit(X, c))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_huge_centroid_takes_no_point_from_the_others(dtype):
    x, huge = X.astype(dtype), 1e25 if dtype == jnp.float32 else 1e160
    for row in (0, 3):
        c = x[:6].at[row].set(huge)
        few = dk.kmeans_loss(x, jnp.delete(x[:6], row, axis=0))
        np.testing.assert_allclose(dk.kmeans_loss(x, c), few, rtol=1e-5)


@pytest.mark.parametrize("value", [jnp.nan, 1e6])
def test_what_inactive_centroids_hold_reaches_no_optimizer(value):
    active = jnp.arange(6) < 5
    with jax.numpy_dtype_promotion("standard"):
        for optimizer in (optax.lamb(0.1), optax.lbfgs()):
            runs = [
                dk.fit(
                    X, C.at[5].set(v), active=active, optimizer=optimizer, max_steps=9
                )
                for v in (0.0, value)
            ]
            np.testing.assert_allclose(
                runs[0].centroids[:5], runs[1].centroids[:5], rtol=1e-12
            )


@pytest.mark.parametrize("value", [jnp.nan, 0.0])
def test_a_policy_that_would_move_inactive_clusters_still_converges(value):
    active = jnp.arange(6) < 5

    def policy(centroids, counts, rows, costs):
        return jnp.where(counts[:, None] == 0, rows, centroids)

    c = C.at[5].set(value)
    result = dk.fit(X, c, active=active, empty=policy)
    assert status(result) == dk.Status.CONVERGED
    np.testing.assert_array_equal(result.centroids[5], c[5])


def test_a_relocated_row_gets_the_optimizer_state_of_a_fresh_start():
    x, c = with_empty()
    optimizer = optax.contrib.schedule_free_sgd(1e-3)
    with jax.numpy_dtype_promotion("standard"):
        state = dk.init(c, optimizer=optimizer)
        for _ in range(2):
            state, _ = dk.update(x, state, optimizer=optimizer, empty="farthest")
    far = jnp.argsort(-dk.pairwise(x, c).min(1))[:2]
    np.testing.assert_allclose(state.centroids[2:], x[far], atol=0.2)


def test_a_variance_that_overflows_is_no_reason_to_converge():
    x = X.astype(jnp.float32)
    x = jnp.concatenate([x, x.at[:, 0].add(4e18)])
    result = dk.fit(x, jnp.concatenate([x[:4], x[200:201]]))
    assert dk.Status.CONVERGED not in status(result)


def test_restarts_return_the_first_draw_if_no_loss_is_finite():
    x, key = X.at[0, 0].set(jnp.nan), jax.random.key(3)
    options = {"num_restarts": 4, "initializer": dk.random_points}
    first = dk.random_points(jax.random.split(key, 4)[0], x, 5)
    found = dk.fit_restarts(key, x, 5, **options).centroids
    np.testing.assert_array_equal(found, first)
