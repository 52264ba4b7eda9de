"""Distances that overflow, and the smallest temperatures: limits, never NaN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from maps import MAPS, RULED, noise_for, scalar

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2)).astype(np.float32)
NEAR = X[:2] + np.float32(0.1)
FAR = np.concatenate([NEAR, np.float32([[3e19, 0]])])
ONES = np.ones(6, np.float32)
TINIEST = np.float32(1.2e-38)


def ours(f, *arrays):
    """Value and gradients by JAX."""
    program = jax.jit(jax.value_and_grad(partial(f, dk), range(len(arrays))))
    value, gradients = program(*arrays)
    return [np.asarray(a) for a in (value, *gradients)]


def theirs(f, *arrays):
    """The same by torch."""
    arrays = [torch.tensor(a, requires_grad=True) for a in arrays]
    value = f(dt, *arrays)
    gradients = torch.autograd.grad(
        value, arrays, allow_unused=True, materialize_grads=True
    )
    return [a.detach().numpy() for a in (value, *gradients)]


BOTH = pytest.mark.parametrize("side", [ours, theirs], ids=["jax", "torch"])


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# Distances that overflow --------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "name", ["hard", "softmax", *slow("sparsemax", "straight_through")]
)
def test_an_assignment_of_zero_costs_nothing_however_far(side, name):
    def loss(module, x, c, w, t):
        assignment = getattr(module, name)
        return module.assigned_loss(x, c, assignment, weights=w, temperature=t)

    weights = ONES.copy()
    weights[1] = 0
    near, far = (side(loss, X, c, weights, np.float32(0.7)) for c in (NEAR, FAR))
    far[2], left = far[2][:2], far[2][2]
    for mine, other in zip(far, near, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(left, 0)


@BOTH
def test_an_assignment_to_what_is_infinitely_far_costs_infinitely(side):
    def loss(module, x, c):
        return module.assigned_loss(x, c, lambda logits: 0 * module.hard(logits) + 0.5)

    assert side(loss, X, FAR)[0] == np.inf


@pytest.mark.slow
@BOTH
def test_a_step_and_a_fit_have_a_slope_in_the_temperature_however_far(side):
    def ends(c, module, t):
        array = jnp.asarray if module is dk else torch.tensor
        x, c = array(X), array(c)
        state, _ = module.update(x, module.init(c), temperature=t)
        fit = module.fit(x, c, temperature=t)
        return state.centroids[:2].sum() + fit.centroids[:2].sum()

    one = np.float32(1)
    near, far = (side(partial(ends, c), one) for c in (NEAR, FAR))
    np.testing.assert_allclose(far, near, rtol=1e-4)


# The smallest temperatures ------------------------------------------------------------

TEMPERED = [name for name in MAPS if scalar(name) == "tau"]
FEW = ["softmax", "sparsemax", "sinkhorn", "straight_through"]
OTHERS = [name for name in TEMPERED if name not in FEW]
SMOOTH = [name for name in TEMPERED if name not in (*RULED, "sinkhorn")]


@BOTH
@pytest.mark.parametrize("name", [*FEW, *slow(*OTHERS)])
def test_a_map_has_slope_zero_in_the_smallest_tau(side, name):
    noise = noise_for(name, (6, 2), 1, np.float32)

    def first(module, z, t):
        array = jnp.asarray if module is dk else torch.tensor
        draws = {key: array(value) for key, value in noise.items()}
        setting = "tau_backward" if name.startswith("decoupled") else "tau"
        return getattr(module, name)(z, **draws, **{setting: t})[:, 0].sum()

    value, _, slope = side(first, X, TINIEST)
    assert np.isfinite(value)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("name", ["softmax", *slow(*SMOOTH[1:])])
def test_in_forward_mode_too(name):
    noise = noise_for(name, (6, 2), 1, np.float32)
    f = partial(getattr(dk, name), X, **noise)
    along = jax.jit(lambda t, dt: jax.jvp(lambda t: f(tau=t), (t,), (dt,)))
    _, slope = along(TINIEST, np.float32(1))
    np.testing.assert_array_equal(slope, 0)


@BOTH
def test_statistics_and_fits_have_slope_zero_in_the_smallest_temperature(side):
    def total(module, t):
        array = jnp.asarray if module is dk else torch.tensor
        x, c = array(X), array(NEAR)
        stats = module.statistics(x, c, temperature=t)
        fit = module.fit(x, c, temperature=t)
        sums = stats.loss + stats.counts[0] + stats.shifts.sum()
        return sums + fit.centroids.sum()

    value, slope = side(total, TINIEST)
    assert np.isfinite(value)
    assert slope == 0


@BOTH
@pytest.mark.parametrize("temperature", [TINIEST, *slow(np.float32(1e-36))])
def test_the_loss_of_any_distance_is_the_hard_one_at_the_smallest(side, temperature):
    def loss(module, x, t):
        array = jnp.asarray if module is dk else torch.tensor
        options = {"distance": module.manhattan, "temperature": t}
        return module.soft_kmeans_loss(x, array(10 * NEAR), **options)

    value, in_points, slope = side(loss, 10 * X, temperature)
    hard = partial(dk.kmeans_loss, distance=dk.manhattan)
    expected = jax.value_and_grad(hard)(10 * X, 10 * NEAR)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(in_points, expected[1], rtol=1e-6)
    assert slope == 0


def test_a_second_derivative_in_tau_is_that_of_the_formula():
    def first(t):
        return jax.nn.sigmoid(0.3 / t)

    def ours(t):
        return dk.softmax(jnp.array([0.3, 0.0]), tau=t)[0]

    for second in (jax.hessian, lambda f: jax.grad(jax.grad(f))):
        mine, other = (jax.jit(second(f))(0.5) for f in (ours, first))
        np.testing.assert_allclose(mine, other, rtol=1e-10)


@BOTH
@pytest.mark.parametrize("tau", [1e-18, *slow(1e-30, 1e-3)])
@pytest.mark.parametrize("name", ["rebar", "gumbel_rao"])
def test_given_the_draw_no_other_entry_ties_with_it_by_rounding(side, name, tau):
    logits, drawn = np.float32([0.1, 0.3]), np.float32([0, 1])
    noise = np.array([[[0, 2], [g, 0.3]] for g in (5, 20, 30, 50)], np.float32)
    options = {"num_samples": 1} if name == "gumbel_rao" else {}

    def first(module, z):
        array = jnp.asarray if module is dk else torch.tensor
        record = getattr(module.estimators, name)(tau=tau, **options)
        return sum(record.expect(lambda row: row[0], z, array(g)) for g in noise)

    # With s = log(1 + exp(a)) what entry 0 is below entry 1, which is drawn, it has
    # the share q = 1/(1 + exp(s/tau)) of the relaxed row.
    z, p = logits.astype(float), np.exp(logits) / np.exp(logits).sum()
    a = np.logaddexp(z[0], z[1]) + noise[:, 1, 1] - noise[:, 1, 0].astype(float) - z[0]
    s = np.log1p(np.exp(a))[:, None]
    q = np.exp(-np.logaddexp(0, s / tau))
    slope = q * (1 - q) / tau
    through_sampler = slope / (1 + np.exp(-a[:, None])) * (p - [1, 0])
    expected = {
        "gumbel_rao": slope * [1, -1],
        "rebar": -q * (drawn - p) + through_sampler,
    }
    _, found = side(first, logits)
    np.testing.assert_allclose(found, expected[name].sum(0), rtol=1e-4, atol=1e-6)


# NaN among many -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 5000])
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15", "entmax"])
def test_a_row_with_a_nan_is_nan_among_any_number_of_rows(name, n):
    logits = np.random.default_rng(0).normal(size=(n, 3))
    logits[n // 2, 1] = np.nan
    rows = getattr(dk, name)(logits), getattr(dt, name)(torch.tensor(logits))
    for found in map(np.asarray, rows):
        np.testing.assert_array_equal(np.isnan(found).all(1), np.isnan(logits[:, 1]))
        np.testing.assert_allclose(np.nansum(found), n - 1)


@pytest.mark.parametrize("n", [*slow(10), 5000])
def test_an_inert_row_may_have_one_distance_that_is_nan_among_any_number(n):
    def distance(x, c):
        away = (x[..., 0] > 50) & (c[..., 0] < 0)
        return jnp.where(away, jnp.nan, jnp.sum((x - c) ** 2, axis=-1))

    x, c = np.random.default_rng(0).normal(size=(n, 2)), np.eye(2) - 0.5
    x[n // 2, 0], weights = 100, np.arange(n) != n // 2

    def losses(x, c, w):
        options = {"weights": w, "distance": distance}
        soft = dk.soft_kmeans_loss(x, c, temperature=1.0, **options)
        assigned = dk.assigned_loss(x, c, dk.softmax, **options)
        return dk.kmeans_loss(x, c, **options) + soft + assigned

    found, without = (
        jax.jit(jax.value_and_grad(losses, 1))(a, c, b)
        for a, b in ((x, 1.0 * weights), (x[weights], None))
    )
    np.testing.assert_allclose(found[0], without[0], rtol=1e-10)
    np.testing.assert_allclose(found[1], without[1], rtol=1e-10)


@pytest.mark.parametrize("distance", [dk.squared_euclidean, dk.manhattan])
def test_second_derivatives_do_not_depend_on_the_unit_of_the_data(distance):
    x, c = RNG.normal(size=(9, 2)), RNG.normal(size=(3, 2))
    power = 2 if distance is dk.squared_euclidean else 1

    @jax.jit
    def second(scale):
        def loss(c, t):
            options = {"temperature": t, "distance": distance}
            return dk.soft_kmeans_loss(scale * x, scale * c, **options) / scale**power

        return jax.hessian(loss, (0, 1))(c, scale**power)

    plain = second(1.0)
    for scale in (2.0**-10, 2.0**10):
        ((cc, ct), (_, tt)), ((cc1, ct1), (_, tt1)) = second(scale), plain
        unit = scale**power
        np.testing.assert_allclose(cc, cc1, atol=1e-9)
        np.testing.assert_allclose(unit * ct, ct1, atol=1e-9)
        np.testing.assert_allclose(unit**2 * tt, tt1, atol=1e-9)
