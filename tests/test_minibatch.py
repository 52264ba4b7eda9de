"""Fits on batches: the seed's loop, e-means, and what they share with other fits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits

import diffkm_jax as dk
import diffkm_torch as dt

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(90, 3)))
C = X[:5] + 0.1
W = jnp.asarray(RNG.uniform(0.5, 2, size=90)).at[::7].set(0)
DIGITS = jnp.asarray(load_digits().data)


def rows(key, step, size, n):
    """The rows of a step's batch."""
    return jax.random.randint(jax.random.fold_in(key, step), (size,), 0, n)


def settling(steps):
    """Averages whose decay goes from 0 to 1."""
    return dk.ema(lambda t: 0.5 - 0.5 * jnp.cos(jnp.pi * t.astype(float) / steps))


def loop(optimizer, num_steps, size, **options):
    """Updates on the batches, one after the other, and their losses."""
    state, losses = dk.init(C, optimizer=optimizer), []
    weights = options.pop("weights", None)
    for t in range(num_steps):
        i = rows(KEY, t, size, len(X))
        w = None if weights is None else weights[i]
        update = {"optimizer": optimizer, "weights": w, **options}
        state, stats = dk.update(X[i], state, **update)
        losses.append(float(stats.loss) * len(X) / size)
    return state, losses


def test_the_loop_of_gradient_descent_on_random_batches_is_one_call():
    """1000 points in 200 dimensions, batches of 100, 20 centroids, a rate of 1e-5."""
    points = np.random.default_rng(1).uniform(size=(1000, 200))
    c, rate, steps = points[:20].copy(), 1e-5, 50
    losses = []
    for t in range(steps):
        batch = points[np.asarray(rows(KEY, t, 100, 1000))]
        distances = ((batch[:, None] - c) ** 2).sum(-1)
        membership = distances.argmin(1)
        losses.append(distances.min(1).sum())
        gradient = np.zeros_like(c)
        np.add.at(gradient, membership, -2 * (batch - c[membership]))
        c -= rate * gradient
    options = {"num_steps": steps, "batch_size": 100, "optimizer": optax.sgd(rate)}
    found = dk.fit_minibatch(KEY, points, points[:20], **options)
    np.testing.assert_allclose(found.centroids, c, rtol=1e-12)
    np.testing.assert_allclose(found.history[:-1], 10 * np.array(losses), rtol=1e-10)
    assert int(found.num_steps) == steps
    assert found.flags == dk.Status.MAX_STEPS


