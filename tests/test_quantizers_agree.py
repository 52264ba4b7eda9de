"""Quantizers in JAX and in torch: values, gradients, second derivatives, errors."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from problems import NAMES, TIED, problem
from twins import compare

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(41, 3)), RNG.normal(size=(5, 3))
W, V, G = RNG.uniform(0.2, 2, 41), RNG.normal(size=(41, 3)), RNG.normal(size=(41, 3))
METHODS = ["straight_through_vector", "rotation_trick"]
MAPS = pytest.mark.parametrize("name", METHODS)
DTYPES = ["float64", "float32"]


@MAPS
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_maps_agree(name, dtype):
    arrays = {"points": X[:6, None].reshape(2, 3, 3), "nearest": V[:6].reshape(2, 3, 3)}
    arrays = {key: a.astype(dtype) for key, a in arrays.items()}
    functions = [getattr(module, name) for module in (dk, dt)]
    assert compare(*functions, **arrays) == 0


@MAPS
def test_second_derivatives_of_the_maps_agree(name):
    """The gradient of a gradient penalty, of a loss that is not linear in the value."""

    def ours(points, nearest, target):
        def loss(x, q, target):
            return (((getattr(dk, name)(x, q) - target) ** 3).sum(-1) ** 2).sum()

        grads = jax.grad(loss, (0, 1, 2))(points, nearest, target)
        return sum((g**2).sum() for g in grads)

    def theirs(points, nearest, target):
        value = getattr(dt, name)(points, nearest)
        loss = (((value - target) ** 3).sum(-1) ** 2).sum()
        inputs = points, nearest, target
        grads = torch.autograd.grad(
            loss, inputs, create_graph=True, materialize_grads=True
        )
        return sum((g**2).sum() for g in grads)

    arrays = {"points": X[:7], "nearest": V[:7], "target": G[:7]}
    assert compare(ours, theirs, **arrays) == 0
    second = jax.grad(ours)(*map(jnp.asarray, arrays.values()))
    assert (np.abs(second).max(axis=1) > 1e-3).all()


@cache
def quantizers(function):
    """All that a quantizer returns but its labels, of both packages."""

    def on(module):
        def outcome(noise, **kw):
            if function == "nsvq":
                found = module.nsvq(noise=noise, block_size=8, **kw)
            else:
                found = module.quantize(method=getattr(module, function), **kw)
            return found.values, found.codebook_loss, found.commitment_loss

        return outcome

    return on(dk), on(dt)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", [*METHODS, "nsvq"])
def test_the_quantizers_agree(function, name, dtype):
    arrays = problem(name, dtype)
    shape = arrays["points"].shape
    noise = np.random.default_rng(2).normal(size=shape).astype(dtype)
    perturb = name not in TIED
    unresolved = compare(*quantizers(function), perturb=perturb, noise=noise, **arrays)
    # At an offset of 10⁴ one float32 ulp is 10⁻³ of a point's size.
    assert unresolved <= (1.0 if (name, dtype) == ("offset", "float32") else 0.2)


@pytest.mark.parametrize("name", ["random", "zero weights", "inactive", "offset"])
@pytest.mark.parametrize("distance", ["squared_euclidean", "manhattan"])
def test_drawn_codes_agree(name, distance):
    arrays = problem(name, "float64")
    shape = len(arrays["points"]), len(arrays["centroids"])
    noise = np.random.default_rng(5).gumbel(size=shape)

    def outcome(module, **kw):
        found = module.quantize(distance=getattr(module, distance), block_size=8, **kw)
        return found.values, found.codebook_loss, found.commitment_loss, found.counts

    pair = (partial(outcome, module) for module in (dk, dt))
    arrays |= {"noise": noise, "temperature": np.asarray(0.7)}
    assert compare(*pair, **arrays) == 0


@pytest.mark.parametrize("name", ["random", "zero weights", "inactive"])
@pytest.mark.parametrize("function", [*METHODS, "nsvq"])
def test_second_derivatives_of_the_quantizers_agree(function, name):
    """The gradient of a gradient penalty on all that a quantizer returns."""

    def loss(module, kw, noise):
        if function == "nsvq":
            found = module.nsvq(noise=noise, **kw)
        else:
            found = module.quantize(method=getattr(module, function), **kw)
        losses = found.codebook_loss + 0.25 * found.commitment_loss**2
        return (found.values**3).sum() + losses

    arrays = problem(name)
    moving = [key for key, a in arrays.items() if a.dtype != bool]

    def ours(noise, **kw):
        fixed = {key: a for key, a in kw.items() if key not in moving}
        grads = jax.grad(lambda f, v: loss(dk, f | fixed, v), (0, 1))(
            {key: kw[key] for key in moving}, noise
        )
        return sum((g**2).sum() for g in jax.tree.leaves(grads))

    def theirs(noise, **kw):
        inputs = [*(kw[key] for key in moving), noise]
        grads = torch.autograd.grad(
            loss(dt, kw, noise), inputs, create_graph=True, materialize_grads=True
        )
        return sum((g**2).sum() for g in grads)

    noise = np.random.default_rng(3).normal(size=arrays["points"].shape)
    assert compare(ours, theirs, noise=noise, **arrays) == 0


# A function, its arrays, its options, the error and its message, in both packages.
RAISES = [
    *(
        (name, arrays, {}, error, message)
        for name in METHODS
        for arrays, error, message in [
            ((X + 1j, X), TypeError, "points must be floating, .*complex128"),
            ((X, X + 1j), TypeError, "nearest must be floating, .*complex128"),
            ((np.float64(1), X), ValueError, r"points must be \[..., d\].*shape \(\)"),
            ((X[:, :0], X), ValueError, r"points must be .*shape \(41, 0\)"),
            ((X, C), ValueError, r"nearest must be .*\(41, 3\), got shape \(5, 3\)"),
            ((X, X[0]), ValueError, r"nearest must be .*, got shape \(3,\)"),
        ]
    ),
    *(
        (name, (X, C, *more), options, error, message)
        for name, more in [("quantize", ()), ("nsvq", (V,))]
        for options, error, message in [
            ({"weights": W + 1j}, TypeError, "weights must be floating"),
            ({"weights": W[1:]}, ValueError, r"weights must be \[n\] with n = 41"),
            ({"active": np.ones(5)}, TypeError, "active must be bool, .*float64"),
            ({"active": np.ones(3, bool)}, ValueError, r"active must be \[k\]"),
            ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
            ({"block_size": 2.0}, TypeError, "block_size must be a Python integer"),
        ]
    ),
    *(
        (name, (*pair, *more), {}, error, message)
        for name, more in [("quantize", ()), ("nsvq", (V,))]
        for pair, error, message in [
            ((X + 1j, C), TypeError, "points must be floating"),
            ((X, C + 1j), TypeError, "centroids must be floating"),
            ((X[0, 0], C), ValueError, r"points must be \[\.\.\., d\], got shape \(\)"),
            ((X[:0, None], C), ValueError, "points must have at least one row, got"),
            ((X[None, :, :2], C), ValueError, r"centroids must be .*d = 2.*\(5, 3\)"),
            ((X, C[:, :2]), ValueError, r"centroids must be .*d = 3.*\(5, 2\)"),
        ]
    ),
    ("quantize", (X, C), {"method": None}, TypeError, "method must be a function"),
    (
        "quantize",
        (X, C),
        {"method": lambda points, nearest: nearest[1:]},
        ValueError,
        r"method must keep the shape .*\(40, 3\) for points \(41, 3\)",
    ),
    *(
        ("quantize", (X, C), options, error, message)
        for options, error, message in [
            ({"temperature": 1.0}, ValueError, "noise must be given with temperature"),
            (
                {"noise": V},
                ValueError,
                "temperature must be given with noise",
            ),
            (
                {"temperature": 1.0, "noise": V},
                ValueError,
                r"noise must be \[\.\.\., k\] with k = 5, .*got shape \(41, 3\)",
            ),
            (
                {"temperature": 1.0, "noise": np.ones((41, 5), int)},
                TypeError,
                "noise must be floating",
            ),
            ({"temperature": -1.0, "noise": W}, ValueError, "temperature must be fin"),
            (
                {"temperature": W, "noise": W},
                ValueError,
                "temperature must be a sc",
            ),
        ]
    ),
    *(
        (name, (X[None], C, *more), {"weights": W}, ValueError, message)
        for name, more in [("quantize", ()), ("nsvq", (V[None],))]
        for message in [r"weights must be \[\.\.\.\] as points .*got shape \(41,\)"]
    ),
    ("nsvq", (X[None], C, V), {}, ValueError, r"noise must be \[\.\.\., d\] as points"),
    ("nsvq", (X, C, V.astype(int)), {}, TypeError, "noise must be floating"),
    ("nsvq", (X, C, V[:5]), {}, ValueError, r"noise .*\(41, 3\), got shape \(5, 3\)"),
]


@pytest.mark.parametrize("module", [dk, dt])
@pytest.mark.parametrize(("name", "arrays", "options", "error", "message"), RAISES)
def test_every_error_is_raised(module, name, arrays, options, error, message):
    array = jnp.asarray if module is dk else torch.as_tensor
    options = {
        key: array(a) if isinstance(a, np.ndarray) else a for key, a in options.items()
    }
    with pytest.raises(error, match=message):
        getattr(module, name)(*map(array, arrays), **options)


def test_errors_are_found_while_tracing():
    with pytest.raises(ValueError, match="nearest must be"):
        jax.eval_shape(dk.rotation_trick, X, C)
    with pytest.raises(ValueError, match="noise must be"):
        jax.jit(dk.nsvq)(X, C, C)
