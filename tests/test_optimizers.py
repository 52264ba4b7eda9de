"""Newton, MacQueen and moving averages: exact steps, composition with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from problems import problem
from sklearn.cluster import MiniBatchKMeans

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_jax.optimizers import EmaState

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(60, 3)))
C = jnp.asarray(RNG.normal(size=(4, 3))).at[2].add(100)
STATS = dk.statistics(X, C)


def step(optimizer, stats=STATS, c=C):
    state = optimizer.init(c)
    updates, state = optimizer.update(-2 * stats.shifts, state, c, counts=stats.counts)
    return optax.apply_updates(c, updates), state


def test_newton_steps_to_the_means_and_leaves_empty_clusters():
    labels = np.asarray(dk.assign(X, C))
    moved, _ = step(dk.newton())
    for j in (0, 1, 3):
        np.testing.assert_allclose(moved[j], X[labels == j].mean(0), rtol=1e-12)
    np.testing.assert_array_equal(moved[2], C[2])


def test_a_newton_step_is_the_solution_of_the_newton_system():
    flat = C.ravel()
    gradient = jax.grad(lambda c: dk.kmeans_loss(X, c.reshape(C.shape)))(flat)
    hessian = jax.hessian(lambda c: dk.kmeans_loss(X, c.reshape(C.shape)))(flat)
    solution = -jnp.linalg.lstsq(hessian, gradient)[0]
    moved, _ = step(dk.newton())
    np.testing.assert_allclose(moved.ravel() - flat, solution, atol=1e-10)


def test_macqueen_is_the_running_mean_of_all_points_seen():
    c, optimizer = C, dk.macqueen()
    state = dk.init(c, optimizer=optimizer)
    sums, counts = np.zeros((4, 3)), np.zeros(4)
    for batch in np.split(np.asarray(X), 6):
        labels = np.asarray(dk.assign(batch, state.centroids))
        state, _ = dk.update(batch, state, optimizer=optimizer)
        np.add.at(sums, labels, batch)
        np.add.at(counts, labels, 1)
    seen = counts > 0
    np.testing.assert_array_equal(state.opt_state.counts, counts)
    np.testing.assert_allclose(
        state.centroids[seen], (sums / np.maximum(counts, 1)[:, None])[seen], rtol=1e-10
    )
    np.testing.assert_array_equal(state.centroids[~seen], C[~seen])


def test_macqueen_is_the_partial_fit_of_scikit_learn():
    start = np.asarray(C.at[2].add(-100))
    theirs = MiniBatchKMeans(4, init=start, n_init=1, reassignment_ratio=0)
    state = dk.init(start, optimizer=dk.macqueen())
    for batch in np.split(np.asarray(X), 6):
        theirs.partial_fit(batch)
        state, _ = dk.update(batch, state, optimizer=dk.macqueen())
    np.testing.assert_allclose(state.centroids, theirs.cluster_centers_, rtol=1e-6)


@pytest.mark.parametrize("make", [dk.newton, dk.macqueen, dk.ema])
def test_they_are_the_same_object_at_every_call(make):
    assert make() is make()


@pytest.mark.parametrize("make", [dk.newton, dk.macqueen, dk.ema])
def test_zero_counts_give_no_nan_and_no_step(make):
    zeros = jax.tree.map(jnp.zeros_like, STATS)
    np.testing.assert_array_equal(step(make(), zeros)[0], C)


@pytest.mark.parametrize("make", [dk.newton, dk.macqueen])
def test_a_step_is_differentiable_in_gradient_and_counts(make):
    def moved(shifts, counts):
        return jnp.sum(step(make(), STATS._replace(shifts=shifts, counts=counts))[0])

    in_shifts, in_counts = jax.grad(moved, (0, 1))(STATS.shifts, STATS.counts)
    n = np.asarray(STATS.counts)[:, None]
    inverse = np.divide(1, n, where=n > 0, out=np.zeros_like(n))
    np.testing.assert_allclose(in_shifts, np.broadcast_to(inverse, C.shape))
    expected = -(np.asarray(STATS.shifts) * inverse**2).sum(1)
    np.testing.assert_allclose(in_counts, expected, rtol=1e-10)


def batches(rng):
    """Batches that leave some of the clusters without a point, some of the time."""
    return [rng.normal(size=(size, 3)) + rng.normal() for size in (60, 7, 3, 25, 2, 40)]


def rising(t):
    """A decay that starts at zero, exact in any dtype, of tensors and arrays."""
    return t / 8


def run(module, array, decay, data, start):
    """Centroids and running counts after every batch."""
    optimizer = module.ema(decay)
    state = module.init(array(start), optimizer=optimizer)
    steps = []
    for batch in data:
        state, _ = module.update(array(batch), state, optimizer=optimizer)
        steps.append((np.asarray(state.centroids), np.asarray(state.opt_state.counts)))
    return steps


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.99, rising])
def test_ema_is_the_recursion_on_counts_and_sums_in_both_packages(decay):
    data = batches(np.random.default_rng(3))
    c, kept, sums = np.asarray(C).copy(), np.zeros(4), np.zeros((4, 3))
    found = [
        run(module, array, decay, data, np.asarray(C))
        for module, array in ((dk, jnp.asarray), (dt, torch.tensor))
    ]
    for t, (batch, *steps) in enumerate(zip(data, *found, strict=True)):
        share = decay(t) if callable(decay) else decay
        labels = ((batch[:, None] - c) ** 2).sum(-1).argmin(1)
        one_hot = np.eye(4)[labels]
        n, s = one_hot.sum(0), one_hot.T @ batch
        fresh = kept == 0
        kept = np.where(fresh, n, kept)
        sums = np.where(fresh[:, None], n[:, None] * c, sums)
        kept = share * kept + (1 - share) * n
        sums = share * sums + (1 - share) * s
        has = kept > 0
        c = np.where(has[:, None], sums / np.where(has, kept, 1)[:, None], c)
        for centroids, counts in steps:
            np.testing.assert_allclose(counts, kept, rtol=1e-12)
            np.testing.assert_allclose(centroids, c, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_on_one_batch_is_a_damped_newton_step_at_every_step(decay):
    rng = np.random.default_rng(4)
    middles = 20 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    sizes = np.array([9, 44, 7, 0])
    data = jnp.asarray(np.repeat(middles, sizes, 0) + rng.normal(size=(60, 3)))
    damped, ours = optax.chain(dk.newton(), optax.scale(1 - decay)), dk.ema(decay)
    start = middles + rng.normal(size=(4, 3))
    expected, found = (dk.init(start, optimizer=o) for o in (damped, ours))
    means = np.stack([data[i : i + n].mean(0) for i, n in ((0, 9), (9, 44), (53, 7))])
    for t in range(1, 5):
        expected, _ = dk.update(data, expected, optimizer=damped)
        found, stats = dk.update(data, found, optimizer=ours)
        np.testing.assert_array_equal(stats.counts, sizes)
        c = found.centroids
        np.testing.assert_allclose(c, expected.centroids, rtol=1e-12)
        left = decay**t * (start[:3] - means)
        np.testing.assert_allclose(c[:3] - means, left, rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(c[3], start[3])


def test_ema_without_memory_is_newton():
    for start in (C, X[:4]):
        ours = dk.fit(X, start, optimizer=dk.ema(0))
        newton = dk.fit(X, start)
        np.testing.assert_array_equal(ours.centroids, newton.centroids)
        assert int(ours.num_steps) == int(newton.num_steps) > 1


def test_ema_is_the_same_object_for_the_same_decay():
    for module in (dk, dt):
        assert module.ema() is module.ema(0.99) is module.ema(decay=np.float64(0.99))
        assert module.ema(0) is module.ema(0.0)
        assert module.ema(0.5) is not module.ema(0.6)


def test_a_constant_schedule_is_the_number():
    for module, array in ((dk, jnp.asarray), (dt, torch.tensor)):
        x, c = array(np.asarray(X)), array(np.asarray(C))
        plain = module.fit(x, c, optimizer=module.ema(0.3))
        found = module.fit(x, c, optimizer=module.ema(lambda _: 0.3))
        np.testing.assert_array_equal(found.centroids, plain.centroids)
        assert int(found.num_steps) == int(plain.num_steps)
        assert int(found.state.opt_state.step) == int(found.num_steps)
        assert plain.state.opt_state.step is None


def test_a_schedule_counts_from_the_state_and_not_from_a_batch_that_was_refused():
    for module, array in ((dk, jnp.asarray), (dt, torch.tensor)):
        optimizer = module.ema(rising)
        x, state = array(np.asarray(X)), module.init(array(np.asarray(C)))
        state = state._replace(opt_state=optimizer.init(state.centroids))
        whole = module.fit(x, state, optimizer=optimizer, max_steps=5, tol=0)
        part = module.fit(x, state, optimizer=optimizer, max_steps=2, tol=0)
        again = module.fit(x, part.state, optimizer=optimizer, max_steps=3, tol=0)
        np.testing.assert_array_equal(again.centroids, whole.centroids)
        bad, _ = module.update(x * np.nan, part.state, optimizer=optimizer)
        assert int(bad.opt_state.step) == 2


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_a_schedule_out_of_range_moves_nothing_and_is_no_convergence(share):
    for module, array in ((dk, jnp.asarray), (dt, torch.tensor)):
        c = array(np.asarray(C))
        optimizer = module.ema(lambda t: share + 0.0 * (t / (t + 1)))
        found = module.fit(array(np.asarray(X)), c, optimizer=optimizer)
        assert found.flags & module.Status.NON_FINITE
        np.testing.assert_array_equal(found.centroids, c)


def test_a_schedule_that_returns_no_scalar_is_named():
    for module, array in ((dk, jnp.asarray), (dt, torch.tensor)):
        bad = ("a", TypeError), (array(np.ones(2)), ValueError), (1.5, ValueError)
        for value, error in bad:
            optimizer = module.ema(lambda _, value=value: value)
            with pytest.raises(error, match=r"^decay must be"):
                module.fit(
                    array(np.asarray(X)), array(np.asarray(C)), optimizer=optimizer
                )


def test_a_fit_is_differentiated_in_what_a_schedule_closes_over():
    def moved(rate):
        optimizer = dk.ema(lambda t: rate * (t.astype(rate.dtype) / 8))
        options = {"derivative": "unrolled", "max_steps": 4, "tol": 0}
        return jnp.sum(jnp.sin(dk.fit(X, C, optimizer=optimizer, **options).centroids))

    rate, step = jnp.float64(0.5), 1e-6
    expected = (moved(rate + step) - moved(rate - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(moved)(rate), expected, rtol=1e-7)


def test_ema_starts_a_cluster_at_its_first_points():
    optimizer = dk.ema(0.9)
    idle = dk.Statistics(jnp.zeros(()), jnp.zeros(4), jnp.zeros((4, 3)))
    moved, state = step(optimizer, idle)
    np.testing.assert_array_equal(moved, C)
    np.testing.assert_array_equal(state.counts, 0)
    updates, state = optimizer.update(-2 * STATS.shifts, state, C, counts=STATS.counts)
    np.testing.assert_allclose(updates, 0.1 * (step(dk.newton())[0] - C), atol=1e-12)
    np.testing.assert_array_equal(state.counts, STATS.counts)
    # Without points the centroid stays, and the average fades.
    updates, state = optimizer.update(0 * C, state, C, counts=jnp.zeros(4))
    np.testing.assert_array_equal(updates, 0)
    np.testing.assert_allclose(state.counts, 0.9 * STATS.counts)


def test_an_ema_step_is_differentiable_in_gradient_counts_and_running_counts():
    decay, n, old = 0.8, jnp.asarray([3.0, 0, 2, 0]), jnp.asarray([1.0, 4, 0, 0])
    shifts = STATS.shifts.at[jnp.asarray([1, 3])].set(0)

    def moved(shifts, n, old):
        arguments = -2 * shifts, EmaState(old), C
        return jnp.sum(dk.ema(decay).update(*arguments, counts=n)[0])

    in_shifts, in_counts, in_old = jax.grad(moved, (0, 1, 2))(shifts, n, old)
    kept = np.array([decay + 0.6, 4 * decay, 2.0, np.inf])
    expected = np.broadcast_to((1 - decay) / kept[:, None], (4, 3))
    np.testing.assert_allclose(in_shifts, expected, rtol=1e-12)
    slope = -(1 - decay) * np.asarray(shifts).sum(1) / kept**2
    rate = np.array([1 - decay, 1 - decay, 1, 1])
    np.testing.assert_allclose(in_counts, slope * rate, rtol=1e-12, atol=1e-14)
    rate = np.array([decay, decay, 0, 0])
    np.testing.assert_allclose(in_old, slope * rate, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["random", "zero weights", "inactive"])
@pytest.mark.parametrize("empty", ["keep", "farthest"])
def test_fits_by_ema_agree(name, empty):
    arrays = problem(name)
    arrays["centroids"][2] += 50
    options = {"max_steps": 20, "empty": empty}
    ours, theirs = (
        module.fit(
            **{key: array(a) for key, a in arrays.items()},
            optimizer=module.ema(0.7),
            **options,
        )
        for module, array in ((dk, jnp.asarray), (dt, torch.tensor))
    )
    assert int(ours.num_steps) == theirs.num_steps
    for field in ("centroids", "loss", "counts", "residual", "history"):
        np.testing.assert_allclose(
            getattr(ours, field), getattr(theirs, field), rtol=1e-10, atol=1e-10
        )
    np.testing.assert_allclose(
        ours.state.opt_state.counts, theirs.state.opt_state.counts, rtol=1e-10
    )


def test_ema_counts_one_point_of_a_cluster_that_was_moved_to_it():
    data = np.asarray(X)
    for module, array in ((dk, jnp.asarray), (dt, torch.tensor)):
        optimizer = module.ema(0.9)
        state = module.init(array(np.asarray(C)), optimizer=optimizer)
        state, _ = module.update(
            array(data), state, optimizer=optimizer, empty="farthest"
        )
        counts = np.asarray(state.opt_state.counts)
        np.testing.assert_array_equal(counts == 1, [False, False, True, False])
        moved = np.asarray(state.centroids)[2]
        assert (moved == data).all(1).any()


def test_ema_converges_to_what_newton_finds_and_chains():
    chained = optax.chain(dk.ema(0.2), optax.identity())
    for optimizer in (dk.ema(0.2), chained):
        found = dk.fit(X, X[:4], optimizer=optimizer, tol=1e-10)
        assert found.flags == dk.Status.CONVERGED
        again = dk.fit(X, found.centroids, tol=1e-10)
        np.testing.assert_allclose(found.loss, again.loss, rtol=1e-6)


@pytest.mark.parametrize("module", [dk, dt])
@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_a_decay_out_of_range_is_named(module, decay):
    with pytest.raises(ValueError, match=f"at least 0 and below 1, got {decay}"):
        module.ema(decay)


@pytest.mark.parametrize(("module", "array"), [(dk, jnp.asarray), (dt, torch.tensor)])
def test_ema_without_counts_names_the_distance(module, array):
    options = {"distance": module.manhattan, "optimizer": module.ema()}
    with pytest.raises(ValueError, match=r"ema\(\) needs counts.*squared_euclidean"):
        module.fit(array(np.asarray(X)), array(np.asarray(C)), **options)


def test_they_chain_with_optax():
    half = optax.chain(dk.newton(), optax.scale(0.5))
    moved, _ = step(half)
    np.testing.assert_allclose(moved - C, 0.5 * (step(dk.newton())[0] - C), rtol=1e-12)


def test_they_work_on_one_part_of_a_tree_of_parameters():
    params = {"encoder": jnp.ones(3), "centroids": C}
    optimizer = optax.partition(
        {"gradient": optax.sgd(0.1), "newton": dk.newton()},
        {"encoder": "gradient", "centroids": "newton"},
    )
    grads = {"encoder": jnp.ones(3), "centroids": -2 * STATS.shifts}
    updates, _ = optimizer.update(
        grads, optimizer.init(params), params, counts=STATS.counts
    )
    np.testing.assert_allclose(updates["encoder"], -0.1 * jnp.ones(3))
    np.testing.assert_allclose(C + updates["centroids"], step(dk.newton())[0])


def test_masks_and_wrappers_of_optax_keep_the_steps_of_newton():
    wrapped = optax.apply_if_finite(optax.masked(dk.newton(), mask=True), 3)
    scheduled = optax.chain(wrapped, optax.scale_by_schedule(lambda _: 1.0))
    result = dk.fit(X, C, optimizer=scheduled, max_steps=3)
    expected = dk.fit(X, C, max_steps=3).centroids
    np.testing.assert_allclose(result.centroids, expected, rtol=1e-12)


def test_a_mask_freezes_centroids():
    frozen = jnp.arange(4) == 0
    hold = optax.stateless(lambda u, _: jnp.where(frozen[:, None], 0, u))
    result = dk.fit(X, C, optimizer=optax.chain(dk.newton(), hold))
    np.testing.assert_array_equal(result.centroids[0], C[0])
    assert (result.centroids[1] != C[1]).all()


@pytest.mark.parametrize("make", [dk.macqueen, dk.ema])
def test_running_counts_do_not_overflow_in_half_precision(make):
    params = jnp.ones((2, 3), "float16")
    optimizer = make()
    state = optimizer.init(params)
    updates, state = optimizer.update(
        params, state, params, counts=jnp.array([1e5, 2.0], "float32")
    )
    np.testing.assert_array_equal(state.counts, jnp.array([1e5, 2], "float32"))
    assert updates.dtype == "float16"
    assert (updates[1] != 0).all()


def test_newton_without_counts_names_the_distance():
    with pytest.raises(ValueError, match=r"needs counts.*squared_euclidean"):
        dk.newton().update(C, dk.newton().init(C), C)


def test_a_narrow_gradient_is_divided_by_a_count_that_its_dtype_does_not_hold():
    # 10⁵ is infinite in float16, and a step by it would be zero.
    gradient, counts = np.array([[-40.0]], np.float16), np.array([1e5], np.float32)
    ours, _ = dk.newton().update(jnp.asarray(gradient), (), counts=jnp.asarray(counts))
    theirs, _ = dt.newton().update(
        torch.tensor(gradient), (), counts=torch.tensor(counts)
    )
    for step in (ours, theirs):
        assert str(step.dtype).removeprefix("torch.") == "float16"
        np.testing.assert_allclose(np.asarray(step), 2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["newton", "macqueen", "ema"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize(("module", "array"), [(dk, jnp.asarray), (dt, torch.tensor)])
def test_a_batch_that_is_not_finite_leaves_the_state_as_it_was(
    module, array, bad, name
):
    optimizer = getattr(module, name)()
    good = np.random.default_rng(0).normal(size=(9, 2))
    spoiled = good.copy()
    spoiled[3, 1] = bad
    options = {"optimizer": optimizer}
    state, _ = module.update(
        array(good), module.init(array(good[:3]), **options), **options
    )
    same, stats = module.update(array(spoiled), state, **options)
    assert not np.isfinite(float(stats.loss))
    np.testing.assert_array_equal(same.centroids, state.centroids)
    np.testing.assert_array_equal(same.remainder, state.remainder)
    for after, before in zip(same.opt_state, state.opt_state, strict=True):
        np.testing.assert_array_equal(after, before)
    assert int(same.step) == 2
