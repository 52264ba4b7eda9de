"""A row of weight zero is inert whatever it holds, a fill value that overflows too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

X = np.array([[0.0, 0.5], [1.0, 0.0], [9.0, 0.5], [10.0, 1.0]])
C = np.array([[0.25, 0.25], [9.5, 0.75]])
W, T = np.array([1.0, 2.0, 1.0, 0.5]), np.array(2.0)
# NetCDF's fill value is 9.97e36. The square of the last but one is just finite.
FILLS = {
    "float16": [6e4, np.nan, np.inf],
    "bfloat16": [1e20, 9.97e36, 3e38, 5e18, np.nan],
    "float32": [1e20, -9.97e36, 3.4e38, 5e18, np.inf],
    "float64": [1e160, -9.97e36, 1.7e308, 1e153, np.nan],
}


def quartic(x, y):
    return ((x - y) ** 4).sum(-1)


def norm(x, y):  # Without a derivative at x = y.
    return ((x - y) ** 2).sum(-1) ** 0.5


def losses(package):
    """Functions of points, centroids, weights and temperature, by name."""
    p = package

    def both(x, c, w, t):
        q = p.quantize(x, c, weights=w)
        return q.codebook_loss + q.commitment_loss

    def implicit(x, c, w, t):
        fitted = p.fit(x, c, weights=w, temperature=t, tol=0.0, max_steps=30)
        # In the dtype of the loss, whatever that of the centroids.
        return p.squared_euclidean(fitted.centroids, c).sum() + fitted.loss

    def shifts(x, c, w, t):
        found = (
            p.statistics(x, c, weights=w),
            p.statistics(x, c, weights=w, temperature=t),
        )
        return sum((s.shifts[:, 0] * s.counts).sum() for s in found)

    soft, assigned = p.soft_kmeans_loss, p.assigned_loss
    return {
        "hard": lambda x, c, w, t: p.kmeans_loss(x, c, weights=w),
        "soft": lambda x, c, w, t: soft(x, c, weights=w, temperature=t),
        "quartic": lambda x, c, w, t: p.kmeans_loss(x, c, weights=w, distance=quartic),
        "norm": lambda x, c, w, t: soft(x, c, weights=w, temperature=t, distance=norm),
        "assigned": lambda x, c, w, t: assigned(
            x, c, p.softmax, weights=w, temperature=t
        ),
        "quantized": both,
        "statistics": shifts,
        "implicit": implicit,
    }


def of_jax(name, arrays):
    """Value, gradient, and that of the gradient of all but the row, along a vector."""
    arrays = {k: jnp.asarray(v) for k, v in arrays.items()}
    return jax.tree.map(np.float64, _derivatives(name, arrays))


@partial(jax.jit, static_argnums=0)
def _derivatives(name, arrays):
    f = losses(dk)[name]

    def slope(arrays):
        value, gradient = jax.value_and_grad(lambda a: f(**a))(arrays)
        leaves = [g.ravel()[:4] for g in jax.tree.leaves(gradient)]
        cosines = [jnp.cos(jnp.arange(1, g.size + 1, dtype=g.dtype)) for g in leaves]
        along = sum(a @ g for a, g in zip(cosines, leaves, strict=True))
        return along, (value, gradient)

    second, (value, gradient) = jax.grad(slope, has_aux=True)(arrays)
    return value, gradient, second


def of_torch(name, arrays):
    arrays = {k: torch.as_tensor(v).requires_grad_() for k, v in arrays.items()}
    leaves = list(arrays.values())
    value = losses(dt)[name](**arrays)
    options = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(value, leaves, create_graph=True, **options)
    along = sum(
        torch.cos(torch.arange(1, g.numel() + 1, dtype=g.dtype)) @ g
        for g in (g.ravel()[:4] for g in first)
    )
    second = torch.autograd.grad(along, leaves, **options)

    def by_name(tensors):
        return {
            k: v.double().detach().numpy() for k, v in zip(arrays, tensors, strict=True)
        }

    return value.item(), by_name(first), by_name(second)


def problem(dtype, fill=0.0):
    x = np.append(X, [[fill, fill]], axis=0)
    arrays = {"x": x, "c": C, "w": np.append(W, 0.0), "t": T}
    return {k: v.astype(jnp.dtype(dtype)) for k, v in arrays.items()}


def check(route, name, dtype, fill):
    """All is as with a row of zeros, and the row's own derivative is zero."""
    found, right = route(name, problem(dtype, fill)), route(name, problem(dtype))
    rtol = {"float64": 1e-9, "float32": 1e-4}.get(dtype, 2e-2)
    np.testing.assert_allclose(found[0], right[0], rtol=rtol)
    for some, expected in zip(found[1:], right[1:], strict=True):
        for key, want in expected.items():
            got, want = np.ravel(some[key])[:4], np.ravel(want)[:4]
            scale = np.abs(want).max() + 1e-3
            np.testing.assert_allclose(got, want, rtol=0, atol=rtol * scale)
    assert not found[1]["x"][-1].any()
    # A finite cost may overflow float16, in which its derivative is returned.
    held = (
        ~np.isnan(found[1]["w"]) if dtype == "float16" else np.isfinite(found[1]["w"])
    )
    assert held.all()


ORDERS = [n for n in losses(dk) if n != "quantized"]


@pytest.mark.parametrize("name", [n for n in ORDERS if n != "implicit"])
def test_a_fill_value_moves_no_value_and_no_derivative(name):
    for fill in FILLS["float32"]:
        check(of_jax, name, "float32", fill)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ORDERS)
