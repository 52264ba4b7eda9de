"""Quantizers: counts and what is made of them, leading axes, drawn codes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from twins import BOTH

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_jax.quantizers._leading import as_rows

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(48, 3)), RNG.normal(size=(5, 3))
W, V, G = RNG.uniform(0.2, 2, 48), RNG.normal(size=(48, 3)), RNG.gumbel(size=(48, 5))
DRAWN = {"temperature": 0.8, "noise": G}
ARRAYS = {dk: jnp.asarray, dt: torch.as_tensor}
MODULES = pytest.mark.parametrize("module", [dk, dt], ids=["jax", "torch"])


def called(module, name, x, c, **options):
    """A quantizer of either package on NumPy's arrays."""
    array = ARRAYS[module]
    options = {
        key: array(a) if isinstance(a, np.ndarray) else a for key, a in options.items()
    }
    return getattr(module, name)(array(x), array(c), **options)


@MODULES
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quantize", {"block_size": 7}),
        ("quantize", {"distance": "manhattan"}),
        ("quantize", DRAWN),
        ("nsvq", {"noise": V}),
    ],
)
@pytest.mark.parametrize("weights", [None, W], ids=["alike", "weighted"])
def test_counts_are_the_weight_of_the_points_of_every_code(
    module, name, options, weights
):
    options = dict(options)
    if "distance" in options:
        options["distance"] = getattr(module, options["distance"])
    if weights is not None:
        options["weights"] = weights
    found = called(module, name, X, C, **options)
    expected = np.bincount(np.asarray(found.labels), weights, minlength=5)
    np.testing.assert_allclose(found.counts, expected, rtol=1e-14)
    shares = expected / expected.sum()
    np.testing.assert_allclose(found.usage, (expected > 0).mean(), rtol=1e-14)
    np.testing.assert_allclose(found.perplexity, np.exp(entropy(shares)), rtol=1e-12)


@BOTH
def test_counts_are_held_constant(module, pull):
    def counts(x, c, w):
        found = module.quantize(x, c, weights=w)
        return found.counts + 0 * found.values.sum()

    _, grads = pull(counts, np.arange(5.0), X, C, W)
    assert [np.abs(g).max() for g in grads] == [0, 0, 0]


@MODULES
def test_perplexity_is_between_one_and_k_and_not_a_number_without_weight(module):
    def of(counts):
        nothing = dict.fromkeys(module.Quantized._fields)
        counts = ARRAYS[module](np.asarray(counts))
        return module.Quantized(**nothing | {"counts": counts})

    for counts, usage, perplexity in [
        ([3.0, 0.0, 0.0, 0.0], 0.25, 1.0),
        ([2.0, 2.0, 0.0, 2.0], 0.75, 3.0),
        (np.full(4, 3e38, np.float32), 1.0, 4.0),
        (np.full(4, 2e-38, np.float32), 1.0, 4.0),
        ([[1.0, 1.0], [0.0, 5.0]], [1.0, 0.5], [2.0, 1.0]),
        (np.zeros((2, 3)), [0.0, 0.0], [np.nan, np.nan]),
    ]:
        np.testing.assert_allclose(of(counts).usage, usage, rtol=1e-6)
        np.testing.assert_allclose(of(counts).perplexity, perplexity, rtol=1e-6)


@MODULES
def test_a_point_that_is_not_finite_is_in_the_losses_and_in_no_count(module):
    x, w = X.copy(), W.copy()
    x[3, 1], x[7], w[11] = np.nan, np.inf, np.inf
    for options in ({}, DRAWN):
        found = called(module, "quantize", x, C, weights=w, **options)
        keep = ~np.isin(np.arange(48), [3, 7, 11])
        labels = np.asarray(found.labels)
        expected = np.bincount(labels[keep], w[keep], minlength=5)
        np.testing.assert_allclose(found.counts, expected, rtol=1e-14)
        assert not np.isfinite(float(found.codebook_loss))
        assert not np.isfinite(float(found.commitment_loss))
    nothing = called(module, "quantize", np.full_like(X, np.nan), C)
    np.testing.assert_array_equal(nothing.counts, 0)
    assert float(nothing.usage) == 0
    assert np.isnan(float(nothing.perplexity))


def test_usage_and_perplexity_under_jit_and_vmap():
    xs = jnp.stack([X, X + 1, 2 * X])

    def f(x, w):
        found = dk.quantize(x, C, weights=w)
        return found.usage, found.perplexity

    together = jax.jit(jax.vmap(f, (0, None)))(xs, W)
    found = jax.vmap(lambda x: dk.quantize(x, C, weights=W))(xs)
    np.testing.assert_allclose(together, (found.usage, found.perplexity), rtol=1e-12)
    for i, x in enumerate(xs):
        np.testing.assert_allclose([a[i] for a in together], f(x, W), rtol=1e-12)


