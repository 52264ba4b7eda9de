"""Quantizers: values, losses, where gradients go and where not, transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import BOTH, field

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(41, 3)), RNG.normal(size=(5, 3))
W, V, G = RNG.uniform(0.2, 2, 41), RNG.normal(size=(41, 3)), RNG.normal(size=(41, 3))
METHODS = ["straight_through_vector", "rotation_trick"]
MAPS = pytest.mark.parametrize("name", METHODS)


@MAPS
@pytest.mark.parametrize("weighted", [False, True])
def test_quantize_is_the_nearest_centroid_and_two_losses_of_k_means(name, weighted):
    options = {"weights": jnp.asarray(W)} if weighted else {}
    found = dk.quantize(X, C, method=getattr(dk, name), block_size=8, **options)
    labels = dk.assign(X, C)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.labels.dtype == jnp.int32
    np.testing.assert_array_equal(found.values, C[labels])
    loss = dk.kmeans_loss(X, C, **options)
    np.testing.assert_allclose(found.codebook_loss, loss, rtol=1e-14)
    np.testing.assert_allclose(found.commitment_loss, loss, rtol=1e-14)


@BOTH
@MAPS
def test_the_values_move_points_by_the_method_and_no_centroid(module, pull, name):
    method = getattr(module, name)
    f = field("values", module.quantize, method=method)
    _, (points, centroids) = pull(f, G, X, C)
    nearest = C[np.asarray(dk.assign(X, C))]
    expected = pull(method, G, X, nearest)[1][0]
    np.testing.assert_array_equal(points, expected)
    assert np.abs(points).max() > 0.1
    np.testing.assert_array_equal(centroids, 0)


@BOTH
@pytest.mark.parametrize("name", ["quantize", "nsvq"])
def test_each_loss_moves_its_own_side(module, pull, name):
    more = (V,) if name == "nsvq" else ()

    def loss(which):
        def f(x, c, w, *noise):
            found = getattr(module, name)(x, c, *noise, weights=w, block_size=16)
            return getattr(found, which)

        return f

    arrays = X, C, W, *more
    kmeans = jax.grad(lambda *a: dk.kmeans_loss(*a[:2], weights=a[2]), (0, 1, 2))
    points, centroids, weights = kmeans(X, C, W)
    value, codebook = pull(loss("codebook_loss"), 1.0, *arrays)
    _, commitment = pull(loss("commitment_loss"), 1.0, *arrays)
    np.testing.assert_allclose(value, dk.kmeans_loss(X, C, weights=W), rtol=1e-12)
    np.testing.assert_array_equal(codebook[0], 0)
    np.testing.assert_allclose(codebook[1], centroids, rtol=1e-11)
    np.testing.assert_allclose(codebook[2], weights, rtol=1e-11)
    np.testing.assert_allclose(commitment[0], points, rtol=1e-11)
    np.testing.assert_array_equal(commitment[1], 0)
    np.testing.assert_allclose(commitment[2], weights, rtol=1e-11)


def test_the_gradient_of_the_codebook_loss_is_bit_for_bit_that_of_k_means():
    ours = jax.grad(field("codebook_loss", dk.quantize), 1)(X, C)
    np.testing.assert_array_equal(ours, jax.grad(dk.kmeans_loss, 1)(X, C))


def test_a_newton_step_on_the_codebook_loss_is_a_lloyd_step():
    f = field("codebook_loss", dk.quantize)
    hessian = jax.hessian(lambda c: f(X, c))(jnp.asarray(C))
    counts = dk.statistics(X, C).counts
    expected = 2 * np.einsum("j,ji,ab->jaib", counts, np.eye(5), np.eye(3))
    np.testing.assert_allclose(hessian, expected, atol=1e-12)
    gradient = jax.grad(f, 1)(X, C)
    step, _ = dk.newton().update(gradient, dk.newton().init(C), C, counts=counts)
    once = dk.fit(X, C, max_steps=1).centroids
    np.testing.assert_allclose(C + step, once, rtol=1e-12)


@BOTH
@pytest.mark.parametrize("name", [*METHODS, "nsvq"])
def test_a_row_of_weight_zero_is_inert_even_one_of_nan(module, pull, name):
    x, w = X.copy(), W.copy()
    w[[0, 5, 40]] = 0
    x[0], x[5, 1] = np.nan, np.inf
    keep = w > 0

    def total(x, c, w, v):
        options = {"weights": w}
        if name == "nsvq":
            found = module.nsvq(x, c, v, **options)
        else:
            found = module.quantize(x, c, method=getattr(module, name), **options)
        return (
            (w[:, None] * found.values**2).sum()
            + found.codebook_loss
            + 0.25 * found.commitment_loss
        )

    value, grads = pull(total, 1.0, x, C, w, V)
    fewer, expected = pull(total, 1.0, x[keep], C, w[keep], V[keep])
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(grads[0][keep], expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(grads[0][~keep], 0)
    np.testing.assert_allclose(grads[1], expected[1], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grads[2][keep], expected[2], rtol=1e-12)
    assert np.isfinite(grads[2]).all()


@BOTH
def test_the_derivative_in_the_weight_of_a_row_of_weight_zero(module, pull):
    w = np.zeros(41)
    costs = ((X - C[np.asarray(dk.assign(X, C))]) ** 2).sum(1)
    for loss in ("codebook_loss", "commitment_loss"):

        def f(w, loss=loss):
            arrays = w.new_tensor if module is dt else jnp.asarray
            return getattr(module.quantize(arrays(X), arrays(C), weights=w), loss)

        np.testing.assert_allclose(pull(f, 1.0, w)[1][0], costs, rtol=1e-12)


@BOTH
@pytest.mark.parametrize("name", [*METHODS, "nsvq"])
def test_an_inactive_centroid_is_never_used_whatever_it_holds(module, pull, name):
    c, on = C.copy(), np.array([True, False, True, True, False])
    c[1] = np.nan
    array = jnp.asarray if module is dk else torch.as_tensor

    def every(x, c, v, active=None):
        active = None if active is None else array(active)
        if name == "nsvq":
            found = module.nsvq(x, c, v, active=active)
        else:
            method = getattr(module, name)
            found = module.quantize(x, c, method=method, active=active)
        return found.values.sum() ** 2 + found.codebook_loss + 2 * found.commitment_loss

    value, grads = pull(partial(every, active=on), 1.0, X, c, V)
    fewer, expected = pull(every, 1.0, X, c[on], V)
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(grads[0], expected[0], rtol=1e-11)
    np.testing.assert_allclose(grads[1][on], expected[1], rtol=1e-11)
    np.testing.assert_array_equal(grads[1][~on], 0)


@BOTH
def test_an_active_centroid_that_is_not_finite_shows_in_every_value(module, pull):
    c = C.copy()
    c[2, 0] = np.nan

    for name, cotangent in (
        ("values", G),
        ("codebook_loss", 1.0),
        ("commitment_loss", 1.0),
    ):
        value, _ = pull(field(name, module.quantize), cotangent, X, c)
        assert np.isnan(value).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_values_have_the_dtype_of_the_input_and_losses_accumulate(dtype):
    x, c, v = (jnp.asarray(a, dtype) for a in (X, C, V))
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    for method in METHODS:
        f = partial(dk.quantize, method=getattr(dk, method))
        found = f(x, c)
        assert found.values.dtype == dtype
        assert found.codebook_loss.dtype == found.commitment_loss.dtype == wide
        grads = jax.grad(lambda x, c, f=f: sum_of(f(x, c)), (0, 1))(x, c)
        assert [g.dtype for g in grads] == [dtype, dtype]
    noisy = dk.nsvq(x, c, v)
    assert noisy.values.dtype == dtype
    grads = jax.grad(lambda *a: sum_of(dk.nsvq(*a)), (0, 1, 2))(x, c, v)
    assert [g.dtype for g in grads] == [dtype] * 3
    mixed = dk.quantize(x, jnp.asarray(C), weights=jnp.asarray(W, jnp.bfloat16))
    assert mixed.values.dtype == mixed.codebook_loss.dtype == jnp.float64
    np.testing.assert_array_equal(mixed.values, C[mixed.labels])


def sum_of(found):
    wide = found.codebook_loss.dtype
    values = jnp.sum(found.values.astype(wide) ** 3)
    return values + found.codebook_loss + 0.5 * found.commitment_loss


CALLS = {
    **{name: partial(dk.quantize, method=getattr(dk, name)) for name in METHODS},
    "nsvq": lambda x, c, **options: dk.nsvq(x, c, jnp.asarray(V), **options),
}


@pytest.mark.parametrize("name", CALLS)
def test_jit_equals_eager(name):
    def f(x, c, w):
        found = CALLS[name](x, c, weights=w)
        return sum_of(found), found

    eager, there = (
        jax.value_and_grad(g, (0, 1, 2), has_aux=True)(X, C, W) for g in (f, jax.jit(f))
    )
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, None)])
def test_vmap_equals_a_loop(name, axes):
    rng = np.random.default_rng(1)
    shapes = (41, 3), (5, 3), (5,)
    arrays = [
        rng.normal(size=shape if axis is None else (4, *shape))
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    arrays[2] = jnp.asarray(arrays[2] > -1).at[..., 0].set(True)

    def f(x, c, active):
        found, pullback = jax.vjp(
            lambda x, c: sum_of(CALLS[name](x, c, active=active)), x, c
        )
        return found, pullback(jnp.ones_like(found))

    together = jax.vmap(f, axes)(*arrays)
    for i in range(4):
        one = f(*(a if x is None else a[i] for a, x in zip(arrays, axes, strict=True)))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-13)


@BOTH
def test_a_method_of_the_user(module, pull):
    def halfway(points, nearest):
        return 0.5 * (points + nearest)

    f = field("values", module.quantize, method=halfway)
    value, grads = pull(f, G, X, C)
    np.testing.assert_allclose(value, 0.5 * (X + C[np.asarray(dk.assign(X, C))]))
    np.testing.assert_array_equal(grads[0], 0.5 * G)
    np.testing.assert_array_equal(grads[1], 0)
