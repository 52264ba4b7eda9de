"""Assignments: exact one-hots forward, the declared gradient backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkm_jax as dk

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)))
COTANGENT = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)))
MAPS = {"hard": dk.hard, "softmax": dk.softmax, "straight_through": dk.straight_through}


def softmax_gradient(tau):
    p = jax.nn.softmax(LOGITS / tau)
    mean = jnp.sum(p * COTANGENT, axis=-1, keepdims=True)
    return p * (COTANGENT - mean) / tau


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ["hard", "straight_through"])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_the_value_is_an_exact_one_hot_of_the_argmax(name, dtype, transform):
    logits = LOGITS.astype(dtype)
    rows = transform(MAPS[name])(logits)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, np.eye(5)[np.argmax(logits, -1)])


@pytest.mark.parametrize("name", ["hard", "straight_through"])
def test_a_tie_goes_to_the_lowest_index(name):
    rows = MAPS[name](jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
    np.testing.assert_array_equal(rows, [[0, 1, 0], [1, 0, 0]])


def test_hard_has_gradient_zero():
    gradient = jax.grad(lambda z: jnp.sum(dk.hard(z) * COTANGENT))(LOGITS)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(LOGITS))


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", ["softmax", "straight_through"])
def test_the_gradient_is_the_softmax_one(name, tau):
    def f(z, t):
        return jnp.sum(MAPS[name](z, tau=t) * COTANGENT)

    in_logits, in_tau = jax.grad(f, argnums=(0, 1))(LOGITS, jnp.asarray(tau))
    expected = softmax_gradient(tau)
    np.testing.assert_allclose(in_logits, expected, atol=1e-12)
    np.testing.assert_allclose(in_tau, -jnp.sum(expected * LOGITS) / tau, atol=1e-10)


def test_straight_through_is_reverse_mode_only():
    def f(z):
        return jnp.sum(dk.straight_through(z) * COTANGENT)

    for transform in (jax.jacfwd, jax.hessian):
        with pytest.raises(TypeError, match="forward-mode"):
            transform(f)(LOGITS)


def test_softmax_tends_to_hard_as_tau_falls():
    rows = dk.softmax(LOGITS, tau=1e-3)
    np.testing.assert_allclose(rows, dk.hard(LOGITS), atol=1e-12)
    assert jnp.isfinite(dk.softmax(LOGITS, tau=1e3)).all()


@pytest.mark.parametrize("name", MAPS)
def test_vmap_equals_the_loop(name):
    stacked = jnp.stack([MAPS[name](row) for row in LOGITS])
    np.testing.assert_array_equal(jax.vmap(MAPS[name])(LOGITS), stacked)


@pytest.mark.parametrize("name", ["softmax", "straight_through"])
def test_tau_is_traced_once_for_all_values(name):
    traces = []

    @jax.jit
    def f(z, tau):
        traces.append(1)
        return MAPS[name](z, tau=tau)

    for tau in (0.5, 1.0, 2.0):
        f(LOGITS, tau)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_have_a_backward_pass_in_float32(dtype):
    logits = LOGITS.astype(dtype)

    def f(z):
        return jnp.sum(dk.straight_through(z, tau=0.3) * COTANGENT.astype(dtype))

    gradient = jax.grad(f)(logits)
    assert gradient.dtype == dtype
    p = jax.nn.softmax(logits.astype(jnp.float32) / 0.3)
    ct = COTANGENT.astype(dtype).astype(jnp.float32)
    exact = p * (ct - jnp.sum(p * ct, axis=-1, keepdims=True)) / 0.3
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), exact, rtol=rounding, atol=1e-5
    )


def test_minus_infinity_is_never_chosen_and_harms_no_gradient():
    logits = LOGITS.at[:, 2].set(-jnp.inf)
    for name in MAPS:
        assert (MAPS[name](logits)[:, 2] == 0).all()
        gradient = jax.grad(lambda z, name=name: jnp.sum(MAPS[name](z) * COTANGENT))(
            logits
        )
        assert jnp.isfinite(gradient).all()