SHAPES = [(2, 3, 8, 3), (1, 48, 3), (48, 3)]


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["quantize", "drawn", "nsvq"])
def test_points_of_any_leading_axes_are_their_rows(module, pull, name, shape):
    leading = shape[:-1]

    def f(x, c, w, noise):
        if name == "nsvq":
            return module.nsvq(x, c, noise, weights=w)
        options = {"temperature": 0.8, "noise": noise} if name == "drawn" else {}
        method = module.rotation_trick
        return module.quantize(x, c, method=method, weights=w, **options)

    noise = {"drawn": G, "nsvq": V}.get(name, V)
    given = X, C, W, noise
    formed = X.reshape(shape), C, W.reshape(leading), noise.reshape(*leading, -1)
    for which in ("values", "codebook_loss", "commitment_loss"):
        cotangent = V if which == "values" else 1.0
        value, grads = pull(lambda *a, i=which: getattr(f(*a), i), cotangent, *given)
        cotangent = np.reshape(cotangent, shape) if which == "values" else 1.0
        found, there = pull(lambda *a, i=which: getattr(f(*a), i), cotangent, *formed)
        np.testing.assert_array_equal(found.reshape(value.shape), value)
        for a, b in zip(there, grads, strict=True):
            np.testing.assert_array_equal(a.reshape(b.shape), b)
    array = ARRAYS[module]
    one, other = f(*map(array, formed)), f(*map(array, given))
    assert tuple(one.values.shape) == shape
    assert tuple(one.labels.shape) == leading
    np.testing.assert_array_equal(one.labels, np.asarray(other.labels).reshape(leading))
    np.testing.assert_array_equal(one.counts, other.counts)


@MODULES
def test_one_point_alone_has_one_label(module):
    for name, options in (
        ("quantize", {}),
        ("quantize", {"temperature": 1.0, "noise": G[0]}),
        ("nsvq", {"noise": V[0]}),
    ):
        found = called(module, name, X[0], C, **options)
        assert (*found.values.shape, *found.labels.shape) == (3,)
        assert np.sum(np.asarray(found.counts)) == 1
    weighted = called(module, "quantize", X[0], C, weights=np.array(2.5))
    assert np.sum(np.asarray(weighted.counts)) == 2.5


@MODULES
def test_a_method_sees_points_and_codes_as_the_points_are_given(module):
    seen = []

    def method(points, codes):
        seen.append((tuple(points.shape), tuple(codes.shape)))
        return points

    called(module, "quantize", X.reshape(2, 24, 3), C, method=method)
    called(module, "quantize", X[0], C, method=method)
    assert seen == [((2, 24, 3),) * 2, ((3,),) * 2]


def test_points_that_are_rows_stay_the_array_they_are():
    x, w = jnp.asarray(X), jnp.asarray(W)
    rows, mass, shape = as_rows(x, w, C)
    assert rows is x
    assert mass is w
    assert shape == (48, 3)


DISTANCES = {
    "squared_euclidean": "sqeuclidean",
    "euclidean": "euclidean",
    "manhattan": "cityblock",
    "cosine": "cosine",
}


def drawn_labels(x, c, temperature, noise, kind="sqeuclidean", active=None):
    score = -cdist(x, c, kind) / temperature + noise
    if active is not None:
        score[:, ~active] = -np.inf
    return score.argmax(1)


@MODULES
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("active", [None, np.arange(5) % 2 == 0], ids=["all", "some"])
def test_a_drawn_code_has_the_largest_perturbed_score(module, name, active):
    options = {"distance": getattr(module, name), "weights": W, "block_size": 11}
    if active is not None:
        options["active"] = active
    found = called(module, "quantize", X, C, **DRAWN, **options)
    kind = DISTANCES[name]
    labels = drawn_labels(X, C, **DRAWN, kind=kind, active=active)
    assert (labels != cdist(X, C, kind).argmin(1)).mean() > 0.2
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.values, C[labels])
    own = W @ cdist(X, C, kind)[np.arange(48), labels]
    np.testing.assert_allclose(found.codebook_loss, own, rtol=1e-12)
    np.testing.assert_allclose(found.commitment_loss, own, rtol=1e-12)
    np.testing.assert_allclose(found.counts, np.bincount(labels, W, minlength=5))


