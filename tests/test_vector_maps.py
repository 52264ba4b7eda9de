"""The two maps and NSVQ: exact values, known gradients, singular points."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from twins import BOTH, field, jacobian, jax_pull

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(41, 3)), RNG.normal(size=(5, 3))
V, G = RNG.normal(size=(41, 3)), RNG.normal(size=(41, 3))
METHODS = ["straight_through_vector", "rotation_trick"]
MAPS = pytest.mark.parametrize("name", METHODS)
POINT, CODE = np.array([[1.0, 2.0]]), np.array([[-0.5, 1.5]])
DTYPES = ["float64", "float32"]


@BOTH
@MAPS
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_value_is_exactly_the_nearest_and_gives_it_no_gradient(
    module, pull, name, dtype
):
    nearest = (C[np.arange(41) % 5] * 1e-3).astype(dtype)
    # Far from the points, so that nothing exact can come of arithmetic on them.
    value, grads = pull(getattr(module, name), G, (1e5 * X).astype("float32"), nearest)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, nearest)
    np.testing.assert_array_equal(grads[1], 0)
    assert [str(g.dtype) for g in grads] == ["float32", dtype]


@BOTH
def test_straight_through_passes_the_cotangent(module, pull):
    _, grads = pull(module.straight_through_vector, G, X, X[::-1].copy())
    np.testing.assert_array_equal(grads[0], G)


@BOTH
def test_the_rotation_of_a_known_pair(module, pull):
    found = jacobian(pull, module.rotation_trick, POINT, CODE)
    np.testing.assert_allclose(found, [[0.5, -0.5], [0.5, 0.5]], rtol=1e-14)


@BOTH
def test_the_rotation_takes_the_point_to_its_centroid(module, pull):
    for x, q in zip(X[:8], C[[0, 1, 2, 3, 4, 0, 1, 2]], strict=True):
        found = jacobian(pull, module.rotation_trick, x[None], q[None])
        np.testing.assert_allclose(found @ x, q, rtol=1e-12)
        ratio = np.linalg.norm(q) / np.linalg.norm(x)
        np.testing.assert_allclose(found @ found.T, ratio**2 * np.eye(3), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(found / ratio), 1, rtol=1e-12)


@BOTH
def test_the_rotation_at_zero(module, pull):
    zero, some = np.zeros((1, 3)), X[:1]
    _, grads = pull(module.rotation_trick, G[:1], zero, some)
    np.testing.assert_array_equal(grads[0], G[:1])
    _, grads = pull(module.rotation_trick, G[:1], some, zero)
    np.testing.assert_array_equal(grads[0], 0)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rotation_to_the_opposite_is_a_reflection_to_it(module, pull, dtype):
    for x in X[:8].astype(dtype):
        q = np.asarray(-2.7, dtype) * x
        found = jacobian(pull, module.rotation_trick, x[None], q[None])
        np.testing.assert_allclose(found @ x, q, rtol=1e-5)
        unit = x / np.linalg.norm(x)
        expected = 2.7 * (np.eye(3) - 2 * np.outer(unit, unit))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@BOTH
@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6, 1e-8])
def test_near_the_opposite_the_rotation_still_takes_the_point_there(
    module, pull, angle
):
    q = -np.array([[np.cos(angle), np.sin(angle)]])
    x = np.array([[1.0, 0.0]])
    found = jacobian(pull, module.rotation_trick, x, q)
    # Rounding over the distance from opposite, or √ε where r is dropped.
    np.testing.assert_allclose(found @ x[0], q[0], atol=2e-8)


@BOTH
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30, 1e38])
def test_the_rotation_and_nsvq_do_not_depend_on_the_unit(module, pull, scale):
    x, q = (np.asarray(scale * a, "float32") for a in (POINT, CODE))
    found = jacobian(pull, module.rotation_trick, x, q)
    np.testing.assert_allclose(found, [[0.5, -0.5], [0.5, 0.5]], rtol=1e-5)
    v = np.asarray(np.array([[0.6, 0.8]]) / min(scale, 1e30), "float32")
    value, grads = pull(field("values", module.nsvq), [[1.0, 0.0]], x, q, v)
    expected = [[1.948683, 3.264911]]
    np.testing.assert_allclose(value.astype("float64") / scale, expected, rtol=1e-5)
    np.testing.assert_allclose(grads[0], [[1.56921, 0.189737]], rtol=1e-5)


@BOTH
@pytest.mark.parametrize(("x_scale", "q_scale"), [(1e-30, 1e30), (1e30, 1e-30)])
def test_a_ratio_out_of_range_gives_no_nan(module, pull, x_scale, q_scale):
    x, q = (x_scale * X[:4]).astype("float32"), (q_scale * C[:4]).astype("float32")
    cotangent = np.where(np.arange(4)[:, None] < 2, 1e-3 * G[:4], 0)
    _, grads = pull(module.rotation_trick, cotangent, x, q)
    assert np.isfinite(grads[0]).all()
    np.testing.assert_array_equal(grads[0][2:], 0)


@BOTH
@pytest.mark.parametrize(
    ("x", "q", "expected"),
    [
        ([np.inf, 0], [1, 0], [1, 2]),
        ([np.nan, 0], [0, 1], [1, 2]),
        ([-np.inf, 1], [np.inf, np.nan], [1, 2]),
        ([1e-30, 0], [3e38, 0], [3.4028235e38, np.inf]),
        ([-1, 0], [3e38, 0], [-3e38, np.inf]),
        ([3e38, 3e38], [-1e38, -1e38], [-2 / 3, -1 / 3]),
    ],
)
def test_the_rotation_at_extreme_points(module, pull, x, q, expected):
    q = np.array([q], "float32")
    cotangent, x = np.array([[1, 2]], "float32"), np.array([x], "float32")
    value, grads = pull(module.rotation_trick, cotangent, x, q)
    np.testing.assert_array_equal(value, q)
    np.testing.assert_allclose(grads[0][0], expected, rtol=1e-6)


@BOTH
def test_straight_through_passes_the_cotangent_of_any_point(module, pull):
    x = np.array([[np.inf, np.nan], [-np.inf, 1.0]])
    value, grads = pull(module.straight_through_vector, G[:2, :2], x, C[:2, :2])
    np.testing.assert_array_equal(value, C[:2, :2])
    np.testing.assert_array_equal(grads[0], G[:2, :2])


@BOTH
def test_the_rotation_is_its_formula_over_all_of_float32(module, pull):
    rng = np.random.default_rng(0)
    sizes = [0, 1.2e-38, 1e-30, 1e-20, 1e-3, 0.06, 0.5, 1, 2, 1e20, 1e30, 5e37, 3e38]
    numbers = np.array([*sizes, *[-a for a in sizes]], "float32")
    x = rng.choice([*numbers, np.inf, np.nan], (4000, 3)).astype("float32")
    x[:500] = x[:500, :1] * rng.choice([-1, 1], (500, 3))
    q, g = rng.choice(numbers, (4000, 3)), rng.normal(size=(4000, 3)).astype("float32")
    q[250:600] = -x[250:600]
    q[~np.isfinite(q).all(1)] = 1
    _, grads = pull(module.rotation_trick, g, x, q)
    usable = np.isfinite(x).all(1, keepdims=True) & x.any(1, keepdims=True)
    a, b = np.where(usable, x, 1).astype("float64"), q.astype("float64")
    x_norm, q_norm = (np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    a, b = a / x_norm, b / np.where(q_norm == 0, 1, q_norm)
    gap = np.linalg.norm(a + b, axis=1, keepdims=True)
    r = np.where(gap < 1e-6, 0, (a + b) / np.maximum(gap, 1e-6))
    turned = g - 2 * r * np.sum(r * g, 1, keepdims=True)
    turned += 2 * a * np.sum(b * g, 1, keepdims=True)
    largest = np.finfo("float32").max
    expected = np.where(usable, np.minimum(q_norm / x_norm, largest) * turned, g)
    found, expected = (np.clip(v, -largest, largest) for v in (grads[0], expected))
    # Near the opposite r is not determined.
    clear = ((gap < 1e-6) | (gap > 1e-2))[:, 0]
    error = np.abs(found - expected).max(1) / np.abs(expected).max(1).clip(1e-33)
    assert error[clear].max() < 1e-4
    assert clear.mean() > 0.9


@BOTH
@MAPS
def test_a_point_that_is_not_finite_harms_nobody(module, pull, name):
    x = X.copy()
    x[3, 1], x[4, 2] = np.nan, np.inf
    keep = np.delete(np.arange(41), [3, 4])
    cotangent = G.copy()
    cotangent[[3, 4]] = 0
    q = C[np.arange(41) % 5]
    value, grads = pull(getattr(module, name), cotangent, x, q)
    np.testing.assert_array_equal(value, q)
    np.testing.assert_array_equal(grads[0][[3, 4]], 0)
    _, expected = pull(getattr(module, name), G[keep], x[keep], q[keep])
    np.testing.assert_array_equal(grads[0][keep], expected[0])


@MAPS
def test_bfloat16_gradients_are_computed_in_float32(name):
    x, q, g = (jnp.asarray(a, jnp.bfloat16) for a in (X, C[np.arange(41) % 5], G))
    value, grads = jax_pull(getattr(dk, name), g, x, q)
    assert value.dtype == grads[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, q)
    wide = [a.astype(jnp.float64) for a in (x, q, g)]
    expected = jax_pull(getattr(dk, name), wide[2], *wide[:2])[1][0]
    # One rounding, to eight bits, and the error of float32 next to larger terms.
    np.testing.assert_allclose(
        grads[0].astype(jnp.float64), expected, rtol=2**-8, atol=1e-6
    )


@MAPS
def test_the_maps_have_no_forward_mode(name):
    f = partial(getattr(dk, name), nearest=C)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: f(x), (C,), (C,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jacfwd(lambda x: dk.quantize(x, C, method=getattr(dk, name)).values)(X)


@BOTH
def test_nsvq_of_a_known_pair(module, pull):
    f = field("values", module.nsvq)
    noise = 5 * np.array([[0.6, 0.8]])
    value, _ = pull(f, POINT, POINT, CODE, noise)
    np.testing.assert_allclose(value, [[1.948683, 3.264911]], atol=1e-6)
    expected = np.array([[1.56921, 0.189737], [0.758947, 1.252982]])
    np.testing.assert_allclose(
        jacobian(pull, f, POINT, CODE, noise), expected, atol=1e-6
    )
    in_code = jacobian(pull, lambda c, x, v: f(x, c, v), CODE, POINT, noise)
    np.testing.assert_allclose(in_code, np.eye(2) - expected, atol=1e-6)


@BOTH
def test_nsvq_moves_every_point_by_its_quantization_error(module, pull):
    value, _ = pull(field("values", module.nsvq), G, X, C, V)
    error = np.linalg.norm(X - C[np.asarray(dk.assign(X, C))], axis=1)
    np.testing.assert_allclose(np.linalg.norm(value - X, axis=1), error, rtol=1e-12)
    unit = V / np.linalg.norm(V, axis=1, keepdims=True)
    np.testing.assert_allclose(((value - X) * unit).sum(1), error, rtol=1e-12)


@BOTH
def test_nsvq_where_the_error_or_the_noise_is_zero(module, pull):
    x, noise = X[:6].copy(), V[:6].copy()
    x[:2], noise[4] = C[:2], 0
    value, grads = pull(field("values", module.nsvq), G[:6], x, C, noise)
    still = [0, 1, 4]
    np.testing.assert_array_equal(value[still], x[still])
    np.testing.assert_array_equal(grads[0][still], G[still])
    np.testing.assert_array_equal(grads[2][still], 0)
    assert all(np.isfinite(g).all() for g in grads)


def test_the_derivatives_of_nsvq_are_those_of_its_value():
    @jax.jit
    def f(x, c, v):
        found = dk.nsvq(x, c, v, block_size=4)
        return jnp.sum(found.values**2), found.values

    check_grads(f, (X[:9], C, V[:9]), order=2, modes=["fwd", "rev"], atol=1e-4)
