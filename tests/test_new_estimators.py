"""The newer estimators: closed forms, enumeration, and what cannot be meant."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from maps import gumbel

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_jax import estimators as es

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(4, 5)))
COTANGENT = RNG.normal(size=(4, 5))
NOISE = gumbel((7, 4, 5))
SLOPE = jnp.asarray(RNG.normal(size=5))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slope_of(p):
    """J(p) g, by matrices."""
    matrix = np.einsum("...i,ij->...ij", p, np.eye(5))
    matrix = matrix - p[..., :, None] * p[..., None, :]
    return np.einsum("...ij,...j->...i", matrix, np.broadcast_to(COTANGENT, p.shape))


def halfway(tau):
    """ReinMax at tau = 1, and given the draw the mean slope at tau, and that alone.

    By exponential noise and weights instead of logits.
    """
    z = np.asarray(LOGITS)
    p, drawn = softmax(z), np.eye(5)[(z + NOISE[0]).argmax(-1)]
    q = (p + drawn) / 2
    exponential = np.exp(-NOISE[1:])
    of_draw = (exponential * drawn).sum(-1, keepdims=True)
    given = -np.log(np.where(drawn > 0, 0, exponential / q) + of_draw)
    mean = slope_of(softmax(given / tau)).mean(0) / tau
    alone = slope_of(softmax((np.log(q) + NOISE[0]) / tau)) / tau
    return 2 * slope_of(q) - slope_of(p) / 2, mean, alone, slope_of(p)


def gradient(f):
    return jax.vjp(f, LOGITS)[1](jnp.asarray(COTANGENT))[0]


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_the_gradient_of_reinmax_rao_and_cv_is_that_of_their_authors(tau):
    reinmax, mean, alone, plain = halfway(tau)
    found = gradient(partial(dk.reinmax_rao, noise=NOISE, tau=tau))
    np.testing.assert_allclose(found, 2 * mean - plain / 2, atol=1e-13)
    for eta in (0.0, 0.5, 1.5):
        found = gradient(partial(dk.reinmax_cv, noise=NOISE, tau=tau, eta=eta))
        expected = reinmax + eta * (mean - alone)
        np.testing.assert_allclose(found, expected, atol=1e-13)


def test_they_draw_what_reinmax_draws():
    for f in (dk.reinmax_rao, dk.reinmax_cv):
        np.testing.assert_array_equal(f(LOGITS, NOISE), dk.reinmax(LOGITS, NOISE[0]))


def test_an_argmax_smoothed_by_normal_noise_has_the_gradient_of_its_mean():
    logits = jnp.array([0.3, -0.2, 0.1])
    noise = jnp.asarray(RNG.normal(size=(400_000, 3)))

    def first(z):
        return dk.perturbed_argmax(z, noise, scale=0.8, distribution="normal")[0]

    # Of two normal variables: P(z_0 − z_1 + 0.8 √2 n > 0), differentiated.
    pair = logits[:2]

    def two(z):
        f = partial(dk.perturbed_argmax, scale=0.8, distribution="normal")
        return f(z, noise[:, :2])[0]

    width = 0.8 * np.sqrt(2)
    density = jax.scipy.stats.norm.pdf(0.5 / width) / width
    np.testing.assert_allclose(jax.grad(two)(pair), [density, -density], atol=0.01)
    steps = [
        (first(logits + 0.2 * e) - first(logits - 0.2 * e)) / 0.4 for e in np.eye(3)
    ]
    np.testing.assert_allclose(jax.grad(first)(logits), steps, atol=0.015)
    with pytest.raises(ValueError, match=r"^distribution must be 'gumbel' or 'normal'"):
        dk.perturbed_argmax(logits, noise[:2], distribution="uniform")
    with pytest.raises(ValueError, match=r"^distribution must be 'gumbel' or 'normal'"):
        dt.perturbed_argmax(torch.zeros(3), torch.zeros(2, 3), distribution="uniform")


def orders(p, chosen):
    """The probability of a set without replacement, over its orders."""
    total = 0.0
    for order in itertools.permutations(chosen):
        left, product = 1.0, 1.0
        for i in order:
            product *= p[i] / left
            left -= p[i]
        total += product
    return total


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_unordered_set_is_unbiased_over_all_sets(size):
    logits, record = LOGITS[0], es.unordered_set(num_samples=size)
    f = lambda row: (row @ SLOPE) ** 3  # noqa: E731
    p = softmax(np.asarray(logits))
    value, mean, total = 0.0, np.zeros(5), 0.0
    both = jax.jit(jax.value_and_grad(lambda z, g: record.expect(f, z, g)))
    for chosen in itertools.combinations(range(5), size):
        noise = np.full((1, 5), -50.0)
        noise[0, list(chosen)] = 50 + np.arange(size)
        weight = orders(p, chosen)
        found = both(logits, noise)
        value, mean = value + weight * found[0], mean + weight * found[1]
        total += weight
    np.testing.assert_allclose(total, 1)
    exact = jax.value_and_grad(lambda z: es.exact().expect(f, z))(logits)
    np.testing.assert_allclose(value, exact[0], rtol=1e-10)
    np.testing.assert_allclose(mean, exact[1], rtol=1e-9, atol=1e-13)


def test_a_set_of_everything_is_exact_also_with_impossible_clusters():
    record = es.unordered_set(num_samples=5)
    logits = LOGITS[0].at[3].set(-jnp.inf)
    f = lambda row: (row @ SLOPE) ** 3  # noqa: E731
    found = jax.grad(lambda z: record.expect(f, z, NOISE[:1, 0]))(logits)
    exact = jax.grad(lambda z: es.exact().expect(f, z))(logits)
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_two_draws_of_arms_have_the_law_of_disarm():
    logits = jnp.asarray(RNG.normal(size=(3, 2)))
    slope = jnp.asarray(RNG.normal(size=(3, 2)))
    f = lambda rows: jnp.sum(jnp.sin(3 * rows) * slope, axis=-1)  # noqa: E731
    arms, disarm = dk.evaluate(
        KEY, f, logits, [es.arms(num_samples=2), es.disarm()], num_samples=100_000
    )
    for report in (arms, disarm):
        assert (jnp.abs(report.bias) < 4.5 * report.bias_error).all()
    np.testing.assert_allclose(arms.total_variance, disarm.total_variance, rtol=0.02)


def test_arm_has_more_variance_than_disarm_and_arms_less_than_rloo():
    logits = jnp.asarray(RNG.normal(size=(3, 2)))
    f = lambda rows: (jnp.sum(rows[:, 0]) - 1.3) ** 2  # noqa: E731
    records = es.arm(), es.disarm(), es.arms(num_samples=6), es.rloo(num_samples=6)
    arm, disarm, arms, rloo = (
        float(r.total_variance)
        for r in dk.evaluate(KEY, f, logits, list(records), num_samples=20_000)
    )
    assert disarm < 0.95 * arm
    assert arms < 0.95 * rloo


@pytest.mark.parametrize("logit", [-40.0, -3.0, 0.0, 3.0, 40.0])
@pytest.mark.parametrize("n", [2, 3, 20])
def test_draws_of_arms_have_their_probability(logit, n):
    logits = jnp.array([logit, 0.0])
    noise = gumbel((n, 20_000, 2))
    record = es.arms(num_samples=n)
    many = jnp.broadcast_to(logits, (20_000, 2))
    costs, pullback = jax.vjp(
        lambda z: record.expect(lambda r: r[:, 0], z, noise), many
    )
    p = float(jax.nn.sigmoid(logit))
    np.testing.assert_allclose(costs.mean(), p, atol=0.01)
    slope = pullback(jnp.ones_like(costs))[0].mean(0)
    np.testing.assert_allclose(slope, [p * (1 - p), -p * (1 - p)], atol=0.02)


def test_rodeo_of_one_row_has_no_variance_where_slopes_are_all():
    record = es.rodeo(num_samples=2)
    report = dk.evaluate(KEY, lambda row: row @ SLOPE, LOGITS[0], record)
    np.testing.assert_allclose(report.variance, 0, atol=1e-25)
    np.testing.assert_allclose(report.bias, 0, atol=1e-13)


def test_rodeo_is_unbiased_for_joint_rows_at_any_weights():
    def joint(rows):
        return jnp.exp(rows[0] @ SLOPE[:3]) * (rows[1] @ SLOPE[2:]) ** 2

    logits = LOGITS[:2, :3]
    for alpha, beta in ((1.0, 1.0), (-0.7, 2.0), (0.0, 0.0)):
        record = es.rodeo(num_samples=2, alpha=alpha, beta=beta)
        report = dk.evaluate(KEY, joint, logits, record)
        assert bool(report.enumerated)
        np.testing.assert_allclose(report.bias, 0, atol=1e-13)
    plain = dk.evaluate(KEY, joint, logits, es.rloo(num_samples=2))
    np.testing.assert_allclose(report.variance, plain.variance, rtol=1e-10)


def test_bernoulli_variables_are_one_logit_each():
    theta = jnp.array([0.4, -1.0, 2.0])

    def f(b):
        return (jnp.sum(b * SLOPE[:3]) - 0.3) ** 2

    def expected(theta):
        total = 0.0
        for bits in itertools.product((0.0, 1.0), repeat=3):
            b = jnp.array(bits)
            p = jnp.prod(
                jnp.where(b > 0, jax.nn.sigmoid(theta), jax.nn.sigmoid(-theta))
            )
            total += p * f(b)
        return total

    def mean(theta):
        return es.exact().expect(*es.bernoulli(f, theta))

    for a, b in zip(
        jax.value_and_grad(mean)(theta),
        jax.value_and_grad(expected)(theta),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    cost, logits = es.bernoulli(f, theta)
    assert cost == es.bernoulli(f, theta)[0]
    reports = dk.evaluate(
        KEY, cost, logits, [es.disarm(), es.arm(), es.arms()], num_samples=20_000
    )
    for report in reports:
        assert (jnp.abs(report.bias) < 4.5 * report.bias_error).all()


@pytest.mark.parametrize("package", [dk, dt], ids=["jax", "torch"])
def test_what_cannot_be_meant_is_said(package):
    arrays = {dk: jnp.zeros, dt: torch.zeros}[package]
    space, z = package.estimators, arrays((4, 3))

    def expect(record, cost=lambda rows: rows.sum((-2, -1)), logits=z):
        return record.expect(cost, logits, arrays((record.num_draws, *logits.shape)))

    with pytest.raises(ValueError, match=r"^control must return .* got shape \(4,\)"):
        expect(space.relax(lambda params, z: z.sum(-1), arrays(3)))
    with pytest.raises(TypeError, match=r"^control must be a function, got 3"):
        space.relax(3, arrays(3))
    with pytest.raises(TypeError, match=r"^params must be "):
        space.relax(lambda params, z: z, "a" if package is dk else arrays(3).int())
    for name in ("arm", "arms", "disarm"):
        with pytest.raises(ValueError, match=rf"^logits must be .* 2\] for {name}, "):
            expect(getattr(space, name)())
    with pytest.raises(ValueError, match=r"^num_samples must be at most the number"):
        expect(space.unordered_set(num_samples=4), lambda rows: rows.sum(-1))
    with pytest.raises(ValueError, match=r"^f must return a cost of every row for uno"):
        expect(space.unordered_set(num_samples=2))
    for name, least in (("arms", 2), ("rodeo", 2), ("unordered_set", 2)):
        with pytest.raises(ValueError, match=rf"^num_samples must be at least {least}"):
            getattr(space, name)(num_samples=1)
        with pytest.raises(TypeError, match=r"^num_samples must be a Python integer"):
            getattr(space, name)(num_samples=2.0)
    with pytest.raises(ValueError, match=r"^num_samples must be .*at most 6, got 7"):
        space.unordered_set(num_samples=7)
    for name in ("reinmax_rao", "reinmax_cv"):
        with pytest.raises(ValueError, match=r"^num_samples must be at least 1"):
            getattr(space, name)(num_samples=0)
        with pytest.raises(ValueError, match=r"^tau must be finite and positive, got"):
            getattr(space, name)(tau=0.0)
    with pytest.raises(ValueError, match=r"^eta must be finite and not negative, got"):
        space.reinmax_cv(eta=-1.0)
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=rf"^{name} must be a scalar .*\(2,\)"):
            space.rodeo(**{name: arrays(2)})
        with pytest.raises(TypeError, match=rf"^{name} must be "):
            space.rodeo(**{name: "a"})
    with pytest.raises(TypeError, match=r"^f must be a function, got 3"):
        space.bernoulli(3, z)
    with pytest.raises(ValueError, match=r"^log_odds must be \[..., k\]"):
        space.bernoulli(lambda b: b.sum(), arrays(()))
    with pytest.raises(ValueError, match=r"^costs must have the first axes of rows \("):
        space.over_rows(arrays(3), z)
    assert space.over_rows(arrays(4), z).shape == (4, 1)
