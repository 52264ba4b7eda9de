"""Divergences and the cosine of vectors near each other, against 50 digits."""

from decimal import Decimal, localcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import BOTH

import diffkm_jax as dk
import diffkm_torch as dt

NAMES = ["kl_divergence", "itakura_saito"]
# The value and its derivatives in x, y, xx, xy, yy, each a sum of terms.
TRUTH = {
    "kl_divergence": lambda x, y: (
        [x * (x / y).ln(), -x, y],
        [(x / y).ln()],
        [1, -x / y],
        [1 / x],
        [-1 / y],
        [x / y**2],
    ),
    "itakura_saito": lambda x, y: (
        [x / y, -(x / y).ln(), -1],
        [1 / y, -1 / x],
        [1 / y, -x / y**2],
        [1 / x**2],
        [-1 / y**2],
        [2 * x / y**3, -1 / y**2],
    ),
}


def jax_derivatives(f, x, y):
    @jax.jit
    def derivatives(x, y):
        slopes = jax.grad(lambda x, y: jnp.sum(f(x, y)), (0, 1))
        one, zero = jnp.ones_like(x), jnp.zeros_like(x)
        (gx, gy), (xx, xy) = jax.jvp(slopes, (x, y), (one, zero))
        return f(x, y), gx, gy, xx, xy, jax.jvp(slopes, (x, y), (zero, one))[1][1]

    found = derivatives(jnp.asarray(x)[:, None], jnp.asarray(y)[:, None])
    return [np.asarray(a, np.float64).ravel() for a in found]


def torch_derivatives(f, x, y):
    x, y = (torch.tensor(a[:, None], requires_grad=True) for a in (x, y))
    value = f(x, y)
    gx, gy = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    xx, xy = torch.autograd.grad(gx.sum(), (x, y), retain_graph=True)
    (yy,) = torch.autograd.grad(gy.sum(), y)
    return [a.detach().double().numpy().ravel() for a in (value, gx, gy, xx, xy, yy)]


SIDES = pytest.mark.parametrize(
    ("module", "derivatives"),
    [(dk, jax_derivatives), (dt, torch_derivatives)],
    ids=["jax", "torch"],
)


def pairs(dtype):
    """Near each other by one rounding to a factor of two, and far, at six scales."""
    rng, eps = np.random.default_rng(0), np.finfo(dtype).eps
    scale = np.repeat([1e-12, 1e-6, 1e-3, 1.0, 1e6, 1e12], 60)
    y = (scale * np.exp(rng.normal(size=360))).astype(dtype)
    near = np.exp(rng.choice([-1, 1], 360) * eps ** rng.uniform(0, 1, 360))
    ratio = np.where(np.arange(360) % 3 > 0, near, 10 ** rng.uniform(-5, 5, 360))
    return (ratio * y).astype(dtype), y


@SIDES
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_divergences_and_two_derivatives_are_right_to_rounding(
    module, derivatives, dtype, name
):
    x, y = pairs(dtype)
    found = np.array(derivatives(getattr(module, name), x, y))
    with localcontext() as context:
        context.prec = 50
        rows = zip(x.tolist(), y.tolist(), strict=True)
        exact = [TRUTH[name](Decimal(a), Decimal(b)) for a, b in rows]
        truth = np.array([[float(sum(terms)) for terms in row] for row in exact]).T
        terms = [[float(sum(map(abs, terms))) for terms in row] for row in exact]
    # Value and gradient to rounding of themselves, second derivatives to that of terms.
    size = np.abs(truth)
    size[3:] = np.array(terms).T[3:]
    error = np.abs(found - truth) / np.maximum(size, np.finfo(dtype).tiny)
    assert error.max() < 24 * np.finfo(dtype).eps
    assert found[0].min() >= 0


@pytest.mark.parametrize("module", [dk, dt])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("name", [*NAMES, "cosine"])
def test_float32_labels_of_clusters_a_thousandth_apart(module, name, scale):
    rng = np.random.default_rng(0)
    middle = scale * np.exp(rng.normal(size=8))
    x, c = (middle * (1 + 1e-3 * rng.normal(size=(n, 8))) for n in (2000, 16))
    x, c = x.astype("float32"), c.astype("float32")
    f = partial(module.assign, distance=getattr(module, name))
    array = jnp.asarray if module is dk else torch.tensor
    found, exact = (
        np.asarray(f(array(x.astype(t)), array(c.astype(t))))
        for t in ("float32", "float64")
    )
    # What rounding does to unit rows a thousandth apart remains.
    assert (found != exact).sum() <= (2 if name == "cosine" else 0)


