"""Distances: values against SciPy, gradients against closed forms, kinks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import kl_div

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(7, 4)), RNG.normal(size=(3, 4))
P = RNG.normal(size=(4, 4))
PRECISION = jnp.asarray(P @ P.T)
ALL = {
    "squared_euclidean": dk.squared_euclidean,
    "euclidean": dk.euclidean,
    "manhattan": dk.manhattan,
    "cosine": dk.cosine,
    "kl_divergence": dk.kl_divergence,
    "itakura_saito": dk.itakura_saito,
    "mahalanobis": dk.mahalanobis(PRECISION),
}


@pytest.mark.parametrize(
    ("name", "scipy_name"),
    [
        ("squared_euclidean", "sqeuclidean"),
        ("euclidean", "euclidean"),
        ("manhattan", "cityblock"),
        ("cosine", "cosine"),
    ],
)
def test_pairwise_equals_scipy(name, scipy_name):
    ours = dk.pairwise(X, C, distance=ALL[name])
    np.testing.assert_allclose(ours, cdist(X, C, scipy_name), rtol=1e-12)


def test_mahalanobis_is_the_squared_form_of_scipy():
    theirs = cdist(X, C, "mahalanobis", VI=np.asarray(PRECISION)) ** 2
    ours = dk.pairwise(X, C, distance=ALL["mahalanobis"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_kl_divergence_equals_scipy_and_is_infinite_off_the_support():
    x, y = np.exp(X), np.exp(C)
    x[0, 0] = 0
    theirs = kl_div(x[:, None], y[None]).sum(-1)
    ours = dk.pairwise(x, y, distance=dk.kl_divergence)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    zero = dk.kl_divergence(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0]))
    assert zero == jnp.inf


def test_itakura_saito_has_its_formula_and_is_scale_invariant():
    x, y = np.exp(X[:3]), np.exp(C)
    ours = dk.itakura_saito(x, y)
    np.testing.assert_allclose(ours, (x / y - np.log(x / y) - 1).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(dk.itakura_saito(7 * x, 7 * y), ours, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_distances_broadcast_like_a_difference_and_jit_and_vmap(name):
    x, c = jnp.exp(X), jnp.exp(C)
    rows = dk.pairwise(x, c, distance=ALL[name])
    assert ALL[name](x, c[0]).shape == (7,)
    np.testing.assert_allclose(ALL[name](x, c[0]), rows[:, 0], rtol=1e-12)
    compiled = jax.jit(ALL[name])(x[:, None], c[None])
    np.testing.assert_allclose(compiled, rows, rtol=1e-12)
    mapped = jax.vmap(lambda y: ALL[name](x, y), out_axes=1)(c)
    np.testing.assert_allclose(mapped, rows, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squared_euclidean", lambda x, y: 2 * (x - y)),
        ("euclidean", lambda x, y: (x - y) / np.linalg.norm(x - y)),
        ("manhattan", lambda x, y: np.sign(x - y)),
        ("kl_divergence", lambda x, y: np.log(x / y)),
        ("itakura_saito", lambda x, y: 1 / y - 1 / x),
        ("mahalanobis", lambda x, y: 2 * np.asarray(PRECISION) @ (x - y)),
    ],
)
def test_gradients_have_their_closed_form(name, expected):
    x, y = np.exp(X[0]), np.exp(C[0])
    gradient = jax.grad(ALL[name])(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(gradient, expected(x, y), rtol=1e-10)


def test_mahalanobis_is_differentiable_in_its_precision():
    def f(precision):
        return dk.mahalanobis(precision)(X[0], C[0])

    e = X[0] - C[0]
    np.testing.assert_allclose(jax.grad(f)(PRECISION), np.outer(e, e), rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_derivatives_of_every_order_are_finite_at_equal_vectors(name):
    x = jnp.exp(X[0])
    for f in (jax.grad, jax.hessian, lambda g: jax.grad(lambda x, y: g(x, y) ** 2)):
        assert jnp.isfinite(f(ALL[name])(x, x)).all()
    assert jnp.abs(ALL[name](x, x)) < 1e-15


def test_euclidean_and_manhattan_and_cosine_have_gradient_zero_where_undefined():
    x = jnp.asarray(X[0])
    for name in ("euclidean", "manhattan"):
        np.testing.assert_array_equal(jax.grad(ALL[name])(x, x), jnp.zeros(4))
    zero = jnp.zeros(4)
    np.testing.assert_array_equal(jax.grad(dk.cosine)(zero, x), zero)
    assert dk.cosine(zero, x) == 1


@pytest.mark.parametrize("name", ALL)
def test_a_nan_stays_a_nan(name):
    x = jnp.exp(X[0]).at[1].set(jnp.nan)
    y = jnp.exp(C[0])
    assert jnp.isnan(ALL[name](x, y))
    assert jnp.isnan(ALL[name](y, x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("name", list(ALL)[:-1])
def test_narrow_inputs_accumulate_in_float32_and_get_their_own_gradients(name, dtype):
    x, y = jnp.exp(X[0]).astype(dtype), jnp.exp(C[0]).astype(dtype)
    value, gradient = jax.value_and_grad(ALL[name])(x, y)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    exact = ALL[name](x.astype(jnp.float64), y.astype(jnp.float64))
    np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_float16_squares_do_not_overflow():
    x = jnp.full(4, 300, jnp.float16)
    assert dk.squared_euclidean(x, -x) == 4 * 600.0**2
