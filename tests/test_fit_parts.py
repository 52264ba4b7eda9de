"""The parts of a fit, each called alone: the stop rule, one advance, the variance."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkm_jax as dk
from diffkm_jax._blocks import _in_pieces, block_for
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._statistics import statistics_of
from diffkm_jax.distances import squared_euclidean
from diffkm_jax.fitting._conjugate_residuals import conjugate_residuals
from diffkm_jax.fitting._empty import costliest, fill_farthest, set_rows
from diffkm_jax.fitting._loop import (
    Progress,
    StopRule,
    advance,
    has_converged,
    mean_variance,
    tolerance,
)
from diffkm_jax.fitting._step import Algorithm

C = jnp.array([[3.0, 0.0], [0.0, 4.0]])
X = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 5.0]])
EPS = float(jnp.finfo(jnp.float64).eps)
SQUARED = jax.tree_util.Partial(squared_euclidean)
HERE = Problem(X, SQUARED)
ALGORITHM = Algorithm(Plan(), dk.newton(), "keep", None)


def rule(tol=0.0, variance=2.0, temperature=None):
    return StopRule(jnp.asarray(tol), jnp.asarray(variance), temperature)


def at_start(centroids):
    no, state = jnp.zeros((), bool), dk.init(centroids)
    return Progress(state, jnp.zeros(4), jnp.zeros((), jnp.int32), no, no)


def test_the_tolerance_is_relative_to_the_variance_and_never_below_rounding():
    assert tolerance(rule(tol=0.25), HERE, C, None) == 0.5
    # From the first centroid, which is as near to their mean as the other.
    floor = EPS**2 * (9 + 16 + 64 * 2 * 2 * 2.0)
    np.testing.assert_allclose(tolerance(rule(), HERE, C, None), floor, rtol=1e-14)
    active = jnp.array([True, False])
    floor = EPS**2 * (64 * 2 * 2 * 2.0)
    np.testing.assert_allclose(tolerance(rule(), HERE, C, active), floor, rtol=1e-14)
    far = tolerance(rule(), HERE, C + 2.0**40, None)
    np.testing.assert_allclose(far, tolerance(rule(), HERE, C, None), rtol=1e-14)


def test_a_residual_at_the_tolerance_is_the_last():
    assert has_converged(rule(tol=0.25), HERE, jnp.asarray(0.5), C, None)
    above = jnp.nextafter(jnp.asarray(0.5), 1.0)
    assert not has_converged(rule(tol=0.25), HERE, above, C, None)


@pytest.mark.parametrize("variance", [jnp.inf, jnp.nan])
def test_nothing_converges_by_a_tolerance_that_is_not_finite(variance):
    found = has_converged(rule(0.1, variance), HERE, jnp.asarray(0.0), C, None)
    assert not found


def test_a_fit_that_is_not_yet_at_its_last_temperature_has_not_converged():
    cold = rule(tol=0.25, temperature=jnp.asarray(0.5))
    zero = jnp.asarray(0.0)
    last, before = (HERE._replace(temperature=jnp.asarray(t)) for t in (0.5, 0.6))
    assert has_converged(cold, last, zero, C, None)
    assert not has_converged(cold, before, zero, C, None)


def test_an_advance_is_one_step_and_writes_down_the_loss_before_it():
    new = advance(ALGORITHM, HERE, rule(), at_start(C))
    np.testing.assert_array_equal(new.state.centroids, [[1.0, 0.0], [0.0, 4.0]])
    assert (int(new.num_steps), int(new.state.step)) == (1, 1)
    # (0, 0) is nearer to (3, 0) than to (0, 4).
    np.testing.assert_array_equal(new.history, [9 + 1 + 1 + 1, 0, 0, 0])
    assert not new.converged
    assert not new.failed
    rests = advance(ALGORITHM, HERE, rule(), new)
    assert rests.converged
    np.testing.assert_array_equal(rests.history, [12, 4, 0, 0])


def test_an_advance_that_is_not_finite_keeps_the_state_and_counts_no_step():
    start = at_start(C)
    broken = HERE._replace(points=X.at[0].set(jnp.nan))
    bad = advance(ALGORITHM, broken, rule(tol=1.0), start)
    assert bad.failed
    assert not bad.converged
    assert int(bad.num_steps) == 0
    np.testing.assert_array_equal(bad.state.centroids, start.state.centroids)


def test_an_inactive_centroid_may_be_nan_without_a_failure():
    start = at_start(jnp.concatenate([C, jnp.full((1, 2), jnp.nan)]))
    active = jnp.array([True, True, False])
    new = advance(ALGORITHM, HERE._replace(active=active), rule(), start)
    assert not new.failed
    np.testing.assert_array_equal(new.state.centroids[:2], [[1.0, 0.0], [0.0, 4.0]])
    assert jnp.isnan(new.state.centroids[2]).all()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_variance_is_the_weighted_one_far_from_the_origin_too(offset):
    x = jax.random.normal(jax.random.key(0), (300, 4)) + offset
    w = jax.random.uniform(jax.random.key(1), (300,))
    found = mean_variance(Plan(), Problem(x, SQUARED, w), x[:2])
    centered = np.asarray(x) - offset
    mean = np.average(centered, axis=0, weights=w)
    expected = np.average((centered - mean) ** 2, axis=0, weights=w).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_row_that_is_set_is_forgotten_by_its_optimizer_and_no_other():
    optimizer = dk.macqueen()
    state, _ = dk.update(X, dk.init(C, optimizer=optimizer), optimizer=optimizer)
    filled = jnp.array([False, True])
    state = state._replace(remainder=jnp.full((2, 2), 1e-17))
    rows, weights = jnp.full((2, 2), 7.0), jnp.array([3.0, 0.5])
    new = set_rows(filled, rows, weights, state, optimizer, None)
    np.testing.assert_array_equal(new.centroids, [state.centroids[0], [7.0, 7.0]])
    np.testing.assert_array_equal(new.remainder, [[1e-17, 1e-17], [0, 0]])
    # The count of a row that is set is the weight of its point.
    np.testing.assert_array_equal(new.opt_state.counts, [2.0, 0.5])


@pytest.mark.parametrize(
    ("k", "d", "size"),
    [(128, 2, 16384), (129, 2, 8192), (2, 1024, 2048), (10**7, 2, 1024)],
)
def test_a_block_is_a_power_of_two_of_points_that_takes_8_mb_or_less(k, d, size):
    assert block_for(k, d) == size
    assert size in (1024, 16384) or max(k, d) * size <= 2**21 < 2 * max(k, d) * size


@pytest.mark.parametrize(
    ("n", "k", "d", "pieces"), [(1024, 16, 16, 2), (1025, 16, 16, 3), (480, 4, 64, 2)]
)
def test_copies_for_sums_by_label_take_a_64th_of_the_scores_and_rows(n, k, d, pieces):
    label = np.arange(n) % k
    index, found = _in_pieces(jnp.asarray(label), k, d)
    assert found == pieces
    np.testing.assert_array_equal(np.asarray(index) % k, label)
    assert len(np.unique(np.asarray(index) // k)) == pieces
    assert pieces * k * d <= n * (k + d) / 64 + k * d


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_a_system_without_a_usable_right_hand_side_has_the_solution_zero(scale):
    b = scale * jnp.ones(3)
    x, residual, _ = conjugate_residuals(lambda v: v, b, 1e-6, 10)
    np.testing.assert_array_equal(x, 0)
    np.testing.assert_array_equal(residual, 0)


def as_if_filled(weights):
    """What `fill_farthest` makes of three points about 0 and three empty clusters."""
    x, c = jnp.array([[1.0], [-2.0], [3.0]]), jnp.array([[0.5], [90.0], [91.0], [92.0]])
    plan, problem = Plan(), Problem(x, SQUARED, weights)
    problem = problem._replace(remainder=jnp.zeros_like(c))
    stats = statistics_of(plan, problem, c)
    costly = partial(costliest, plan, problem, c)
    return fill_farthest(plan, problem, c, stats, costly), stats


def test_statistics_are_those_of_the_points_in_the_clusters_they_filled():
    (used, filled, rows), stats = as_if_filled(jnp.array([1.0, 2.0, 0.0]))
    assert filled.tolist() == [False, True, True, False]
    assert rows[1:3, 0].tolist() == [-2, 1]  # The third point has no weight.
    assert used.counts.tolist() == [0, 2, 1, 0]
    np.testing.assert_allclose(used.shifts[1:3, 0], [2 * (-2 - 90), 1 - 91])
    np.testing.assert_allclose([used.shifts[0, 0], used.loss], [0, stats.loss])


def test_a_cluster_that_gave_all_its_points_has_no_weight_left_by_rounding():
    (used, *_), stats = as_if_filled(jnp.array([0.3, 0.2, 0.1]))
    assert stats.counts[0] != jnp.sum(jnp.array([0.1, 0.2, 0.3]))  # In the other order.
    assert used.counts[0] == 0