@BOTH
def test_divergences_keep_their_values_at_the_edge_of_the_domain(module, pull):
    kl, one, zero = module.kl_divergence, np.ones(1), np.zeros(1)
    value, (gx, gy) = pull(kl, 1.0, zero, 2 * one)
    assert (value, gx, gy) == (2, 0, 1)
    value, (gx, gy) = pull(kl, 1.0, zero, zero)
    assert (value, gx, gy) == (0, 0, 1)
    assert pull(kl, 1.0, one, zero)[0] == np.inf
    assert pull(module.itakura_saito, 1.0, zero, one)[0] == np.inf
    for x, y in ((-one, one), (-one, -1.1 * one)):
        assert np.isnan(pull(module.itakura_saito, 1.0, x, y)[0])


@BOTH
def test_the_largest_and_the_smallest_numbers_are_not_the_edge(module, pull):
    x, y = np.array([[2e38, 1.2e-38], [3e38, 1.7e-38]])
    value, _ = pull(module.itakura_saito, 1.0, x.astype("float32"), y.astype("float32"))
    np.testing.assert_allclose(value, pull(module.itakura_saito, 1.0, x, y)[0], 1e-6)


@SIDES
def test_derivatives_of_kl_are_finite_where_points_are_zero(module, derivatives):
    x, y = np.zeros(2), np.array([0.0, 3.0])
    found = derivatives(module.kl_divergence, x, y)
    np.testing.assert_array_equal(found, [y, [0, 0], [1, 1], *3 * [[0, 0]]])


@BOTH
@pytest.mark.parametrize("angle", [1e-2, 1e-4])
def test_the_cosine_of_a_small_angle(module, pull, angle):
    rng = np.random.default_rng(0)
    x, away = rng.normal(size=(2, 50, 16))
    away -= x * (np.sum(x * away, 1) / np.sum(x * x, 1))[:, None]
    lengths = (np.linalg.norm(a, axis=1, keepdims=True) for a in (x, away))
    x, away = (a / length for a, length in zip((x, away), lengths, strict=True))
    y = 1e5 * (np.cos(angle) * x + np.sin(angle) * away)
    x, y = x.astype("float32"), y.astype("float32")
    value, (gx, _) = pull(module.cosine, np.ones(50), x, y)
    exact = [a.astype("float64") for a in (x, y)]
    true_value, (true_gx, _) = pull(module.cosine, np.ones(50), *exact)
    # Unit rows are off by a rounding, in units of their distance.
    np.testing.assert_allclose(
        true_value, 2 * np.sin(angle / 2) ** 2, rtol=2e-6 / angle
    )
    np.testing.assert_allclose(value, true_value, rtol=2e-7 / angle)
    np.testing.assert_allclose(gx, true_gx, atol=2e-7)


@BOTH
def test_the_cosine_of_zero_is_one_and_of_the_largest_number_is_right(module, pull):
    x = np.array([[0.0, 0.0], [0.0, 0.0], [3e38, 0.0], [1e-38, 0.0]], "float32")
    y = np.array([[0.0, 0.0], [1.0, 2.0], [0.0, 3e38], [-3e38, 0.0]], "float32")
    value, grads = pull(module.cosine, np.ones(4), x, y)
    np.testing.assert_array_equal(value[:3], 1)
    np.testing.assert_array_equal([g[:2] for g in grads], 0)
    empty = np.ones((2, 0))
    np.testing.assert_array_equal(pull(module.cosine, np.ones(2), empty, empty)[0], 1)


@BOTH
@pytest.mark.parametrize("name", [*NAMES, "cosine", "euclidean"])
def test_a_nan_is_one_in_the_distance_beside_zeros_and_in_large_arrays(
    module, pull, name
):
    f = getattr(module, name)
    for bad in (0, 1):
        x = np.zeros((4096, 2), "float32")
        x[:, bad] = np.nan
        value, _ = pull(f, np.ones(4096), x, np.ones_like(x))
        assert np.isnan(value).all()
        assert np.isnan(pull(f, np.ones(4096), np.zeros_like(x), x)[0]).all()
