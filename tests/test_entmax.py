"""entmax of any alpha, and the loss of which it is the gradient, in both packages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.test_util import check_grads

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(1.5 * RNG.normal(size=(40, 7)))
COTANGENT = jnp.asarray(RNG.normal(size=(40, 7)))
KNOWN = {1.0: dk.softmax, 1.5: dk.entmax15, 2.0: dk.sparsemax}
ALPHAS = [1.0, 1.0001, 1.05, 1.3, 1.5, 2.0, 2.7]


@pytest.mark.parametrize("tau", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("alpha", KNOWN)
def test_it_is_the_softmax_the_entmax15_and_the_sparsemax(alpha, tau):
    found, pull = jax.vjp(partial(dk.entmax, alpha=alpha, tau=tau), LOGITS)
    known, of_known = jax.vjp(partial(KNOWN[alpha], tau=tau), LOGITS)
    np.testing.assert_allclose(found, known, atol=1e-13)
    np.testing.assert_allclose(pull(COTANGENT)[0], of_known(COTANGENT)[0], atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_are_the_maximizers_that_define_it(alpha):
    """By the condition on the support: the slope of the objective is the same in it."""
    rows = np.asarray(dk.entmax(LOGITS, alpha=alpha))
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-14)
    a = alpha - 1
    for z, p in zip(np.asarray(LOGITS), rows, strict=True):
        on = p > 0
        power = np.log(p[on]) if a == 0 else np.expm1(a * np.log(p[on])) / a
        slope = z[on] - power
        assert np.ptp(slope) < 1e-10
        if a:  # Off the support p^a is 0, and the slope no larger.
            assert (z[~on] + 1 / a <= slope.mean() + 1e-10).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives_are_those_of_finite_differences(alpha):
    def f(z, a, t):
        return dk.entmax(z, alpha=a, tau=t)

    check_grads(f, (LOGITS[:3], 1.37, 0.8), 2, rtol=1e-5, atol=1e-5)
    z, g, h = LOGITS[:3], COTANGENT[:3], 1e-4

    def total(a):
        return jnp.sum(f(z, a, 0.8) * g)

    # From the right: left of 1 there is none.
    slope = (-3 * total(alpha) + 4 * total(alpha + h) - total(alpha + 2 * h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(total)(alpha), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_packages_agree_to_second_order(alpha, dtype):
    z, g = np.asarray(LOGITS, dtype), np.asarray(COTANGENT, dtype)
    y = np.asarray(dk.softmax(COTANGENT), dtype)
    for ours, theirs in (
        (lambda z, a: jnp.sum(dk.entmax(z, alpha=a) * g, -1), None),
        (lambda z, a: dk.entmax_loss(z, y, alpha=a), y),
    ):

        def slope(z, a, ours=ours):
            return jax.grad(lambda z: ours(z, a).sum())(z)

        zt = torch.tensor(z, requires_grad=True)
        at = torch.tensor(alpha, dtype=zt.dtype, requires_grad=True)
        if theirs is None:
            values = (dt.entmax(zt, alpha=at) * torch.tensor(g)).sum(-1)
        else:
            values = dt.entmax_loss(zt, torch.tensor(y), alpha=at)
        (first,) = torch.autograd.grad(values.sum(), zt, create_graph=True)
        second = torch.autograd.grad((first * torch.tensor(g)).sum(), (zt, at))
        a = jnp.asarray(alpha, dtype)
        both = jax.grad(lambda z, a: jnp.sum(slope(z, a) * g), (0, 1))
        # Above alpha = 2 slopes grow without bound to the edge of the support.
        factor = 1e3 if alpha > 2 else 1
        bound = factor * (3e-5 if dtype == "float32" else 1e-12)
        np.testing.assert_allclose(ours(z, a), values.detach(), atol=bound, rtol=bound)
        np.testing.assert_allclose(slope(z, a), first.detach(), atol=bound, rtol=bound)
        tight = factor * 1e-9
        if dtype == "float64":
            for found, expected in zip(both(z, a), second, strict=True):
                np.testing.assert_allclose(found, expected, rtol=tight, atol=tight)


def test_excluded_clusters_and_infinite_logits():
    z = jnp.array([[0.0, 1.0, -jnp.inf], [jnp.inf, 0.0, 1.0], [-jnp.inf] * 3])
    for alpha in (1.0, 1.5, 3.0):
        rows, pull = jax.vjp(partial(dk.entmax, alpha=alpha), z)
        np.testing.assert_array_equal(rows[0, 2], 0)
        np.testing.assert_array_equal(rows[1], [1, 0, 0])
        assert jnp.isnan(rows[2]).all()
        np.testing.assert_allclose(rows[:2].sum(-1), 1)
        slopes = pull(jnp.ones_like(z).at[0, 0].set(2.0))[0]
        assert jnp.isfinite(slopes).all()
        np.testing.assert_array_equal(slopes[1:], 0)
        theirs = dt.entmax(torch.tensor(np.asarray(z)), alpha=alpha)
        np.testing.assert_allclose(rows, theirs, atol=1e-12)


def test_a_traced_alpha_below_one_is_nan_and_a_number_an_error():
    for found in (
        jax.jit(lambda a: dk.entmax(LOGITS, alpha=a))(0.5),
        dt.entmax(torch.tensor(np.asarray(LOGITS)), alpha=torch.tensor(0.5)),
    ):
        assert np.isnan(np.asarray(found)).all()
    z = torch.tensor(np.asarray(LOGITS))
    for call in (dk.entmax, partial(dk.entmax_loss, targets=LOGITS)):
        with pytest.raises(ValueError, match=r"^alpha must be at least 1, got 0\.5$"):
            call(LOGITS, alpha=0.5)
        with pytest.raises(ValueError, match=r"^alpha must be finite and positive"):
            call(LOGITS, alpha=0.0)
        with pytest.raises(ValueError, match=r"^alpha must be a scalar \(rank 0\)"):
            call(LOGITS, alpha=jnp.ones(7))
    for call in (dt.entmax, partial(dt.entmax_loss, targets=z)):
        with pytest.raises(ValueError, match=r"^alpha must be at least 1, got 0\.5$"):
            call(z, alpha=0.5)


# The loss ----------------------------------------------------------------------------


def one_hots():
    return jax.nn.one_hot(jnp.arange(40) % 7, 7, dtype="float64")


def test_the_loss_is_cross_entropy_and_that_of_sparsemax():
    y = one_hots()
    labels = jnp.arange(40) % 7
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        cross_entropy = optax.softmax_cross_entropy(LOGITS, y)
        sparse = optax.losses.multiclass_sparsemax_loss(LOGITS, labels)
    np.testing.assert_allclose(dk.entmax_loss(LOGITS, y, alpha=1.0), cross_entropy)
    np.testing.assert_allclose(dk.entmax_loss(LOGITS, y, alpha=2.0), sparse, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_of_the_loss_is_the_map_less_the_target(alpha):
    y = dk.softmax(COTANGENT)

    def loss(z, y):
        return dk.entmax_loss(z, y, alpha=alpha).sum()

    found = jax.grad(loss)(LOGITS, y)
    np.testing.assert_allclose(found, dk.entmax(LOGITS, alpha=alpha) - y, atol=1e-12)
    a = alpha - 1
    power = jnp.log(y) if a == 0 else jnp.expm1(a * jnp.log(y)) / a
    expected = power + 1 / alpha - (LOGITS - LOGITS.max(-1, keepdims=True))
    np.testing.assert_allclose(jax.grad(loss, 1)(LOGITS, y), expected, rtol=1e-10)
    losses = dk.entmax_loss(LOGITS, y, alpha=alpha)
    assert (losses > 0).all()
    p = dk.entmax(LOGITS, alpha=alpha)
    np.testing.assert_allclose(dk.entmax_loss(LOGITS, p, alpha=alpha), 0, atol=1e-13)
    # What all logits of a row have in common changes nothing.
    far = dk.entmax_loss(LOGITS + 2.0**40, y, alpha=alpha)
    near = dk.entmax_loss((LOGITS + 2.0**40) - 2.0**40, y, alpha=alpha)
    np.testing.assert_allclose(far, near, rtol=1e-12)


def test_the_loss_of_an_excluded_cluster_is_infinite_only_where_it_is_the_target():
    z = jnp.array([[0.0, 1.0, -jnp.inf], [0.0, 1.0, -jnp.inf]])
    y = jnp.eye(3)[jnp.array([0, 2])]
    for losses in (
        dk.entmax_loss(z, y),
        dt.entmax_loss(*(torch.tensor(np.asarray(a)) for a in (z, y))),
    ):
        assert np.isfinite(np.asarray(losses[0]))
        assert np.asarray(losses[1]) == np.inf
    slope = jax.grad(lambda z: dk.entmax_loss(z, y)[0])(z)
    expected = dk.entmax(z[0]) - y[0]
    np.testing.assert_allclose(slope[0], expected, atol=1e-12)


def test_targets_of_another_kind():
    with pytest.raises(ValueError, match=r"^targets must be of the shape of logits"):
        dk.entmax_loss(LOGITS, LOGITS[:, :3])
    with pytest.raises(TypeError, match=r"^targets must be floating"):
        dk.entmax_loss(LOGITS, jnp.ones((40, 7), int))
    z = torch.tensor(np.asarray(LOGITS))
    with pytest.raises(ValueError, match=r"^targets must be of the shape of logits"):
        dt.entmax_loss(z, z[:, :3])
    with pytest.raises(TypeError, match=r"^targets must be floating"):
        dt.entmax_loss(z, torch.ones(40, 7, dtype=int))
