"""FSQ and LFQ: values, labels, entropies and gradients, by formula and by both."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from twins import BOTH, compare, field, jax_pull

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 11, 4))
G, W = RNG.normal(size=X.shape), RNG.uniform(0.2, 2, X.shape[:2])
LEVELS = (8, 5, 2, 3)
BITS = 0.3 * RNG.normal(size=(3, 11, 5))
T = 0.4


# Finite scalar quantization ----------------------------------------------------------


def reference(x, levels):
    """Values, labels and the slope of the bound, a coordinate at a time."""
    values, slopes = np.empty(x.shape), np.empty(x.shape)
    labels, place = np.zeros(x.shape[:-1], int), 1
    for i, n in enumerate(levels):
        half, offset = (n - 1) * 0.999 / 2, 0.5 if n % 2 == 0 else 0.0
        t = np.tanh(x[..., i] + np.tan(offset / half))
        steps, width = np.round(half * t - offset), n // 2
        values[..., i], slopes[..., i] = steps / width, half * (1 - t**2) / width
        labels += place * (steps + width).astype(int)
        place *= n
    return values, labels, slopes


@BOTH
@pytest.mark.parametrize("levels", [LEVELS, (2, 2, 2, 2), (7, 4, 15, 16)])
def test_finite_scalars_are_the_formula(module, pull, levels):
    f = field("values", module.finite_scalar_quantize, levels=levels)
    value, (gradient,) = pull(f, G, 2 * X)
    values, labels, slopes = reference(2 * X, levels)
    np.testing.assert_allclose(value, values, rtol=3e-16)
    np.testing.assert_allclose(gradient, slopes * G, rtol=1e-11, atol=1e-13)
    array = jnp.asarray if module is dk else torch.tensor
    found = module.finite_scalar_quantize(array(2 * X), levels=levels).labels
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == (jnp.int32 if module is dk else torch.int64)


def test_every_combination_is_reached_and_has_its_own_label():
    axes = np.linspace(-6, 6, 3000), np.linspace(-6, 6, 50)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    for levels in product((2, 3, 99), (2, 5, 8)):
        q = dk.finite_scalar_quantize(points, levels=levels)
        labels = np.unique(q.labels)
        np.testing.assert_array_equal(labels, np.arange(np.prod(levels)))
        for i, n in enumerate(levels):
            # Even numbers have one more below 0 than above.
            steps = np.arange(-(n // 2), (n + 1) // 2) / (n // 2)
            found = np.unique(q.values[:, i])
            np.testing.assert_allclose(found, steps, rtol=3e-16)
            assert found[0] == -1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("levels", [LEVELS, (7, 99, 23), (46341, 46340)])
def test_labels_give_back_the_values_exactly(dtype, levels):
    x = jnp.asarray(3 * X[..., : len(levels)], dtype)
    q = dk.finite_scalar_quantize(x, levels=levels)
    back = dk.finite_scalar_values(q.labels, levels=levels, dtype=dtype)
    assert q.values.dtype == back.dtype == dtype
    np.testing.assert_array_equal(back, q.values)
    for f in (jax.jit, jax.vmap):
        mapped = f(partial(dk.finite_scalar_values, levels=levels, dtype=dtype))
        np.testing.assert_array_equal(mapped(q.labels), q.values)
    one = dk.finite_scalar_values(q.labels[0, 0], levels=levels, dtype=dtype)
    np.testing.assert_array_equal(one, q.values[0, 0])
    there = torch.tensor(3 * X[..., : len(levels)]).to(getattr(torch, dtype))
    q = dt.finite_scalar_quantize(there, levels=levels)
    back = dt.finite_scalar_values(q.labels, levels=levels, dtype=there.dtype)
    torch.testing.assert_close(back, q.values, rtol=0, atol=0)


@BOTH
def test_values_of_labels_are_in_the_default_float(module, pull):
    array = jnp.asarray if module is dk else torch.tensor
    labels = array(np.arange(6).reshape(2, 3))
    default = jnp.result_type(float) if module is dk else torch.get_default_dtype()
    found = module.finite_scalar_values(labels, levels=(3, 2))
    assert found.dtype == default
    assert found.tolist()[0] == [[-1, -1], [0, -1], [1, -1]]
    bits = module.lookup_free_values(labels, d=3)
    assert bits.dtype == default
    assert bits.tolist()[1] == [[1, 1, -1], [-1, -1, 1], [1, -1, 1]]


@BOTH
def test_points_without_a_number(module, pull):
    x = np.array([[np.inf, -np.inf], [np.nan, 0.0]])
    array = jnp.asarray if module is dk else torch.tensor
    found = module.finite_scalar_quantize(array(x), levels=(4, 5))
    np.testing.assert_array_equal(found.values, [[0.5, -1], [np.nan, 0]])
    assert found.labels.tolist() == [3, 8]
    f = field("values", module.finite_scalar_quantize, levels=(4, 5))
    _, (gradient,) = pull(f, np.ones((2, 2)), x)
    np.testing.assert_array_equal(gradient[0], 0)
    bits = module.lookup_free_quantize(array(x))
    assert bits.values.tolist() == [[1, -1], [-1, -1]]
    assert bits.labels.tolist() == [1, 0]


# Lookup-free quantization ------------------------------------------------------------


def entropies(x, temperature, weights, size=None):
    """Both, by all codes and all points: [2^d, d] and [n, 2^d]."""
    x, w = x.reshape(-1, x.shape[-1]), weights.reshape(-1) / weights.sum()
    d = x.shape[-1]
    size = size or d
    one = batch = 0.0
    for start in range(0, d, size):
        part = x[:, start : start + size]
        codes = np.array(list(product((-1.0, 1.0), repeat=size)))
        z = -((part[:, None] - codes) ** 2).sum(-1) / temperature
        p = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
        one += w @ -(p * np.log(p)).sum(1)
        mean = w @ p
        batch += -(mean * np.log(mean)).sum()
    return one, batch


@BOTH
@pytest.mark.parametrize("size", [None, 1, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_entropies_are_those_of_a_softmax_over_all_codes(module, pull, size, weighted):
    array = jnp.asarray if module is dk else torch.tensor
    weights = W if weighted else np.ones(W.shape)
    q = module.lookup_free_quantize(
        array(BITS),
        temperature=T,
        diversity_weight=0.7,
        weights=array(W) if weighted else None,
        group_size=size,
    )
    one, batch = entropies(BITS, T, weights, size)
    np.testing.assert_allclose(q.sample_entropy, one, rtol=1e-12)
    np.testing.assert_allclose(q.batch_entropy, batch, rtol=1e-12)
    np.testing.assert_allclose(q.entropy_loss, one - 0.7 * batch, rtol=1e-12)
    signs = np.where(BITS > 0, 1, -1)
    cost = (weights[..., None] * (BITS - signs) ** 2).sum()
    np.testing.assert_allclose(q.commitment_loss, cost, rtol=1e-12)
    np.testing.assert_array_equal(q.values, signs)
    np.testing.assert_array_equal(q.labels, (BITS > 0) @ 2 ** np.arange(5))
    assert q.labels.dtype == (jnp.int32 if module is dk else torch.int64)
    back = module.lookup_free_values(q.labels, d=5)
    np.testing.assert_array_equal(back, q.values)


@BOTH
def test_the_signs_pass_the_cotangent_and_no_loss_does(module, pull):
    f = field("values", module.lookup_free_quantize)
    _, (gradient,) = pull(f, G, X)
    np.testing.assert_array_equal(gradient, G)
    f = field("commitment_loss", module.lookup_free_quantize)
    _, (gradient,) = pull(f, 1.0, X)
    np.testing.assert_allclose(gradient, 2 * (X - np.sign(X)), rtol=1e-14)


def test_the_derivatives_of_the_entropies_are_those_of_their_values():
    @jax.jit
    def f(x, w, temperature, factor):
        q = dk.lookup_free_quantize(
            x, temperature=temperature, diversity_weight=factor, weights=w
        )
        return q.entropy_loss, q.sample_entropy, q.batch_entropy

    arrays = BITS[0, :6], W[0, :6], jnp.asarray(T), jnp.asarray(0.7)
    check_grads(f, arrays, order=3, modes=["rev"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02, 1e-3])
def test_derivatives_of_entropies_are_finite_at_any_temperature(dtype, temperature):
    def f(x):
        q = dk.lookup_free_quantize(x, temperature=temperature)
        return q.sample_entropy - 0.3 * q.batch_entropy

    # At 0 a coordinate is undecided, and its entropy has a curvature.
    x = BITS[0, :6].copy()
    x[0, 0] = 0

    @jax.jit
    def both(x):
        first = jax.grad(f)(x)
        return first, jax.grad(lambda x: jnp.sum(jnp.sin(jax.grad(f)(x))))(x)

    found, expected = both(jnp.asarray(x, dtype)), both(jnp.asarray(x))
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        largest = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=1e-3 * largest, rtol=1e-3)


def test_the_entropy_of_the_groups_is_no_less_than_that_of_all():
    found = [
        float(dk.lookup_free_quantize(BITS, temperature=T, group_size=s).batch_entropy)
        for s in (5, 1)
    ]
    assert found == sorted(found)
    assert found[0] > 1
    wide = RNG.normal(size=(3, 30))
    q = dk.lookup_free_quantize(wide, temperature=1e-6, group_size=15)
    assert 0 < q.batch_entropy <= 2 * np.log(3) + 1e-6
    np.testing.assert_array_equal(dk.lookup_free_values(q.labels, d=30), q.values)


@BOTH
def test_rows_of_weight_zero_are_inert_even_of_nan(module, pull):
    x, w = BITS[0].copy(), W[0].copy()
    w[[0, 4, 9]] = 0
    x[0], x[4, 1], x[9, 2] = np.nan, np.inf, 1e200
    keep = w > 0

    def total(x, w):
        q = module.lookup_free_quantize(x, temperature=T, weights=w)
        return (w[:, None] * q.values).sum() + q.commitment_loss + 2 * q.entropy_loss

    value, (points, weights) = pull(total, 1.0, x, w)
    fewer, expected = pull(total, 1.0, x[keep], w[keep])
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(points[keep], expected[0], rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(points[~keep], 0)
    np.testing.assert_allclose(weights[keep], expected[1], rtol=1e-11, atol=1e-14)
    assert np.isfinite(weights).all()
    losses = module.lookup_free_quantize(
        (jnp.asarray if module is dk else torch.tensor)(x),
        weights=(jnp.zeros if module is dk else torch.zeros)(11),
    )[2:]
    assert [float(a) for a in losses] == [0, 0, 0, 0]


# Both --------------------------------------------------------------------------------


def on(module, name):
    """All floating fields, as a function of arrays alone."""

    def outcome(points, temperature=None, weights=None):
        if name == "fsq":
            return module.finite_scalar_quantize(points, levels=LEVELS).values
        found = module.lookup_free_quantize(
            points, temperature=temperature, diversity_weight=0.7, weights=weights
        )
        return (found.values, *found[2:])

    return outcome


def arrays_of(name, dtype="float64"):
    found = {"points": X[:, :, :4]}
    if name == "lfq":
        found |= {"temperature": np.asarray(T), "weights": W}
    return {key: a.astype(dtype) for key, a in found.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["fsq", "lfq"])
def test_the_packages_agree(name, dtype):
    arrays = arrays_of(name, dtype)
    assert compare(on(dk, name), on(dt, name), **arrays) <= 0.02


@pytest.mark.parametrize("name", ["fsq", "lfq"])
def test_second_derivatives_agree(name):
    def ours(**arrays):
        def loss(arrays):
            return sum((a**3).sum() for a in jax.tree.leaves(on(dk, name)(**arrays)))

        return sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss)(arrays)))

    def theirs(**arrays):
        found = on(dt, name)(**arrays)
        found = found if isinstance(found, tuple) else (found,)
        loss = sum((a**3).sum() for a in found)
        grads = torch.autograd.grad(loss, list(arrays.values()), create_graph=True)
        return sum((g**2).sum() for g in grads)

    assert compare(ours, theirs, **arrays_of(name)) == 0


@pytest.mark.parametrize("name", ["fsq", "lfq"])
def test_jit_and_vmap_are_the_same(name):
    def f(**arrays):
        value, pullback = jax.vjp(lambda a: on(dk, name)(**a), arrays)
        return value, pullback(jax.tree.map(jnp.ones_like, value))

    arrays = {key: jnp.asarray(a) for key, a in arrays_of(name).items()}
    moved = {key: 0 if a.ndim else None for key, a in arrays.items()}
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
    jax.tree.map(close, jax.jit(f)(**arrays), f(**arrays))
    mapped = jax.vmap(lambda a: f(**a), (moved,))(arrays)
    for i in range(3):
        one = f(**{k: a if moved[k] is None else a[i] for k, a in arrays.items()})
        jax.tree.map(lambda a, b, i=i: close(a[i], b), mapped, one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_values_have_the_dtype_of_the_points(dtype):
    x = jnp.asarray(X, dtype)
    wide = "float64" if dtype == "float64" else "float32"
    for name in ("fsq", "lfq"):
        out = on(dk, name)(x, *[T] * (name == "lfq"))
        out = jax.tree.leaves(out)
        assert [a.dtype for a in out] == [dtype] + [wide] * (len(out) - 1)

        def last(x, name=name):
            return jax.tree.leaves(on(dk, name)(x, *[T] * (name == "lfq")))[-1]

        _, (gradient,) = jax_pull(last, jnp.ones_like(last(x)), x)
        assert gradient.dtype == dtype
    there = torch.tensor(X).to(getattr(torch, dtype))
    found = dt.lookup_free_quantize(there)
    assert found.values.dtype == there.dtype
    assert found.entropy_loss.dtype == getattr(torch, wide)
    assert dt.finite_scalar_quantize(there, levels=LEVELS).values.dtype == there.dtype


def test_they_have_no_forward_mode():
    for f in (
        partial(dk.finite_scalar_quantize, levels=LEVELS),
        dk.lookup_free_quantize,
    ):
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(lambda x, f=f: f(x).values, (X,), (X,))


LABELS = np.arange(5)
# A function, its array, its options, the error and its message, in both packages.
RAISES = [
    *(
        (name, array, {"levels": levels}, error, message)
        for name, array in [
            ("finite_scalar_quantize", X),
            ("finite_scalar_values", LABELS),
        ]
        for levels, error, message in [
            ((1, 2, 2, 2), ValueError, "levels must be at least 2, got 1"),
            ((2, 2.0, 2, 2), TypeError, "levels must be a Python integer.*float"),
            (4, TypeError, r"levels must be a tuple of integers \(static\), got 4"),
            ("8888", TypeError, "levels must be a tuple of integers"),
            ((), ValueError, r"levels must be one level or more.*got \(\)"),
            ((2**8,) * 4, ValueError, "levels must be .* at most 2³¹ combinations"),
        ]
    ),
    (
        "finite_scalar_quantize",
        X + 1j,
        {"levels": LEVELS},
        TypeError,
        "points must be floating, .*complex128",
    ),
    (
        "finite_scalar_quantize",
        X,
        {"levels": (3, 3)},
        ValueError,
        r"points must be \[..., d\] with d = 2 as levels \(3, 3\), got shape \(3, 11",
    ),
    (
        "finite_scalar_quantize",
        np.asarray(1.0),
        {"levels": (3,)},
        ValueError,
        r"points must be \[..., d\] .*got shape \(\)",
    ),
    *(
        (name, array, {**options, **more}, error, message)
        for name, options in [
            ("finite_scalar_values", {"levels": (2, 3)}),
            ("lookup_free_values", {"d": 3}),
        ]
        for array, more, error, message in [
            (
                LABELS * 1.0,
                {},
                TypeError,
                "labels must be integers, got dtype .*float64",
            ),
            (LABELS > 1, {}, TypeError, "labels must be integers, got dtype .*bool"),
            (LABELS, {"dtype": "i"}, TypeError, "dtype must be floating, got .*int32"),
        ]
    ),
    ("lookup_free_values", LABELS, {"d": 0}, ValueError, "d must be at least 1.*got 0"),
    (
        "lookup_free_values",
        LABELS,
        {"d": 32},
        ValueError,
        "d must be .*at most 31.*got 32",
    ),
    ("lookup_free_values", LABELS, {"d": 2.0}, TypeError, "d must be a Python integer"),
    *(
        ("lookup_free_quantize", array, options, error, message)
        for array, options, error, message in [
            (X + 1j, {}, TypeError, "points must be floating"),
            (np.asarray(1.0), {}, ValueError, r"points must be .*got shape \(\)"),
            (X[..., :0], {}, ValueError, r"points must be .*d from 1 to 31"),
            (np.ones((2, 32)), {}, ValueError, r"points must be .*\(2, 32\)"),
            (X[:0], {}, ValueError, "points must have at least one row"),
            (X, {"weights": W + 1j}, TypeError, "weights must be floating"),
            (X, {"weights": W[0]}, ValueError, r"weights must be \[...\] as points"),
            (X, {"temperature": 0.0}, ValueError, "temperature must be .*positive"),
            (X, {"temperature": None}, ValueError, "temperature must be a number"),
            (X, {"temperature": W}, ValueError, "temperature must be a scalar"),
            (X, {"diversity_weight": -1.0}, ValueError, "diversity_weight must be"),
            (X, {"group_size": 3}, ValueError, "group_size must divide d = 4, got 3"),
            (X, {"group_size": 0}, ValueError, "group_size must be at least 1"),
            (X, {"group_size": 25}, ValueError, "group_size must be .*most 24"),
            (X, {"group_size": 2.0}, TypeError, "group_size must be a Python integer"),
            (np.ones((2, 25)), {}, ValueError, "group_size must be given: at most 24"),
        ]
    ),
]


@pytest.mark.parametrize("module", [dk, dt])
@pytest.mark.parametrize(("name", "array", "options", "error", "message"), RAISES)
def test_every_error_is_raised(module, name, array, options, error, message):
    make = jnp.asarray if module is dk else torch.as_tensor
    kinds = {"i": "int32" if module is dk else torch.int32}
    options = {
        key: make(a) if isinstance(a, np.ndarray) else a for key, a in options.items()
    }
    if "dtype" in options:
        options["dtype"] = kinds[options["dtype"]]
    with pytest.raises(error, match="^" + message):
        getattr(module, name)(make(array), **options)


@pytest.mark.parametrize("module", [dk, dt], ids=["jax", "torch"])
def test_all_losses_of_a_batch_with_nan_are_nan(module):
    x = np.ones((4, 2))
    x[1] = np.nan
    found = module.lookup_free_quantize((jnp if module is dk else torch).asarray(x))
    for loss in found[2:]:
        assert np.isnan(float(loss))
