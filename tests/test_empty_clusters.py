"""Empty and inactive clusters: the policies, and padding that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from problems import C, X, lloyd, status

import diffkm_jax as dk
import diffkm_torch as dt


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


def test_farthest_moves_no_cluster_to_a_point_that_costs_nothing():
    # Two places, three clusters: whoever moves to one of them is empty again.
    x = np.repeat([[0.0, 0.0], [4.0, 2.0]], 3, axis=0)
    c = np.array([[0.0, 0.0], [4.0, 2.0], [9.0, 9.0]])
    ours = dk.fit(jnp.asarray(x), jnp.asarray(c), empty="farthest")
    theirs = dt.fit(torch.tensor(x), torch.tensor(c), empty="farthest")
    np.testing.assert_array_equal(ours.centroids, c)
    np.testing.assert_array_equal(theirs.centroids, c)
    np.testing.assert_array_equal(ours.counts, [3, 3, 0])
    assert status(ours) == dk.Status.CONVERGED | dk.Status.EMPTY_CLUSTER
    assert theirs.status == dt.Status.CONVERGED | dt.Status.EMPTY_CLUSTER


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
    # No past, but the point that each was set to.
    np.testing.assert_array_equal(online.opt_state.counts[2:], 1)


@pytest.mark.parametrize("name", ["macqueen", "ema"])
def test_a_row_that_is_set_counts_the_weight_of_its_point_and_nothing_else(name):
    x, c = with_empty()
    w = np.linspace(0.5, 1.5, len(x))

    def end(module, x, c, w):
        optimizer = getattr(module, name)()
        state = module.init(c, optimizer=optimizer)
        # Counts of a past in which every cluster had weight.
        counts = state.opt_state.counts + 5
        state = state._replace(opt_state=state.opt_state._replace(counts=counts))
        options = {"optimizer": optimizer, "empty": "farthest", "weights": w}
        return module.update(x, state, **options)[0]

    ours = end(dk, x, c, jnp.asarray(w))
    theirs = end(dt, *(torch.tensor(np.asarray(a)) for a in (x, c, w)))
    np.testing.assert_allclose(ours.centroids, theirs.centroids, rtol=1e-12)
    np.testing.assert_allclose(ours.opt_state.counts, theirs.opt_state.counts)
    far = np.argsort(-np.asarray(dk.pairwise(x, c).min(1)))[:2]
    np.testing.assert_array_equal(theirs.centroids[2:], np.asarray(x)[far])
    np.testing.assert_array_equal(theirs.opt_state.counts[2:], w[far])
    assert (theirs.opt_state.counts[:2] > 2).all()


@pytest.mark.parametrize(("module", "array"), [(dk, jnp.asarray), (dt, torch.tensor)])
def test_the_next_batch_averages_with_the_point_that_a_row_was_set_to(module, array):
    optimizer = module.macqueen()
    state = module.init(array([[0.0], [100.0]]), optimizer=optimizer)
    first, then = array([[0.0], [0.0], [6.0]]), array([[0.0], [8.0]])
    options = {"optimizer": optimizer, "empty": "farthest"}
    state, _ = module.update(first, state, **options)
    np.testing.assert_array_equal(state.centroids, [[0.0], [6.0]])
    state, _ = module.update(then, state, **options)
    np.testing.assert_array_equal(state.centroids, [[0.0], [7.0]])
    np.testing.assert_array_equal(state.opt_state.counts, [3.0, 2.0])


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


def test_of_more_empty_clusters_than_points_the_last_stay():
    x, c = jnp.array([[0.0], [4.0]]), jnp.array([[0.1], [9.0], [9.0], [9.0]])
    state, _ = dk.update(x, dk.init(c), empty="farthest")
    np.testing.assert_allclose(state.centroids[:, 0], [0.1, 4, 0, 9])


def test_a_padded_problem_may_have_fewer_points_than_rows_of_centroids():
    x, c = jnp.array([[0.0], [4.0]]), jnp.array([[1.0], [3.0], [0.0]])
    active = jnp.array([True, True, False])
    np.testing.assert_allclose(dk.fit(x, c, active=active).centroids[:, 0], [0, 4, 0])
