"""Assignments: values as declared, gradients as declared, in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from maps import COTANGENT, DISCRETE, LOGITS, SOFT, gradient, gumbel, mapped, noise_for

import diffkm_jax as dk
import diffkm_torch as dt

NOISE = jnp.asarray(gumbel((6, 5), 2))
TAUS = [0.3, 1.0, 4.0]


def pulled(p, cotangent=COTANGENT):
    """J(p) g, row by row."""
    return p * (cotangent - jnp.sum(p * cotangent, axis=-1, keepdims=True))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_discrete_values_are_exact_one_hots_of_the_draw(name, dtype, transform):
    logits = LOGITS.astype(dtype)
    rows = transform(mapped(name))(logits)
    noise = noise_for(name, LOGITS.shape).get("noise", np.zeros(LOGITS.shape))
    first = noise[0] if noise.ndim > 2 else noise
    expected = np.eye(5)[np.argmax(np.asarray(logits, np.float64) + first, -1)]
    assert rows.dtype == dtype
    np.testing.assert_array_equal(np.asarray(rows, np.float64), expected)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_soft_rows_sum_to_one_in_the_dtype_of_the_logits(name, dtype):
    rows = mapped(name)(LOGITS.astype(dtype))
    assert rows.dtype == dtype
    assert (rows >= 0).all()
    total = np.asarray(rows, np.float64).sum(-1)
    np.testing.assert_allclose(total, 1, atol=4 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", [n for n in DISCRETE if not noise_for(n, (1,))])
def test_a_tie_goes_to_the_lowest_index(name):
    rows = getattr(dk, name)(jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
    np.testing.assert_array_equal(rows, [[0, 1, 0], [1, 0, 0]])


# What the gradient is, in closed form ------------------------------------------------


def test_hard_has_gradient_zero():
    np.testing.assert_array_equal(gradient(dk.hard), jnp.zeros_like(LOGITS))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize(
    "name", ["softmax", "straight_through", "sampled_straight_through"]
)
def test_the_gradient_is_the_softmax_one_in_logits_and_tau(name, tau):
    def f(z, t):
        return jnp.sum(mapped(name, t)(z) * COTANGENT)

    in_logits, in_tau = jax.grad(f, argnums=(0, 1))(LOGITS, jnp.asarray(tau))
    expected = pulled(jax.nn.softmax(LOGITS / tau)) / tau
    np.testing.assert_allclose(in_logits, expected, atol=1e-12)
    np.testing.assert_allclose(in_tau, -jnp.sum(expected * LOGITS) / tau, atol=1e-10)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("hard", [False, True])
def test_the_gradient_of_gumbel_softmax_is_that_of_the_relaxed_draw(hard, tau):
    def f(z, g, t):
        return jnp.sum(dk.gumbel_softmax(z, g, tau=t, hard=hard) * COTANGENT)

    grads = jax.grad(f, (0, 1, 2))(LOGITS, NOISE, jnp.asarray(tau))
    score = LOGITS + NOISE
    expected = pulled(jax.nn.softmax(score / tau)) / tau
    np.testing.assert_allclose(grads[0], expected, atol=1e-12)
    np.testing.assert_allclose(grads[1], expected, atol=1e-12)
    np.testing.assert_allclose(grads[2], -jnp.sum(expected * score) / tau, atol=1e-10)


def test_decoupled_gumbel_softmax_has_the_value_of_one_tau_and_the_slope_of_another():
    f = partial(dk.decoupled_gumbel_softmax, noise=NOISE, tau=0.3, tau_backward=2.0)
    value = dk.gumbel_softmax(LOGITS, NOISE, tau=0.3)
    np.testing.assert_allclose(f(LOGITS), value, atol=1e-15)
    soft = partial(dk.gumbel_softmax, noise=NOISE, tau=2.0)
    np.testing.assert_allclose(gradient(f), gradient(soft), atol=1e-15)

    def of_taus(t, b):
        rows = dk.decoupled_gumbel_softmax(LOGITS, NOISE, tau=t, tau_backward=b)
        return jnp.sum(rows * COTANGENT)

    in_tau, in_backward = jax.grad(of_taus, (0, 1))(0.3, 2.0)
    assert in_tau == 0
    by_soft = jax.grad(
        lambda b: jnp.sum(dk.gumbel_softmax(LOGITS, NOISE, tau=b) * COTANGENT)
    )(2.0)
    np.testing.assert_allclose(in_backward, by_soft, rtol=1e-12)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_gradient_of_reinmax_is_heuns_rule(tau):
    f = partial(dk.reinmax, noise=NOISE, tau=tau)
    drawn = f(LOGITS)
    middle = (jax.nn.softmax(LOGITS / tau) + drawn) / 2
    expected = 2 * pulled(middle) - pulled(jax.nn.softmax(LOGITS)) / 2
    np.testing.assert_allclose(gradient(f), expected, atol=1e-12)


def test_reinmax_is_the_average_of_straight_through_and_darn():
    p, drawn = jax.nn.softmax(LOGITS), dk.reinmax(LOGITS, NOISE)
    darn = (drawn - p) * jnp.sum((drawn - p) * COTANGENT, -1, keepdims=True)
    np.testing.assert_allclose(
        gradient(partial(dk.reinmax, noise=NOISE)),
        (pulled(p) + darn) / 2,
        atol=1e-12,
    )


@pytest.mark.parametrize("gap", [0.0, 1.0, 3.0, None])
def test_the_gradient_of_a_gapped_draw_is_that_of_a_softmax_with_the_gap(gap):
    tau = 0.7
    f = partial(dk.gapped_straight_through, noise=NOISE, tau=tau, gap=gap)
    rows = []
    for z, drawn in zip(np.asarray(LOGITS), np.asarray(f(LOGITS)), strict=True):
        d = drawn.argmax()
        p = np.exp(z[d]) / np.exp(z).sum()
        width = -np.log1p(-p) / p if gap is None else gap
        shifted = np.minimum(z, z.max() - width)
        shifted[d] = z.max()
        rows.append(jax.nn.softmax(shifted / tau))
    expected = pulled(jnp.stack(rows)) / tau
    np.testing.assert_allclose(gradient(f), expected, atol=1e-12)
    in_gap = jax.grad(
        lambda g: jnp.sum(dk.gapped_straight_through(LOGITS, NOISE, gap=g) * COTANGENT)
    )(1.0)
    assert in_gap == 0


def test_the_gradient_of_gumbel_rao_is_the_mean_over_conditional_samples():
    noise = jnp.asarray(gumbel((4, 6, 5), 3))
    tau = 0.5
    drawn = dk.hard(LOGITS + noise[0])
    total = 0
    for g in noise[1:]:
        z = dk.conditional_gumbel(LOGITS, drawn, g, differentiable=False)
        total += pulled(jax.nn.softmax(z / tau)) / tau
    f = partial(dk.gumbel_rao, noise=noise, tau=tau)
    np.testing.assert_allclose(gradient(f), total / 3, atol=1e-12)


def test_blackbox_is_the_slope_to_the_perturbed_choice():
    f = partial(dk.blackbox, strength=2.0)
    found = gradient(f, jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(found, [0.5, -0.5])
    better = dk.hard(LOGITS - 2 * COTANGENT)
    expected = (dk.hard(LOGITS) - better) / 2
    assert (expected != 0).any()
    np.testing.assert_array_equal(gradient(f), expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_implicit_mle_is_the_difference_to_a_better_draw(scaled):
    strength = 2.0
    f = partial(dk.implicit_mle, noise=NOISE, strength=strength, scaled=scaled)
    difference = dk.hard(LOGITS + NOISE) - dk.hard(
        LOGITS - strength * COTANGENT + NOISE
    )
    assert (difference != 0).any()
    divisor = strength if scaled else 1
    np.testing.assert_array_equal(gradient(f), difference / divisor)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "entmax"])
def test_sparse_values_are_the_known_ones(name):
    rows = getattr(dk, name)(jnp.array([[1, 0.8, 0.1], [0, 0.5, 1]]))
    expected = {
        "sparsemax": [[0.6, 0.4, 0], [0, 0.25, 0.75]],
        "entmax15": [[0.529248, 0.393749, 0.077003], [0.084136, 0.291667, 0.624198]],
    }
    expected["entmax"] = expected["entmax15"]
    np.testing.assert_allclose(rows, expected[name], atol=1e-6)


def test_sparsemax_is_the_projection_of_optax():
    for tau in (0.2, 1.0, 30.0):
        ours = dk.sparsemax(LOGITS, tau=tau)
        with jax.numpy_dtype_promotion("standard"):  # optax promotes inside.
            theirs = jax.vmap(optax.projections.projection_simplex)(LOGITS / tau)
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_sparse_gradients_live_on_the_support(tau):
    rows = dk.sparsemax(LOGITS, tau=tau)
    on = rows > 0
    mean = jnp.mean(COTANGENT, axis=-1, keepdims=True, where=on)
    expected = jnp.where(on, COTANGENT - mean, 0) / tau
    found = gradient(partial(dk.sparsemax, tau=tau))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    s = jnp.sqrt(dk.entmax15(LOGITS, tau=tau))
    mean = jnp.sum(s * COTANGENT, -1, keepdims=True) / jnp.sum(s, -1, keepdims=True)
    found = gradient(partial(dk.entmax15, tau=tau))
    np.testing.assert_allclose(found, s * (COTANGENT - mean) / tau, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "gap"), [("sparsemax", 1.0), ("entmax15", 2.0), ("entmax", 2.0)]
)
def test_a_logit_right_at_the_threshold_is_outside_of_the_support(name, gap):
    # There the map has a kink: the gradient is that of the side where it stays zero.
    logits = np.array([gap, 0.0, -5.0])
    rows, pullback = jax.vjp(getattr(dk, name), jnp.asarray(logits))
    np.testing.assert_array_equal(rows, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(pullback(jnp.array([1.0, 2.0, 4.0]))[0], np.zeros(3))
    theirs = torch.tensor(logits, requires_grad=True)
    getattr(dt, name)(theirs).backward(torch.tensor([1.0, 2.0, 4.0]).double())
    np.testing.assert_array_equal(theirs.grad, np.zeros(3))


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15", "entmax"])
def test_huge_quotients_of_logits_and_tau_overflow_nowhere(name):
    f = getattr(dk, name)
    rows = f(jnp.array([1e9, 1e9 - 0.5, -1e9]))
    np.testing.assert_allclose(rows, f(jnp.array([0.5, 0.0, -5e3])), atol=1e-6)
    cases = [([1e8, 0, -jnp.inf, 5e7], 1.0), ([1e30, 0], 1e-10), ([3e38, -3e38], 0.1)]
    for logits, tau in cases:
        logits = jnp.asarray(logits, "float32")
        value, slopes = jax.value_and_grad(lambda z, t: f(z, tau=t)[0], argnums=(0, 1))(
            logits, jnp.float32(tau)
        )
        assert value == 1
        for slope in slopes:
            np.testing.assert_array_equal(slope, jnp.zeros_like(slope))


def test_the_expected_gap_of_an_impossible_draw_is_one():
    logits, noise = jnp.array([0.0, -800.0, 1.0]), jnp.array([-900.0, 0.0, -900.0])
    found = [
        jax.grad(lambda z, g=gap: dk.gapped_straight_through(z, noise, gap=g)[1])(
            logits
        )
        for gap in (None, 1.0)
    ]
    assert found[0][1] > 0
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_the_expected_gap_of_an_unlikely_draw_is_one_in_float32():
    logits = jnp.zeros(2**20, "float32")
    noise = jnp.zeros(2**20, "float32").at[3].set(9.0)
    ct = jnp.zeros(2**20, "float32").at[3].set(1.0)
    of_gap = [
        jax.vjp(lambda z, g=gap: dk.gapped_straight_through(z, noise, gap=g), logits)[
            1
        ](ct)[0][3]
        for gap in (None, 1.0)
    ]
    np.testing.assert_allclose(of_gap[0], of_gap[1], rtol=1e-4)


def test_sinkhorn_balances_rows_and_columns():
    costs = jnp.array([[0.2, 1.0], [0.7, 0.1]])
    plan = dk.sinkhorn(-costs, tau=0.3, num_iters=100)
    np.testing.assert_allclose(plan[0, 0], 2 * 0.4558002, atol=1e-7)
    plan = dk.sinkhorn(LOGITS, num_iters=200)
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-14)
    np.testing.assert_allclose(plan.sum(0), 6 / 5, rtol=1e-10)
    sizes = jnp.array([1.0, 2.0, 3.0, 1.0, 5.0])
    plan = dk.sinkhorn(LOGITS, num_iters=500, column_weights=sizes)
    np.testing.assert_allclose(plan.sum(0), 6 * sizes / 12, rtol=1e-10)
    np.testing.assert_allclose(
        dk.sinkhorn(LOGITS, num_iters=0), dk.softmax(LOGITS), rtol=1e-14
    )


def test_sinkhorn_leaves_out_a_cluster_and_a_row_of_minus_infinity():
    logits = LOGITS.at[:, 2].set(-jnp.inf).at[4].set(-jnp.inf)
    plan = dk.sinkhorn(logits, num_iters=200)
    rest = np.delete(np.delete(np.asarray(LOGITS), 2, 1), 4, 0)
    expected = dk.sinkhorn(rest, num_iters=200)
    kept = np.delete(np.delete(np.asarray(plan), 2, 1), 4, 0)
    np.testing.assert_allclose(kept, expected, rtol=1e-10)
    found = jax.grad(lambda z: jnp.nansum(dk.sinkhorn(z, num_iters=20) * COTANGENT))(
        logits
    )
    assert jnp.isfinite(found).all()
    assert (found[4] == 0).all()


# The conditional sampler --------------------------------------------------------------


def test_conditional_noise_makes_the_draw_again_and_is_gumbel_given_it():
    rng = np.random.default_rng(0)
    logits = jnp.array([0.5, -1.0, 1.5])
    first = jnp.asarray(rng.gumbel(size=(200_000, 3)))
    drawn = jax.vmap(dk.hard)(logits[None] + first)
    second = jnp.asarray(rng.gumbel(size=(200_000, 3)))
    again = jax.vmap(
        lambda d, g: dk.conditional_gumbel(logits, d, g, differentiable=True)
    )(drawn, second)
    np.testing.assert_array_equal(again.argmax(-1), drawn.argmax(-1))
    # Over draws, the conditional noise has the law of the noise: mean γ, variance π²/6.
    free = again - logits[None]
    np.testing.assert_allclose(free.mean(0), np.euler_gamma, atol=0.02)
    np.testing.assert_allclose(free.var(0), np.pi**2 / 6, rtol=0.03)
    covariance = jnp.cov(free.T)
    np.testing.assert_allclose(
        covariance - jnp.diag(covariance.diagonal()), 0, atol=0.02
    )


def test_a_held_conditional_sample_moves_with_the_logits_alone():
    drawn = dk.hard(LOGITS + NOISE)

    def f(z, *, differentiable):
        second = jnp.asarray(gumbel((3, 6, 5), 5))
        return dk.conditional_gumbel(z, drawn, second, differentiable=differentiable)

    held, through = (partial(f, differentiable=flag) for flag in (False, True))
    np.testing.assert_array_equal(held(LOGITS), through(LOGITS))
    ct = jnp.asarray(np.random.default_rng(7).normal(size=(3, 6, 5)))
    _, pullback = jax.vjp(held, LOGITS)
    np.testing.assert_allclose(pullback(ct)[0], ct.sum(0), rtol=1e-12)
    jax.test_util.check_grads(through, (LOGITS,), 2, rtol=1e-6, atol=1e-6)


def test_the_conditional_sampler_is_finite_for_extreme_logits():
    logits = jnp.array([[1e3, -1e3, 0.0], [-1e4, 1e4, 1e4]])
    drawn = dk.hard(logits)
    noise = jnp.asarray(gumbel((2, 3), 1))
    z = dk.conditional_gumbel(logits, drawn, noise, differentiable=True)
    assert jnp.isfinite(z).all()
    np.testing.assert_array_equal(z.argmax(-1), drawn.argmax(-1))


def test_the_jacobian_of_a_perturbed_argmax_is_the_estimate_of_berthet():
    logits, noise = LOGITS[0], jnp.asarray(gumbel((7, 5), 4))
    scale = 0.6
    drawn = dk.hard(logits[None] + scale * noise)
    expected = jnp.einsum("mi,mj->ij", drawn, 1 - jnp.exp(-noise)) / (7 * scale)
    f = partial(dk.perturbed_argmax, noise=noise, scale=scale)
    np.testing.assert_allclose(jax.jacfwd(f)(logits), expected, atol=1e-12)
    np.testing.assert_allclose(jax.jacrev(f)(logits), expected, atol=1e-12)
    np.testing.assert_allclose(f(logits), drawn.mean(0), rtol=1e-15)


def test_a_perturbed_argmax_has_the_softmax_jacobian_and_hessian_in_expectation():
    logits, scale = jnp.array([0.3, -0.2, 0.0]), 0.8
    noise = jnp.asarray(gumbel((400_000, 3), 11))
    f = partial(dk.perturbed_argmax, noise=noise, scale=scale)
    soft = partial(dk.softmax, tau=scale)
    np.testing.assert_allclose(f(logits), soft(logits), atol=5e-3)
    for derivative, atol in ((jax.jacfwd, 0.02), (jax.hessian, 0.1)):
        np.testing.assert_allclose(
            derivative(f)(logits), derivative(soft)(logits), atol=atol
        )
