"""Infinite logits and noise are the limit of large ones, in both packages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from maps import MAPS, ONE_DRAW, RULED, SEVERAL_DRAWS, gumbel

import diffkm_jax as dk
import diffkm_torch as dt

LOGITS = np.random.default_rng(0).normal(size=(3, 4))
COTANGENT = np.random.default_rng(1).normal(size=(3, 4))
SMOOTH = [name for name in MAPS if name not in RULED]
NOISY = [*ONE_DRAW, *SEVERAL_DRAWS, "conditional_gumbel"]
NOISE_OR_NOT = [*MAPS, "conditional_gumbel"]
SOFT_DRAWS = ["gumbel_softmax", "decoupled_gumbel_softmax"]


def conditional(module, logits, noise):
    drawn = module.hard(module.hard(logits) + logits)
    return module.conditional_gumbel(logits, drawn, noise, differentiable=True)


def mapped(module, name):
    if name == "conditional_gumbel":
        return partial(conditional, module)
    return getattr(module, name)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(f, *arrays):
    value, pullback = jax.vjp(f, *arrays)
    cotangent = jnp.broadcast_to(COTANGENT, value.shape).astype(value.dtype)
    return value, *pullback(cotangent)


PROGRAMS = {name: mapped(dk, name) for name in NOISE_OR_NOT}


def ours(name, *arrays, dtype="float64"):
    """Value, and gradients in all arrays, by JAX."""
    arrays = [jnp.asarray(a).astype(dtype) for a in arrays]
    found = value_and_gradients(PROGRAMS[name], *arrays)
    return [np.array(a.astype("float64")) for a in found]


def theirs(name, *arrays, dtype="float64"):
    """The same by torch."""
    dtype = getattr(torch, dtype)
    arrays = [torch.tensor(a).to(dtype).requires_grad_() for a in arrays]
    value = mapped(dt, name)(*arrays)
    cotangent = torch.tensor(COTANGENT).expand(value.shape).to(value.dtype)
    gradients = [torch.zeros_like(a) for a in arrays]
    if value.requires_grad:
        total = (value * cotangent).sum()
        gradients = torch.autograd.grad(total, arrays, materialize_grads=True)
    return [a.detach().double().numpy() for a in (value, *gradients)]


BOTH = pytest.mark.parametrize("side", [ours, theirs], ids=["jax", "torch"])


def noise_for(name, value):
    """Noise of which an entry of row 1 is infinite, or very large."""
    noise = gumbel((3, *LOGITS.shape) if name not in ONE_DRAW else LOGITS.shape)
    noise[..., 1, 2] = value
    return noise


def close(found, expected):
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)


# Rows of −inf -------------------------------------------------------------------------


def nothing(dtype):
    logits = LOGITS.astype(dtype)
    logits[1] = -np.inf
    return logits


# Of torch's own forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", SMOOTH)
def test_forward_mode_is_zero_in_a_row_of_minus_infinity_alone(name):
    noise = [noise_for(name, 0.0)] if name in NOISY else []
    tangent = np.cos(LOGITS)
    along = jax.jit(
        lambda z, t: jax.jvp(
            lambda z: mapped(dk, name)(z, *map(jnp.asarray, noise)), (z,), (t,)
        )[1]
    )(nothing("float64"), tangent)
    twin = torch.func.jvp(
        lambda z: mapped(dt, name)(z, *map(torch.tensor, noise)),
        (torch.tensor(nothing("float64")),),
        (torch.tensor(tangent),),
    )[1]
    np.testing.assert_array_equal(along[1], 0)
    np.testing.assert_allclose(along, twin, atol=1e-14)
    gradient = ours(name, nothing("float64"), *noise)[1]
    forward, reverse = np.sum(along * COTANGENT), np.sum(gradient * tangent)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-12)


# Logits of +inf -----------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("name", [*SMOOTH, "straight_through", "reinmax"])
def test_a_logit_of_infinity_is_a_one_hot_with_gradient_zero(side, name, dtype):
    logits = LOGITS.copy()
    logits[1, 2] = np.inf
    noise = [noise_for(name, 0.0)] if name in NOISY else []
    value, in_logits, *_ = side(name, logits, *noise, dtype=dtype)
    np.testing.assert_array_equal(value[1], [0, 0, 1, 0])
    np.testing.assert_array_equal(in_logits[1], 0)
    assert np.isfinite(value).all()
    assert np.isfinite(in_logits).all()


# Noise --------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", [*ONE_DRAW, *SEVERAL_DRAWS])
def test_noise_of_infinity_is_the_limit_of_large_noise(side, name):
    found = side(name, LOGITS, noise_for(name, np.inf))
    close(found, side(name, LOGITS, noise_for(name, 1e6)))


@BOTH
@pytest.mark.parametrize("sign", [1, -1])
def test_a_conditional_sample_at_infinite_noise_is_the_limit(side, sign):
    name, entry = "conditional_gumbel", (..., 1, 2)
    value, *gradients = side(name, LOGITS, noise_for(name, sign * np.inf))
    limit, *_ = side(name, LOGITS, noise_for(name, sign * 1e6))
    assert (sign * value[entry] > 1e30).all()
    # Of the row that was drawn by noise of −inf all entries fall alike.
    soft, expected = dk.softmax(jnp.stack([value, limit]))
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_array_equal(gradients[1][entry], 0)


@BOTH
@pytest.mark.parametrize("name", [*ONE_DRAW, "gumbel_rao"])
def test_noise_of_minus_infinity_is_the_limit_of_small_noise(side, name):
    found = side(name, LOGITS, noise_for(name, -np.inf))
    close(found, side(name, LOGITS, noise_for(name, -1e6)))


@BOTH
@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        *(
            pytest.param(dtype, marks=pytest.mark.slow)
            for dtype in ("float64", "float32", "bfloat16")
        ),
    ],
)
@pytest.mark.parametrize("name", SOFT_DRAWS)
def test_a_relaxed_draw_of_infinite_noise_has_gradient_zero(side, name, dtype):
    value, *gradients = side(name, LOGITS, noise_for(name, np.inf), dtype=dtype)
    np.testing.assert_array_equal(value[1], [0, 0, 1, 0])
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[1], 0)
        assert np.isfinite(gradient).all()
        assert gradient[0].any()


@BOTH
@pytest.mark.parametrize("name", NOISY)
def test_infinite_noise_does_not_draw_what_is_excluded(side, name):
    logits = LOGITS.copy()
    logits[1, 2] = -np.inf
    value, *gradients = side(name, logits, noise_for(name, np.inf))
    assert (value[..., 1, 2] <= 0).all()
    assert np.isfinite(value[..., 1, [0, 1, 3]]).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_array_equal(gradients[0][1, 2], 0)


# Estimators ---------------------------------------------------------------------------


def cost(rows):
    return ((rows - 0.3) ** 3 * rows[..., :1]).sum(-1)


@jax.jit
def estimate(record, logits, noise):
    costs, pullback = jax.vjp(lambda z: record.expect(cost, z, noise), logits)
    return costs, pullback(jnp.ones_like(costs))[0]


# No estimators, or elsewhere; RELAX has a control variate of its user's.
NONE = {"Estimator", "attach", "bernoulli", "over_rows", "relax"}
OTHERS = {*dk.estimators.__all__} - NONE - {"gumbel_rao", "rebar"}


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "gumbel_rao",
        "rebar",
        *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(OTHERS)),
    ],
)
def test_an_estimate_at_infinite_noise_is_the_limit(name, value):
    logits = LOGITS[:, :2] if name in ("arm", "arms", "disarm") else LOGITS
    # A relaxed row of several has that limit at a tau below 1.
    options = {"gumbel_top_k": {"size": 2, "tau": 0.5}, "simple": {"size": 2}}
    mine, other = (
        getattr(m.estimators, name)(**options.get(name, {})) for m in (dk, dt)
    )
    noise = gumbel((mine.num_draws, *logits.shape))
    estimates = []
    for entry in (value, np.clip(value, -1e6, 1e6)):
        noise[:, 1, 1] = entry
        z = torch.tensor(logits).requires_grad_()
        twin = other.expect(cost, z, torch.tensor(noise))
        (gradient,) = torch.autograd.grad(twin.sum(), z)
        estimates += [estimate(mine, jnp.asarray(logits), jnp.asarray(noise))]
        estimates += [(twin.detach().numpy(), gradient.numpy())]
    for found in estimates:
        close(found, estimates[2])