@MODULES
def test_codes_are_drawn_as_often_as_the_softmax_says(module):
    n = 40_000
    noise = np.random.default_rng(3).gumbel(size=(n, 5))
    found = called(
        module, "quantize", np.tile(X[:1], (n, 1)), C, temperature=2.0, noise=noise
    )
    p = np.exp(-cdist(X[:1], C, "sqeuclidean")[0] / 2.0)
    p /= p.sum()
    error = np.sqrt(p * (1 - p) / n)
    assert (np.abs(np.asarray(found.counts) / n - p) < 4 * error).all()


@BOTH
def test_the_gradients_of_drawn_codes_are_those_of_the_draw(module, pull):
    labels = drawn_labels(X, C, **DRAWN)

    def f(which, x, c, w, t, noise):
        found = module.quantize(x, c, weights=w, temperature=t, noise=noise)
        return getattr(found, which)

    arrays = X, C, W, np.float64(0.8), G
    away, costs = X - C[labels], ((X - C[labels]) ** 2).sum(1)
    of_codes = np.zeros_like(C)
    np.add.at(of_codes, labels, -2 * W[:, None] * away)
    zeros = [np.zeros_like(a) for a in arrays]
    expected = {
        "values": [V, *zeros[1:]],
        "codebook_loss": [zeros[0], of_codes, costs, *zeros[3:]],
        "commitment_loss": [2 * W[:, None] * away, zeros[1], costs, *zeros[3:]],
    }
    for which, wanted in expected.items():
        cotangent = V if which == "values" else 1.0
        _, grads = pull(partial(f, which), cotangent, *arrays)
        for a, b in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@MODULES
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_without_noise_a_draw_is_the_nearest_however_cold(module, dtype):
    x, c = X.astype(dtype), C.astype(dtype)
    noise = np.zeros((48, 5), dtype)
    for temperature in (1e-30, 0.5):
        options = {"temperature": temperature, "noise": noise}
        found = called(module, "quantize", x, c, **options)
        np.testing.assert_array_equal(found.labels, dk.assign(x, c))
    # Cold, noise decides nothing.
    found = called(module, "quantize", x, c, temperature=1e-30, noise=G.astype(dtype))
    np.testing.assert_array_equal(found.labels, dk.assign(x, c))


@BOTH
def test_rows_of_weight_zero_are_inert_among_drawn_codes(module, pull):
    x, w = X.copy(), W.copy()
    w[::5] = 0
    x[::10], x[5, 1] = np.nan, np.inf
    keep = w > 0

    def total(x, c, w, noise):
        found = module.quantize(x, c, weights=w, temperature=0.8, noise=noise)
        values = (w[:, None] * found.values**2).sum()
        return values + found.codebook_loss + 0.25 * found.commitment_loss

    value, grads = pull(total, 1.0, x, C, w, G)
    fewer, expected = pull(total, 1.0, x[keep], C, w[keep], G[keep])
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(grads[0][keep], expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(grads[0][~keep], 0)
    np.testing.assert_allclose(grads[1], expected[1], rtol=1e-12, atol=1e-14)
    assert np.isfinite(grads[2]).all()


def test_drawn_codes_under_jit_and_vmap_with_a_traced_temperature():
    temperatures, noises = jnp.array([0.1, 1.0, 9.0]), jnp.stack([G, G[::-1], -G])

    def f(t, noise):
        found = dk.quantize(X, C, temperature=t, noise=noise)
        return jax.tree.map(lambda a: a, found)

    together = jax.jit(jax.vmap(f))(temperatures, noises)
    for i in range(3):
        one = f(float(temperatures[i]), noises[i])
        for a, b in zip(together, one, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12)
    assert len({tuple(row) for row in np.asarray(together.labels)}) == 3


@MODULES
def test_drawn_codes_of_narrow_arrays(module):
    narrow = jnp.bfloat16 if module is dk else torch.bfloat16
    x, c, noise = (ARRAYS[module](a) for a in (X, C, G))
    if module is dk:
        x, c, noise = (a.astype(narrow) for a in (x, c, noise))
    else:
        x, c, noise = (a.to(narrow) for a in (x, c, noise))
    found = module.quantize(x, c, temperature=0.8, noise=noise)
    assert found.values.dtype == narrow
    assert str(found.counts.dtype).endswith("float32")
    assert float(found.counts.sum()) == 48


@BOTH
def test_the_values_of_drawn_codes_by_the_rotation_trick(module, pull):
    labels = drawn_labels(X, C, **DRAWN)

    def drawn(x, c, noise):
        found = module.quantize(
            x, c, method=module.rotation_trick, temperature=0.8, noise=noise
        )
        return found.values

    value, grads = pull(drawn, V, X, C, G)
    np.testing.assert_array_equal(value, C[labels])
    expected = pull(module.rotation_trick, V, X, C[labels])[1][0]
    np.testing.assert_allclose(grads[0], expected, rtol=1e-13)