def test_macqueen_is_the_partial_fit_of_scikit_learn_on_the_same_batches():
    options = {"num_steps": 12, "batch_size": 30, "optimizer": dk.macqueen()}
    found = dk.fit_minibatch(KEY, X, C, **options)
    start = np.asarray(C)
    theirs = MiniBatchKMeans(5, init=start, n_init=1, reassignment_ratio=0)
    for t in range(12):
        theirs.partial_fit(np.asarray(X[rows(KEY, t, 30, 90)]))
    np.testing.assert_allclose(found.centroids, theirs.cluster_centers_, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": W},
        {"temperature": 0.5},
        {"temperature": optax.exponential_decay(2.0, 3, 0.5)},
        {"distance": dk.cosine},
        {"empty": "farthest"},
        {"active": jnp.arange(5) != 2},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("make", [dk.newton, dk.macqueen, None])
def test_it_is_the_loop_of_updates_on_its_batches(options, make):
    steps = 7
    if make is None:  # The averages that come to rest.
        optimizer = settling(steps)
        given = {}
    else:
        optimizer = make()
        given = {"optimizer": optimizer}
    state, losses = loop(optimizer, steps, 20, **options)
    given |= {"num_steps": steps, "batch_size": 20} | options
    found = dk.fit_minibatch(KEY, X, C, **given)
    np.testing.assert_allclose(found.centroids, state.centroids, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.history[:-1], losses, rtol=1e-6)
    assert int(found.state.step) == int(state.step) == steps
    counts = getattr(state.opt_state, "counts", None)
    if counts is not None:
        np.testing.assert_allclose(found.state.opt_state.counts, counts, rtol=1e-5)


def test_what_it_returns_is_of_all_points():
    found = dk.fit_minibatch(KEY, X, C, num_steps=9, batch_size=20, weights=W)
    stats = dk.statistics(X, found.centroids, weights=W)
    np.testing.assert_allclose(found.loss, stats.loss, rtol=1e-12)
    np.testing.assert_allclose(found.counts, stats.counts, rtol=1e-12)
    np.testing.assert_array_equal(found.labels, dk.assign(X, found.centroids))
    assert found.history.shape == (10,)
    np.testing.assert_array_equal(found.history[-1], found.loss)


def test_averages_that_come_to_rest_find_the_loss_of_lloyd_in_two_passes():
    points = jnp.tile(DIGITS, (10, 1))
    start = dk.random_points(KEY, points, 30)
    full = dk.fit(points, start).loss
    steps = 2 * len(points) // 512
    found = dk.fit_minibatch(KEY, points, start, num_steps=steps, batch_size=512)
    assert found.loss < 1.02 * full
    # Running means are not so near, for they remember the start.
    options = {"num_steps": steps, "batch_size": 512, "optimizer": dk.macqueen()}
    assert found.loss < dk.fit_minibatch(KEY, points, start, **options).loss
    # What Lloyd finds from there is at rest.
    rest = dk.fit(points, found.centroids)
    assert rest.flags == dk.Status.CONVERGED
    assert rest.loss < found.loss


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped():
    for optimizer in (dk.macqueen(), dk.ema(lambda t: t / 10), optax.sgd(0.01, 0.9)):
        options = {"batch_size": 20, "optimizer": optimizer}
        whole = dk.fit_minibatch(KEY, X, C, num_steps=8, **options)
        part = dk.fit_minibatch(KEY, X, C, num_steps=5, **options)
        again = dk.fit_minibatch(KEY, X, part.state, num_steps=3, **options)
        jax.tree.map(np.testing.assert_array_equal, whole.state, again.state)
        np.testing.assert_array_equal(whole.history[5:], again.history)


def test_without_steps_it_evaluates_the_start():
    found = dk.fit_minibatch(KEY, X, C, num_steps=0)
    np.testing.assert_array_equal(found.centroids, C)
    np.testing.assert_allclose(found.history, [dk.kmeans_loss(X, C)], rtol=1e-12)


def test_keys_are_other_batches_and_may_be_a_batch_of_fits():
    keys = jax.random.split(KEY, 3)
    many = jax.vmap(lambda key: dk.fit_minibatch(key, X, C, num_steps=6, batch_size=20))
    found = many(keys)
    for i, key in enumerate(keys):
        one = dk.fit_minibatch(key, X, C, num_steps=6, batch_size=20)
        np.testing.assert_allclose(found.centroids[i], one.centroids, rtol=1e-12)
    assert len(np.unique(np.asarray(found.loss))) == 3


def test_the_gradient_is_that_of_the_loss_at_centroids_that_are_held():
    def loss(x, w):
        found = dk.fit_minibatch(KEY, x, C, num_steps=6, batch_size=20, weights=w)
        return found.loss, found.centroids

    found, c = jax.grad(loss, (0, 1), has_aux=True)(X, W)
    expected = jax.grad(lambda x, w: dk.kmeans_loss(x, c, weights=w), (0, 1))(X, W)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    slope = jax.jacobian(lambda x: loss(x, W)[1])(X)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("scale", [2.0**-122, 1e36])
def test_of_weights_only_the_ratios_matter(scale):
    x, c, w = (jnp.asarray(a, "float32") for a in (X, C, W))
    options = {"num_steps": 6, "batch_size": 20}
    plain = dk.fit_minibatch(KEY, x, c, weights=w, **options)
    scaled = dk.fit_minibatch(KEY, x, c, weights=w * np.float32(scale), **options)
    np.testing.assert_allclose(scaled.centroids, plain.centroids, rtol=1e-5, atol=1e-6)
    for field in ("loss", "counts", "history"):
        ours, theirs = getattr(scaled, field), getattr(plain, field)
        np.testing.assert_allclose(ours, theirs * np.float32(scale), rtol=1e-5)


def test_a_row_of_weight_zero_may_hold_anything():
    bad = X.at[::7].set(jnp.nan)
    options = {"num_steps": 6, "batch_size": 40, "weights": W}
    found, expected = (dk.fit_minibatch(KEY, x, C, **options) for x in (bad, X))
    for field in ("centroids", "loss", "counts", "history", "status"):
        ours, theirs = getattr(found, field), getattr(expected, field)
        np.testing.assert_array_equal(ours, theirs)


def test_it_ends_at_a_batch_that_is_not_finite():
    options = {"num_steps": 50, "batch_size": 4}
    drawn = [7 in np.asarray(rows(KEY, t, 4, 90)) for t in range(50)]
    first = drawn.index(True)
    assert 0 < first < 49
    found = dk.fit_minibatch(KEY, X.at[7].set(jnp.nan), C, **options)
    assert int(found.num_steps) == first
    assert found.flags & dk.Status.NON_FINITE
    options = {"num_steps": first, "batch_size": 4, "optimizer": settling(50)}
    before = dk.fit_minibatch(KEY, X, C, **options)
    np.testing.assert_allclose(found.centroids, before.centroids, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32"])
def test_dtypes_are_those_of_a_fit(dtype):
    x = (10 * X).astype(dtype)
    found = dk.fit_minibatch(KEY, x, x[:5], num_steps=4, batch_size=20)
    expected = dk.fit(x, x[:5], max_steps=4)
    for ours, theirs in zip(found[:8], expected[:8], strict=True):
        assert ours.dtype == theirs.dtype
    assert found.centroids.dtype == (float if dtype == "int32" else dtype)
    assert jnp.isfinite(found.centroids).all()


def test_what_cannot_be_meant_is_said():
    def raises(error, message, *args, **options):
        settings = {"num_steps": 3} | options
        with pytest.raises(error, match=message):
            dk.fit_minibatch(*args, **settings)

    raises(TypeError, "^key must be a random key", 0, X, C)
    raises(TypeError, "^num_steps must be a Python integer", KEY, X, C, num_steps=2.0)
    raises(ValueError, "^num_steps must be at least 0", KEY, X, C, num_steps=-1)
    raises(ValueError, "^batch_size must be at least 1", KEY, X, C, batch_size=0)
    raises(ValueError, "^centroids must be at most n = 3", KEY, X[:3], C)
    part = dk.fit_minibatch(KEY, X, C, num_steps=3)
    raises(ValueError, "^optimizer must be that of the State", KEY, X, part.state)
    other = {"optimizer": dk.macqueen()}
    raises(ValueError, "^state must be of the optimizer", KEY, X, part.state, **other)
    raises(TypeError, "pass result.state", KEY, X, part)


def test_epochs_take_every_row_once_or_the_rows_as_they_are():
    """90 rows, batches of 20: what is left out of one order is in another."""
    optimizer, steps = dk.macqueen(), 9
    for sampling in ("shuffled", "sequential"):
        state = dk.init(C, optimizer=optimizer)
        for t in range(steps):
            if sampling == "shuffled":
                order = jax.random.permutation(jax.random.fold_in(KEY, t // 4), 90)
                i = order[t % 4 * 20 :][:20]
            else:
                first = min(t % 5 * 20, 70)
                i = jnp.arange(first, first + 20)
            state, _ = dk.update(X[i], state, optimizer=optimizer)
        options = {"batch_size": 20, "sampling": sampling, "optimizer": optimizer}
        found = dk.fit_minibatch(KEY, X, C, num_steps=steps, **options)
        np.testing.assert_allclose(found.centroids, state.centroids, rtol=1e-12)
        # In the middle of an epoch, too.
        half = dk.fit_minibatch(KEY, X, C, num_steps=6, **options)
        rest = dk.fit_minibatch(KEY, X, half.state, num_steps=3, **options)
        np.testing.assert_array_equal(rest.centroids, found.centroids)


def patient_steps(losses, rate, patience, first):
    """After how many steps scikit-learn's rule ends, which counts losses from one."""
    mean, least, waited = None, np.inf, 0
    for t, loss in enumerate(losses):
        if t < first:
            continue
        mean = loss if mean is None else (1 - rate) * mean + rate * loss
        waited = 0 if mean < least else waited + 1
        least = min(least, mean)
        if waited == patience:
            return t + 1
    return None


def test_patience_ends_a_fit_whose_smoothed_loss_does_not_fall():
    """Of losses from the second on: that of the start, far away, would last long."""
    size, patience = 6, 4
    options = {"batch_size": size, "optimizer": dk.macqueen(), "num_steps": 200}
    every = dk.fit_minibatch(KEY, X, C + 9, **options).history
    rule = np.asarray(every[:200]), 2 * size / (len(X) + 1), patience
    steps = patient_steps(*rule, first=1)
    assert 5 < steps != patient_steps(*rule, first=0)
    found = dk.fit_minibatch(KEY, X, C + 9, patience=patience, **options)
    assert int(found.num_steps) == steps
    assert dk.Status.NO_IMPROVEMENT in found.flags
    np.testing.assert_allclose(found.history[:steps], every[:steps], rtol=1e-12)
    one = dk.fit_minibatch(KEY, X, C, patience=patience, **options | {"num_steps": 3})
    assert dk.Status.MAX_STEPS in one.flags


def refilled(counts, ratio, half):
    """Which clusters scikit-learn's rule sets, and their counts then."""
    low = counts < ratio * counts.max()
    if low.sum() > half:
        low[np.argsort(counts, kind="stable")[half:]] = False
    return low, np.where(low, counts[~low].min(), counts)


LOW = np.array([5.0, 0.0, 100.0, 0.5, 40.0, 0.9])


@pytest.mark.parametrize("rows", [12, 4])
def test_clusters_with_low_counts_are_set_to_rows_of_the_batch(rows):
    points, c = np.asarray(X[:rows]), np.asarray(X[20:26])
    index = np.arange(rows)[::-1].copy()

    def found(module, array, number, **options):
        """What a package makes of so many rows: centroids, counts."""
        optimizer = module.macqueen()
        state = module.init(array(c), optimizer=optimizer)
        counts = state.opt_state._replace(counts=array(LOW))
        given = array(points), state._replace(opt_state=counts), array(index[:number])
        options = {key: array(value) for key, value in options.items()}
        state = module.reassign(*given, **options)
        return np.asarray(state.centroids), np.asarray(state.opt_state.counts)

    for package in ((dk, jnp.asarray), (dt, torch.tensor)):
        low, counts = refilled(LOW, 0.01, rows // 2)
        assert low.sum() == min(3, rows // 2)
        expected = c.copy()
        expected[low] = points[index[: low.sum()]]
        centroids, weights = found(*package, rows)
        np.testing.assert_array_equal(centroids, expected)
        np.testing.assert_array_equal(weights, counts)
        # A row for each is enough; clusters without one stay.
        one, _ = found(*package, 1)
        assert (one != c).any(axis=1).sum() == 1
        for other in ({"ratio": 0.0}, {"active": LOW > 1}):
            np.testing.assert_array_equal(found(*package, rows, **other)[0], c)


def test_a_fit_that_refills_is_the_loop_of_updates_and_reassignments():
    """Every ⌈10 k / batch⌉ steps, and while a cluster has had no point."""
    optimizer, k, size, steps = dk.macqueen(), 5, 12, 22
    start, ratio, due = X[:k].at[0].set(9.0), 0.5, []
    state = dk.init(start, optimizer=optimizer)
    for t in range(steps):
        batch = X[rows(KEY, t, size, len(X))]
        before = state.opt_state.counts
        state, _ = dk.update(batch, state, optimizer=optimizer)
        # ⌈50 / 12⌉ = 5.
        if (t + 1) % 5 == 0 or (before == 0).any():
            due.append(t)
            key = jax.random.fold_in(jax.random.fold_in(KEY, t + 1), k)
            index = jnp.argsort(jax.random.uniform(key, (size,), jnp.float32))
            state = dk.reassign(batch, state, index, ratio=ratio)
    options = {"batch_size": size, "optimizer": optimizer, "reassignment_ratio": ratio}
    found = dk.fit_minibatch(KEY, X, start, num_steps=steps, **options)
    np.testing.assert_allclose(found.centroids, state.centroids, rtol=1e-12)
    assert due == [0, 4, 9, 14, 19]


def test_a_fit_refills_clusters_that_get_no_points():
    far = jnp.concatenate([C[:3], jnp.full((2, 3), 99.0)])
    options = {"num_steps": 30, "batch_size": 30, "optimizer": dk.macqueen()}
    without = dk.fit_minibatch(KEY, X, far, **options)
    assert dk.Status.EMPTY_CLUSTER in without.flags
    for weights in (None, W):
        option = {"weights": weights, "reassignment_ratio": 0.1}
        found = dk.fit_minibatch(KEY, X, far, **options, **option)
        assert found.flags == dk.Status.MAX_STEPS
        assert jnp.abs(found.centroids).max() < 4
        half = dk.fit_minibatch(KEY, X, far, **options | {"num_steps": 11}, **option)
        rest = options | {"num_steps": 19}
        rest = dk.fit_minibatch(KEY, X, half.state, **rest, **option)
        np.testing.assert_allclose(rest.centroids, found.centroids, rtol=1e-12)


def test_rows_without_weight_are_never_what_a_cluster_is_set_to():
    bad = X.at[::2].set(jnp.nan)
    weights = jnp.ones(90).at[::2].set(0)
    far = jnp.concatenate([X[1:4:2], jnp.full((3, 3), 99.0)])
    options = {"num_steps": 20, "batch_size": 8, "optimizer": dk.ema(0.9)}
    options |= {"weights": weights, "reassignment_ratio": 0.5}
    found = dk.fit_minibatch(KEY, bad, far, **options)
    assert jnp.isfinite(found.centroids).all()
    assert int(found.num_steps) == 20


OPTIONS = {"num_steps": 3, "batch_size": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "random"}, "^sampling must be 'replacement', 'shuffled' or"),
        ({"sampling": "shuffled", "batch_size": 91}, "^batch_size must be at most n ="),
        ({"patience": 0}, "^patience must be at least 1"),
        ({"patience": 1.5}, "^patience must be a Python integer"),
        ({"reassignment_ratio": -1}, "^reassignment_ratio must be finite and not neg"),
        (
            {"reassignment_ratio": 0.1, "optimizer": optax.sgd(0.1)},
            r"^optimizer must keep running counts for a reassignment, as macqueen\(\)",
        ),
    ],
)
def test_what_an_option_cannot_be(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dk.fit_minibatch(KEY, X, C, **OPTIONS | options)


@pytest.mark.parametrize(
    ("module", "array"), [(dk, jnp.asarray), (dt, torch.tensor)], ids=["jax", "torch"]
)
def test_what_cannot_be_reassigned_is_said(module, array):
    x, c, index = (array(np.array(a)) for a in (X, C, np.arange(3)))
    state = module.init(c, optimizer=module.macqueen())
    with pytest.raises(TypeError, match=r"^state must be a State"):
        module.reassign(x, c, index)
    for wrong in (array(np.arange(3.0)), index[:, None]):
        with pytest.raises(TypeError, match=r"^index must be integers \[j\], got"):
            module.reassign(x, state, wrong)
    with pytest.raises(ValueError, match=r"^ratio must be finite"):
        module.reassign(x, state, index, ratio=-1)
    with pytest.raises(ValueError, match=r"^state must be of the"):
        module.reassign(x, state, index, optimizer=module.ema())
    newton = module.init(c)
    with pytest.raises(ValueError, match=r"^optimizer must keep running"):
        module.reassign(x, newton, index, optimizer=module.newton())
