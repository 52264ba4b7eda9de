"""Assignments and quantities built of them: JAX and torch on the same noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from maps import MAPS, gumbel, noise_for, scalar
from twins import compare, pair

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(2)
LOGITS = RNG.normal(size=(2, 6, 5))
LOGITS[0, 0, 1] = -np.inf
OPTIONS = {
    "gumbel_softmax": [{}, {"hard": True}],
    "gapped_straight_through": [{}, {"gap": None}, {"gap": 2.5}],
    "decoupled_gumbel_softmax": [{}, {"tau_backward": 0.4}],
    "implicit_mle": [{}, {"scaled": True}],
    "sinkhorn": [{"num_iters": 3}],
}
CASES = [(name, options) for name in MAPS for options in OPTIONS.get(name, [{}])]


def arrays_for(name, dtype, value):
    arrays = {"logits": LOGITS.astype(dtype)}
    arrays |= noise_for(name, LOGITS.shape, 3, dtype)
    if scalar(name):
        arrays[scalar(name)] = np.asarray(value, dtype)
    return arrays


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("value", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_values_and_gradients_agree(name, options, value, dtype):
    arrays = arrays_for(name, dtype, value)
    unresolved = compare(*pair(name, **options), **arrays, size_of_gradient=1 / value)
    assert unresolved == 0 or name != "hard"


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_conditional_samples_agree(stack, differentiable):
    drawn = np.array(dk.hard(LOGITS + gumbel(LOGITS.shape)))

    def on(module, array):
        f = partial(module.conditional_gumbel, differentiable=differentiable)

        def sample(logits, noise, tau):
            z = f(logits, array(drawn), noise)
            return module.softmax(z, tau=tau)

        return sample

    arrays = {"logits": LOGITS, "noise": gumbel((*stack, *LOGITS.shape), 5)}
    arrays["tau"] = np.asarray(0.7)
    assert compare(on(dk, jnp.asarray), on(dt, torch.as_tensor), **arrays) == 0


@pytest.mark.parametrize(("name", "options"), CASES)
def test_second_derivatives_agree(name, options):
    """The gradient, in every argument, of a penalty on the gradient in the logits."""
    target = np.random.default_rng(4).normal(size=LOGITS.shape)

    def cost(rows, target):
        return ((rows - target) ** 3).sum()

    def ours(logits, target, **rest):
        f = partial(dk.__dict__[name], **rest, **options)
        return (jax.grad(lambda z: cost(f(z), target))(logits) ** 2).sum()

    def theirs(logits, target, **rest):
        rows = getattr(dt, name)(logits, **rest, **options)
        loss = cost(rows, target)
        if not loss.requires_grad:
            return (0 * logits.nan_to_num(neginf=0)).sum()
        inputs = [logits, *(v for v in rest.values() if v.requires_grad)]
        found = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)[
            0
        ]
        return (logits.new_zeros(()) if found is None else (found**2)).sum()

    arrays = arrays_for(name, "float64", 0.8)
    unresolved = compare(ours, theirs, **arrays, target=target)
    assert unresolved == 0 or name != "straight_through"


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_gumbel_softmax_is_torchs_own_on_torchs_own_noise(hard, tau):
    logits = torch.tensor(RNG.normal(size=(50, 7)), requires_grad=True)
    target = torch.tensor(RNG.normal(size=(50, 7)))
    torch.manual_seed(0)
    noise = -torch.empty_like(logits).exponential_().log()
    torch.manual_seed(0)
    theirs = torch.nn.functional.gumbel_softmax(logits, tau=tau, hard=hard)
    cost = ((theirs - target) ** 2).sum()
    (gradient,) = torch.autograd.grad(cost, logits)

    def f(z):
        rows = dk.gumbel_softmax(z, noise.numpy(), tau=tau, hard=hard)
        return jnp.sum((rows - target.numpy()) ** 2), rows

    grads, rows = jax.grad(f, has_aux=True)(jnp.asarray(logits.detach().numpy()))
    np.testing.assert_allclose(rows, theirs.detach(), rtol=1e-12, atol=1e-15)
    scale = float(gradient.abs().max())
    np.testing.assert_allclose(grads, gradient, rtol=1e-10, atol=1e-12 * scale)
    mine = dt.gumbel_softmax(logits, noise, tau=tau, hard=hard)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", [n for n in MAPS if n != "sinkhorn"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_to_its_rounding(name, dtype):
    logits = RNG.normal(size=(6, 5))
    noise = noise_for(name, (6, 5), 3, np.float32)
    extra = {scalar(name): 0.7} if scalar(name) else {}
    mine = jnp.asarray(logits, dtype)
    other = torch.tensor(logits, dtype=getattr(torch, dtype), requires_grad=True)
    tensors = {k: torch.tensor(v) for k, v in noise.items()}

    def f(z):
        return getattr(dk, name)(z, **noise, **extra)

    rows, pullback = jax.vjp(f, mine)
    (found,) = pullback(rows + 1)
    theirs = getattr(dt, name)(other, **tensors, **extra)
    assert str(theirs.dtype) == f"torch.{dtype}"
    eps = float(jnp.finfo(dtype).eps)
    close = {"rtol": 4 * eps, "atol": 4 * eps}
    np.testing.assert_allclose(
        np.asarray(rows, np.float32), theirs.detach().float(), **close
    )
    gradient = torch.zeros_like(other)
    if theirs.requires_grad:
        (gradient,) = torch.autograd.grad(theirs, other, theirs.detach() + 1)
    assert gradient.dtype == other.dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), gradient.float(), **close)
