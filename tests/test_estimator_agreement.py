"""Estimators: JAX and torch on the same noise, to first and second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from maps import gumbel
from twins import compare

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(1)
LOGITS, BINARY = RNG.normal(size=(4, 2, 3)), RNG.normal(size=(4, 2, 2))
TARGET = RNG.normal(size=(4, 2, 3))
# Name of the factory, its static arguments, its scalars, its rows of noise.
CASES = [
    ("exact", {}, {}, 0),
    ("straight_through", {}, {"tau": 0.7}, 0),
    ("sampled_straight_through", {}, {"tau": 0.7}, 1),
    ("gumbel_softmax", {}, {"tau": 0.7}, 1),
    ("gumbel_softmax", {"hard": True}, {"tau": 0.7}, 1),
    ("decoupled_gumbel_softmax", {}, {"tau": 0.5, "tau_backward": 2.0}, 1),
    ("gumbel_rao", {"num_samples": 3}, {"tau": 0.7}, 4),
    ("gapped_straight_through", {}, {"tau": 0.7, "gap": 0.5}, 1),
    ("gapped_straight_through", {"gap": None}, {"tau": 0.7}, 1),
    ("reinmax", {}, {"tau": 1.2}, 1),
    ("blackbox", {}, {"strength": 3.0}, 0),
    ("implicit_mle", {}, {"strength": 2.0}, 1),
    ("implicit_mle", {"scaled": True}, {"strength": 2.0}, 1),
    ("reinforce", {}, {"baseline": 0.3}, 1),
    ("rloo", {"num_samples": 3}, {}, 3),
    ("rebar", {}, {"tau": 0.6, "eta": 0.8}, 2),
    ("disarm", {}, {}, 1),
    ("arm", {}, {}, 1),
    ("arms", {"num_samples": 2}, {}, 2),
    ("arms", {"num_samples": 5}, {}, 5),
    ("reinmax_rao", {"num_samples": 3}, {"tau": 0.7}, 4),
    ("reinmax_cv", {"num_samples": 3}, {"tau": 0.7, "eta": 0.6}, 4),
    ("relax", {}, {"params": [0.4, -0.3, 0.8]}, 2),
    ("rodeo", {"num_samples": 3}, {"alpha": 0.7, "beta": 0.4}, 3),
    ("unordered_set", {"num_samples": 2}, {}, 1),
    ("unordered_set", {"num_samples": 3}, {}, 1),
]
BINARY_ONLY = "disarm", "arm", "arms"

IDS = [f"{name}{i}" for i, (name, *_) in enumerate(CASES)]


def cost_of(module, scale):
    """A cost of two rows per problem, with a parameter."""
    sin = jnp.sin if module is dk else torch.sin

    def cost(rows):
        # Of one row each, where the estimator takes no other.
        pair = (rows[:, 0], rows[:, 1]) if rows.ndim == 3 else (rows, rows)
        return (scale * sin(2 * pair[0]) * (pair[1] + 0.5) ** 2).sum(-1)

    return cost


def make(module, name, static, settings):
    """The record of a package."""
    if name != "relax":
        return getattr(module.estimators, name)(**static, **settings)
    sin = jnp.sin if module is dk else torch.sin

    def control(params, z):
        weights = params[None, None] * (z * 0 + 1)
        return (sin(z) * weights).sum((-2, -1))

    params = settings["params"]
    params = params if module is dk else torch.as_tensor(params)
    return module.estimators.relax(control, params)


def problem(name, num_draws, dtype):
    logits = BINARY if name in BINARY_ONLY else LOGITS
    logits = logits[:, 0] if name == "unordered_set" else logits
    noise = gumbel((num_draws, *logits.shape), 2)
    scale = TARGET[:, 0, : logits.shape[-1]]
    return [a.astype(dtype) for a in (logits, noise, scale)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "static", "scalars", "num_draws"), CASES, ids=IDS)
def test_costs_and_their_gradients_agree(name, static, scalars, num_draws, dtype):
    logits, noise, scale = problem(name, num_draws, dtype)

    def on(module):
        def f(logits, scale, noise=noise, **settings):
            record = make(module, name, static, settings)
            if module is dt:
                noise = torch.as_tensor(noise)
            return record.expect(cost_of(module, scale), logits, noise)

        return f

    settings = {key: np.asarray(v, dtype) for key, v in scalars.items()}
    compare(on(dk), on(dt), logits=logits, scale=scale, **settings)


@pytest.mark.parametrize(("name", "static", "scalars", "num_draws"), CASES, ids=IDS)
def test_second_derivatives_agree(name, static, scalars, num_draws):
    """The gradient, in logits, parameters and settings, of a penalty on an estimate."""
    logits, noise, scale = problem(name, num_draws, "float64")

    def ours(logits, scale, **settings):
        record = make(dk, name, static, settings)

        def total(z):
            return record.expect(cost_of(dk, scale), z, noise).sum()

        return (jax.grad(total)(logits) ** 2).sum()

    def theirs(logits, scale, **settings):
        record = make(dt, name, static, settings)
        total = record.expect(cost_of(dt, scale), logits, torch.as_tensor(noise)).sum()
        (g,) = torch.autograd.grad(total, logits, create_graph=True)
        return (g**2).sum()

    settings = {key: np.asarray(v) for key, v in scalars.items()}
    compare(ours, theirs, logits=logits, scale=scale, **settings)


@pytest.mark.parametrize(("name", "static", "scalars", "num_draws"), CASES, ids=IDS)
def test_records_agree_in_what_they_say(name, static, scalars, num_draws):
    settings = {key: np.asarray(v) for key, v in scalars.items()}
    scalars = scalars if name != "relax" else settings
    ours, theirs = (make(module, name, static, scalars) for module in (dk, dt))
    for field in ("name", "num_draws", "discrete"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert set(ours.settings) == set(theirs.settings)
    assert ours.num_draws == num_draws
    noise = theirs.draw(torch.Generator().manual_seed(0), (2000, 3), torch.float64)
    assert noise.shape == (num_draws, 2000, 3)
    assert noise.isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        dt.estimators.reinmax,
        dt.estimators.gumbel_softmax,
        dt.estimators.rloo,
        dt.estimators.disarm,
    ],
)
def test_torch_maps_gradients_over_examples(make):
    record = make()
    logits = torch.tensor(BINARY[:, 0])
    noise = torch.tensor(gumbel((record.num_draws, 4, 2), 6))

    def cost(rows):
        return (rows**3).sum(-1) * rows[..., 0]

    def one(z, g):
        return record.expect(cost, z, g)

    mapped = torch.func.vmap(torch.func.grad(one), (0, 1))(logits, noise)
    logits.requires_grad_()
    record.expect(cost, logits, noise).sum().backward()
    torch.testing.assert_close(mapped, logits.grad)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "reinmax", "exact", "rebar"])
def test_torch_bears_a_cost_that_works_in_place(name):
    record = getattr(dt.estimators, name)()
    noise = torch.tensor(gumbel((record.num_draws, *LOGITS.shape), 6))
    slope = torch.arange(1.0, 4.0, dtype=torch.float64)

    def in_place(rows):
        rows *= slope
        return (rows**2).sum((-2, -1))

    grads = []
    for cost in (in_place, lambda rows: ((rows * slope) ** 2).sum((-2, -1))):
        logits = torch.tensor(LOGITS, requires_grad=True)
        record.expect(cost, logits, noise).sum().backward()
        grads.append(logits.grad)
    torch.testing.assert_close(*grads)


def test_torch_draws_standard_gumbel_noise():
    record = dt.estimators.reinmax()
    noise = record.draw(torch.Generator().manual_seed(0), (100_000,), torch.float16)
    assert noise.dtype == torch.float32
    np.testing.assert_allclose(noise.mean(), np.euler_gamma, atol=0.02)
    np.testing.assert_allclose(noise.var(), np.pi**2 / 6, rtol=0.03)
