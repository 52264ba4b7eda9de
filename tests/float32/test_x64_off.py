"""The two packages side by side where x64 is off: what is refused, what still works."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.agreement import compare_gradients
from diffkm_torch.bridge import jax_to_torch, torch_to_jax

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(20, 3)), RNG.normal(size=(4, 3))


def test_a_comparison_in_float64_turns_it_on_for_itself_alone():
    report = compare_gradients(dk.kmeans_loss, dt.kmeans_loss, X, C)
    assert report.agree
    wide = [p for p in report.pairs if p.dtype == "float64"]
    assert max(p.scaled for p in wide) < 1e-13
    assert jax.numpy.ones(()).dtype == np.float32
    assert torch.ones(()).dtype == torch.float32


@pytest.mark.parametrize("jit", [True, False])
def test_a_comparison_in_float32_still_knows_the_errors_against_float64(jit):
    options = {"dtypes": ["float32"], "jit": jit}
    report = compare_gradients(dk.kmeans_loss, dt.kmeans_loss, X, C, **options)
    assert report.agree
    assert all(max(p.errors) < 1e-6 for p in report.pairs)
    doubled = compare_gradients(
        dk.kmeans_loss, lambda x, c: 2 * dt.kmeans_loss(x, c), X, C, **options
    )
    assert {p.verdict for p in doubled.pairs} == {"disagree"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_the_bridge_refuses_what_jax_would_round(dtype):
    bridged = jax_to_torch(lambda a: a * 2)
    with pytest.raises(ValueError, match=r"args\[0\] is torch.*64, which JAX"):
        bridged(torch.ones(3, dtype=dtype))
    assert bridged(torch.ones(3)).dtype == torch.float32


def test_the_bridge_keeps_float64_where_the_forward_pass_ran_under_x64():
    points, bridged = torch.tensor(X), jax_to_torch(dk.soft_kmeans_loss)
    centroids = torch.tensor(C, requires_grad=True)
    expected = dt.soft_kmeans_loss(points, centroids, temperature=0.5)
    (slope,) = torch.autograd.grad(expected, centroids)
    with jax.enable_x64(True):
        value = bridged(points, centroids, temperature=0.5)
    found = []

    def backward(**options):
        found.append(
            torch.autograd.grad(value, centroids, retain_graph=True, **options)
        )

    for options in ({}, {"create_graph": True}):
        thread = threading.Thread(target=backward, kwargs=options)
        thread.start()
        thread.join()
    for (gradient,) in found:
        torch.testing.assert_close(gradient.detach(), slope, rtol=1e-12, atol=1e-12)
    assert len(found) == 2


def test_torch_in_jax_returns_labels_of_32_bits_if_they_fit():
    points, centroids = jnp.asarray(X, jnp.float32), jnp.asarray(C, jnp.float32)
    labels = torch_to_jax(lambda x, c: torch.cdist(x, c).argmin(1))(points, centroids)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, dk.assign(points, centroids))
    shifted = torch_to_jax(lambda a: a.long() + 2**31 - 1)
    assert shifted(jnp.zeros(2, jnp.int32)).tolist() == [2**31 - 1] * 2
    with pytest.raises(
        (jax.errors.JaxRuntimeError, ValueError), match=r"beyond the range of .*int32"
    ):
        jax.block_until_ready(shifted(jnp.ones(2, jnp.int32)))


def test_torch_in_jax_refuses_what_jax_would_round():
    with pytest.raises(ValueError, match=r"fn returns torch.float64.*\.float\(\)"):
        torch_to_jax(lambda a: a.double())(jnp.ones(3))
    with pytest.raises(ValueError, match=r"weight in torch.float64.*fn\.float\(\)"):
        torch_to_jax(torch.nn.Linear(2, 3).double())
    slope = jax.grad(torch_to_jax(lambda a: (a.double() ** 2).sum().float()))
    assert slope(jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]


def test_torch_in_jax_keeps_float64_where_x64_is_on():
    with jax.enable_x64(True):
        loss = torch_to_jax(dt.kmeans_loss)
        value, slope = jax.jit(jax.value_and_grad(loss, 1))(
            jnp.asarray(X), jnp.asarray(C)
        )
        expected = jax.value_and_grad(dk.kmeans_loss, 1)(jnp.asarray(X), jnp.asarray(C))
    assert value.dtype == slope.dtype == np.float64
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-12)