def test_nor_in_any_precision(name, dtype):
    for fill in FILLS[dtype]:
        check(of_jax, name, dtype, fill)


@pytest.mark.parametrize("name", list(losses(dt)))
def test_nor_in_torch(name):
    for fill in FILLS["float32"][1:]:
        check(of_torch, name, "float32", fill)
    for fill in FILLS["float64"][:2]:
        check(of_torch, name, "float64", fill)


@pytest.mark.parametrize("package", [dk, dt])
@pytest.mark.parametrize("name", ["hard", "soft", "assigned", "quantized"])
def test_where_the_square_is_finite_the_derivative_in_the_weight_is_the_cost(
    package, name
):
    fill = 1e18
    arrays = problem("float32", fill)
    f = losses(package)[name]
    if package is dk:
        slope = jax.jit(jax.grad(lambda a: f(**a)))(arrays)["w"]
    else:
        arrays = {k: torch.as_tensor(v) for k, v in arrays.items()}
        slope = torch.func.grad(lambda w: f(**{**arrays, "w": w}))(arrays["w"])
    both = 2 if name == "quantized" else 1
    np.testing.assert_allclose(float(slope[-1]), both * 2 * fill**2, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_of_finite_squares_that_overflows_is_inert(dtype):
    large = float(np.finfo(dtype).max) ** 0.5 * 0.9
    x = np.array([[0.0] * 3, [1.0] * 3, [large] * 3], dtype)
    c, w = x[:2] + dtype_of(dtype)(0.25), np.array([1.0, 1.0, 0.0], dtype)
    right = 2 * 3 * 0.25**2
    for p in (dk, dt):
        make = jnp.asarray if p is dk else torch.as_tensor
        a = make(x), make(c)
        options = {"weights": make(w)}
        assert float(p.kmeans_loss(*a, **options)) == right
        soft = p.soft_kmeans_loss(*a, temperature=1e-2, **options)
        np.testing.assert_allclose(float(soft), right, rtol=1e-5)
        assert float(p.quantize(*a, **options).commitment_loss) == right


def dtype_of(name):
    return np.dtype(name).type


@pytest.mark.parametrize(
    ("dtype", "temperature"),
    [
        ("float32", None),
        pytest.param("float32", 2.0, marks=pytest.mark.slow),
        pytest.param("float64", 2.0, marks=pytest.mark.slow),
    ],
)
def test_a_fit_ends_and_is_certified_as_without_the_row(dtype, temperature):
    cold = problem(dtype)
    cold["x"], cold["w"] = cold["x"][:4], cold["w"][:4]
    # Each package beside itself: what rounding leaves of a soft loss is not the same.
    rights = {}
    for p, make in ((dk, jnp.asarray), (dt, torch.as_tensor)):
        x, c, w = (make(cold[name]) for name in "xcw")
        rights[p] = p.fit(x, c, weights=w, temperature=temperature)
    for fill in FILLS[dtype]:
        a = problem(dtype, fill)
        x, c, options = a["x"], a["c"], {"weights": a["w"], "temperature": temperature}
        for p in (dk, dt):
            make = jnp.asarray if p is dk else torch.as_tensor
            given = {**options, "weights": make(a["w"])}
            found, right = p.fit(make(x), make(c), **given), rights[p]
            assert int(found.status) == dk.Status.CONVERGED
            assert int(found.num_steps) == int(right.num_steps)
            np.testing.assert_allclose(found.centroids, right.centroids, rtol=1e-5)
            np.testing.assert_allclose(found.loss, right.loss, rtol=1e-5)
        certificate = dk.certificate(x, found.centroids.numpy(), **options)
        assert certificate.valid
        assert np.isfinite(certificate.critical_temperature)
        assert not np.isnan(certificate.margin).any()


@pytest.mark.parametrize("package", [dk, dt])
def test_the_label_of_a_finite_fill_value_is_the_nearest(package):
    a = problem("float32", 1e20)
    make = jnp.asarray if package is dk else torch.as_tensor
    x, c, w = (make(a[k]) for k in "xcw")
    quantized = package.quantize(x, c, weights=w)
    assert quantized.labels.tolist() == [0, 0, 1, 1, 1]
    assert package.fit(x, c, weights=w).labels.tolist() == [0, 0, 1, 1, 1]
    assert quantized.values[-1].tolist() == [9.5, 0.75]


@pytest.mark.parametrize("fill", [1e20, -9.97e36, np.nan, 3e38])
def test_greedy_seeding_finds_the_distant_points_beside_a_fill_value(fill):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2))
    x[:3] += 1e3 * np.array([[1, 0], [0, 1], [-1, 0]])
    x = np.float32(np.append(x, np.full((100, 2), fill), axis=0))
    w = np.float32(np.arange(1100) < 1000)
    for seed in range(5):
        start = dk.kmeans_plus_plus(jax.random.key(seed), x, 4, weights=w)
        assert np.sum(np.abs(start).max(axis=1) > 500) == 3


@pytest.mark.parametrize("package", [dk, dt])
@pytest.mark.parametrize("name", ["quartic", "soft", "assigned"])
def test_without_any_weight_the_loss_is_zero_whatever_the_rows_hold(package, name):
    arrays = problem("float32", 1e20) | {"w": np.zeros(len(X) + 1, np.float32)}
    make = jnp.asarray if package is dk else torch.as_tensor
    arrays = {k: make(a) for k, a in arrays.items()}
    assert losses(package)[name](**arrays) == 0
    x, c, w = (arrays[key] for key in "xcw")
    options = {"weights": w, "temperature": 1.0, "distance": quartic}
    assert package.soft_kmeans_loss(x, c, **options) == 0
