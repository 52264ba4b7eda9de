"""DiVeQ: its value, its gradient, what of it is held constant, and bad arguments."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from problems import NAMES, TIED, problem
from twins import BOTH, compare, field

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(41, 3)), RNG.normal(size=(5, 3))
W, V, G = RNG.uniform(0.2, 2, 41), RNG.normal(size=(41, 3)), RNG.normal(size=(41, 3))


def formula(scale):
    """The value, and its gradient in points and centroids by a cotangent G."""
    labels = np.asarray(dk.assign(X, C))
    error = C[labels] - X
    length = np.linalg.norm(error, axis=1, keepdims=True)
    v = error + scale * V
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    s = (v * G).sum(1, keepdims=True)
    centroids = np.zeros_like(C)
    np.add.at(centroids, labels, s * error / length)
    return X + length * v, G - s * error / length, centroids


@BOTH
@pytest.mark.parametrize("scale", [0.0, 0.03, 2.0])
def test_diveq_is_its_formula(module, pull, scale):
    f = field("values", module.diveq, scale=scale)
    value, (points, centroids, noise) = pull(f, G, X, C, V)
    expected = formula(scale)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(points, expected[1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(centroids, expected[2], rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(noise, 0)


@BOTH
def test_without_noise_it_is_the_nearest_centroid(module, pull):
    q = module.diveq(*pull_arrays(module, X, C, V), scale=0.0)
    np.testing.assert_allclose(q.values, C[np.asarray(q.labels)], rtol=1e-14)
    other = module.quantize(*pull_arrays(module, X, C))
    for a, b in zip(q[1:], other[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def pull_arrays(module, *arrays):
    return map(jnp.asarray if module is dk else torch.tensor, arrays)


@BOTH
def test_the_scale_is_held_and_a_point_at_its_centroid_stays(module, pull):
    x = X.copy()
    x[:2] = C[:2]

    def f(x, scale):
        return module.diveq(x, *pull_arrays(module, C, V), scale=scale).values

    value, (points, scale) = pull(f, G, x, np.asarray(0.3))
    assert scale == 0
    np.testing.assert_array_equal(value[:2], x[:2])
    np.testing.assert_array_equal(points[:2], G[:2])


@cache
def side(module):
    def outcome(noise, scale, **arrays):
        found = module.diveq(noise=noise, scale=scale, block_size=8, **arrays)
        return found.values, found.codebook_loss, found.commitment_loss

    return outcome


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_the_packages_agree(name, dtype):
    arrays = problem(name, dtype)
    noise = np.random.default_rng(2).normal(size=arrays["points"].shape).astype(dtype)
    arrays |= {"noise": noise, "scale": np.asarray(0.1, dtype)}
    unresolved = compare(side(dk), side(dt), perturb=name not in TIED, **arrays)
    assert unresolved <= (1.0 if (name, dtype) == ("offset", "float32") else 0.2)


def test_second_derivatives_agree():
    def loss(module, *arrays):
        found = module.diveq(*arrays, scale=0.1)
        return (found.values**3).sum() + found.codebook_loss**2

    def ours(points, centroids, noise):
        grads = jax.grad(partial(loss, dk), (0, 1))(points, centroids, noise)
        return sum((g**2).sum() for g in grads)

    def theirs(points, centroids, noise):
        value = loss(dt, points, centroids, noise)
        grads = torch.autograd.grad(value, (points, centroids), create_graph=True)
        return sum((g**2).sum() for g in grads)

    assert compare(ours, theirs, points=X, centroids=C, noise=V) == 0


@BOTH
def test_a_row_of_weight_zero_is_inert_even_one_of_nan(module, pull):
    x, w = X.copy(), W.copy()
    w[[0, 5]] = 0
    x[0], x[5, 1] = np.nan, np.inf
    keep = w > 0

    def total(x, c, w, v):
        found = module.diveq(x, c, v, weights=w)
        losses = found.codebook_loss + 0.25 * found.commitment_loss
        return (w[:, None] * found.values**2).sum() + losses

    value, grads = pull(total, 1.0, x, C, w, V)
    fewer, expected = pull(total, 1.0, x[keep], C, w[keep], V[keep])
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(grads[0][keep], expected[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(grads[0][~keep], 0)
    np.testing.assert_allclose(grads[1], expected[1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_jit_vmap_leading_axes_and_dtypes(dtype):
    x, c, v = (jnp.asarray(a, dtype) for a in (X[:40].reshape(4, 10, 3), C, V[:40]))
    v = v.reshape(x.shape)

    def f(x, c, v):
        return dk.diveq(x, c, v, scale=0.5).values

    found = f(x, c, v)
    assert found.dtype == dtype
    assert found.shape == x.shape
    for other in (jax.jit(f)(x, c, v), jax.vmap(f, (0, None, 0))(x, c, v)):
        close = partial(np.testing.assert_allclose, rtol=2e-2, atol=1e-2)
        close(other.astype("float64"), found.astype("float64"))
    assert jax.grad(lambda c: f(x, c, v).astype("float32").sum())(c).dtype == dtype


@pytest.mark.parametrize("module", [dk, dt])
@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ((X, C, V.astype(int)), {}, TypeError, "noise must be floating"),
        ((X, C, V[:5]), {}, ValueError, r"noise must be .*\(41, 3\), got shape \(5, 3"),
        ((X + 1j, C, V), {}, TypeError, "points must be floating"),
        ((X, C[:, :2], V), {}, ValueError, r"centroids must be .*d = 3"),
        ((X, C, V), {"scale": -1.0}, ValueError, "scale must be .*not negative"),
        ((X, C, V), {"scale": None}, ValueError, "scale must be a number"),
        ((X, C, V), {"scale": np.ones(2)}, ValueError, "scale must be a scalar"),
        ((X, C, V), {"scale": np.asarray(1j)}, TypeError, "scale must be real"),
        ((X, C, V), {"distance": 1}, TypeError, "distance must be a function"),
        ((X, C, V), {"block_size": 0}, ValueError, "block_size must be at least 1"),
        ((X, C, V), {"active": np.ones(5)}, TypeError, "active must be bool"),
    ],
)
def test_every_error_is_raised(module, arrays, options, error, message):
    array = jnp.asarray if module is dk else torch.as_tensor
    options = {
        key: array(a) if isinstance(a, np.ndarray) else a for key, a in options.items()
    }
    with pytest.raises(error, match="^" + message):
        module.diveq(*map(array, arrays), **options)
