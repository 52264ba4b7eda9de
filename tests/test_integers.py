"""Integer and bool points, centroids and weights become the default float."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

X = np.asarray([[0, 0], [1, 2], [9, 3], [10, 4], [5, 1]])
C = X[[0, 3]]
W = np.asarray([1, 0, 2, 1, 1])
KEY = jax.random.key(0)


def calls(package, array):
    """Public functions of (points, centroids, weights), all three integers or bool."""
    floats = array(np.linspace(0.0, 1.0, X.size).reshape(X.shape))
    return {
        "pairwise": lambda x, c, w: package.pairwise(x, c),
        "squared_euclidean": lambda x, c, w: package.squared_euclidean(x, x + 1),
        "cosine": lambda x, c, w: package.cosine(x + 1, x + 2),
        "statistics": lambda x, c, w: package.statistics(x, c, weights=w),
        "assign": lambda x, c, w: package.assign(x, c),
        "kmeans_loss": lambda x, c, w: package.kmeans_loss(x, c, weights=w),
        "soft_kmeans_loss": lambda x, c, w: package.soft_kmeans_loss(
            x, c, weights=w, temperature=2
        ),
        "assigned_loss": lambda x, c, w: package.assigned_loss(
            x, c, package.softmax, weights=w
        ),
        "init": lambda x, c, w: package.init(c),
        "update": lambda x, c, w: package.update(x, package.init(c), weights=w),
        "fit": lambda x, c, w: package.fit(x, c, weights=w),
        "quantize": lambda x, c, w: package.quantize(x, c, weights=w),
        "nsvq": lambda x, c, w: package.nsvq(x, c, floats, weights=w),
        "diveq": lambda x, c, w: package.diveq(x, c, floats, weights=w),
        "residual_quantize": lambda x, c, w: package.residual_quantize(
            x, c[None], weights=w
        ),
        "product_quantize": lambda x, c, w: package.product_quantize(
            x, c[:, :, None], weights=w
        ),
        "finite_scalar_quantize": lambda x, c, w: package.finite_scalar_quantize(
            x, levels=(4, 5)
        ),
        "lookup_free_quantize": lambda x, c, w: package.lookup_free_quantize(
            x - 3, temperature=2, weights=w
        ),
        "rotation_trick": lambda x, c, w: package.rotation_trick(x, x + 1),
        "straight_through_vector": lambda x, c, w: package.straight_through_vector(
            x, x + 1
        ),
        "sinkhorn": lambda x, c, w: package.sinkhorn(floats, column_weights=c[1]),
    }


ONLY_JAX = {
    "random_points": lambda x, c, w: dk.random_points(KEY, x, 2, weights=w),
    "kmeans_plus_plus": lambda x, c, w: dk.kmeans_plus_plus(KEY, x, 2, weights=w),
    "fit_minibatch": lambda x, c, w: dk.fit_minibatch(
        KEY, x, c, num_steps=2, weights=w
    ),
    "fit_restarts": lambda x, c, w: dk.fit_restarts(KEY, x, 2, weights=w),
    "certificate": lambda x, c, w: dk.certificate(x, c, weights=w),
}
ONLY_TORCH = {
    "KMeansLoss": lambda x, c, w: dt.KMeansLoss(c)(x, weights=w),
    "VectorQuantizer": lambda x, c, w: dt.VectorQuantizer(c, decay=0.5)(x, weights=w),
    "nsvq layer": lambda x, c, w: dt.VectorQuantizer(c, method=dt.nsvq).eval()(x),
}
JAX = calls(dk, jnp.asarray) | ONLY_JAX
TORCH = calls(dt, torch.as_tensor) | ONLY_TORCH


@pytest.mark.parametrize("name", JAX)
def test_jax_takes_them_as_floats(name):
    integers = JAX[name](*map(jnp.asarray, (X, C, W)))
    floats = JAX[name](*(jnp.asarray(a, float) for a in (X, C, W)))
    assert jax.tree.map(lambda a: a.dtype, integers) == jax.tree.map(
        lambda a: a.dtype, floats
    )
    jax.tree.map(np.testing.assert_array_equal, integers, floats)


def leaves(tree):
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [] if tree is None else [torch.as_tensor(tree).detach()]


@pytest.mark.parametrize("name", TORCH)
def test_torch_takes_them_as_floats(name):
    dtype = torch.get_default_dtype()
    integers = leaves(TORCH[name](*map(torch.tensor, (X, C, W))))
    floats = leaves(TORCH[name](*(torch.tensor(a, dtype=dtype) for a in (X, C, W))))
    for a, b in zip(integers, floats, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_masks_are_weights():
    mask = W > 0
    expected = float(dk.kmeans_loss(X[mask], C))
    assert float(dk.kmeans_loss(X, C, weights=mask)) == expected
    x, c = torch.tensor(X), torch.tensor(C)
    assert float(dt.kmeans_loss(x, c, weights=torch.tensor(mask))) == expected


def test_the_default_float_is_that_of_the_settings():
    with jax.enable_x64(False):
        result = dk.fit(np.asarray(X, np.int32), np.asarray(C, np.int32))
    assert result.centroids.dtype == jnp.float32
    assert dk.fit(X, C).centroids.dtype == jnp.float64
    with torch.device("cpu"):
        torch.set_default_dtype(torch.float64)
        try:
            assert dt.fit(*map(torch.tensor, (X, C))).centroids.dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_small_integers_and_tracers():
    small = [jnp.asarray(a, t) for t in (jnp.int8, jnp.uint4) for a in (X, C)]
    for x, c in (small[:2], small[2:]):
        assert float(jax.jit(dk.kmeans_loss)(x, c)) == float(dk.kmeans_loss(X, C))


def test_the_gradient_in_floats_beside_integers_is_that_of_floats():
    slope = jax.grad(lambda c: dk.kmeans_loss(X, c, weights=W))(1.0 * C)
    expected = jax.grad(lambda c: dk.kmeans_loss(1.0 * X, c, weights=1.0 * W))(1.0 * C)
    np.testing.assert_array_equal(slope, expected)
    with pytest.raises(TypeError, match="int"):
        jax.grad(dk.kmeans_loss, argnums=1)(X, jnp.asarray(C))
