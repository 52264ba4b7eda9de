"""The two packages side by side where x64 is off: what is refused, what still works."""

import threading

import jax
import numpy as np
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.agreement import compare_gradients
from diffkm_torch.bridge import jax_to_torch

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
