"""The torch reference on its own: gradcheck, torch.func, Newton, no JAX needed."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import diffkm_torch as dt

RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(13, 3)))
C = torch.tensor(RNG.normal(size=(4, 3)))
W = torch.tensor(RNG.uniform(0.2, 2, 13))
T = torch.tensor(0.7, dtype=torch.float64)


def hard(x, c, w):
    return tuple(dt.statistics(x, c, weights=w))


def soft(x, c, w, t):
    return tuple(dt.statistics(x, c, weights=w, temperature=t))


@pytest.mark.parametrize(("f", "args"), [(hard, (X, C, W)), (soft, (X, C, W, T))])
def test_statistics_pass_gradcheck_to_second_order(f, args):
    args = [a.clone().requires_grad_() for a in args]
    assert torch.autograd.gradcheck(f, args)
    assert torch.autograd.gradgradcheck(f, args)


@pytest.mark.parametrize(
    "distance",
    [
        dt.squared_euclidean,
        dt.euclidean,
        dt.manhattan,
        dt.cosine,
        dt.kl_divergence,
        dt.itakura_saito,
        dt.mahalanobis(torch.eye(3, dtype=torch.float64) * 2),
    ],
)
def test_distances_and_their_losses_pass_gradcheck(distance):
    x, c = X.exp().requires_grad_(), C.exp().requires_grad_()
    assert torch.autograd.gradcheck(partial(dt.pairwise, distance=distance), (x, c))
    loss = partial(dt.kmeans_loss, distance=distance)
    assert torch.autograd.gradcheck(loss, (x, c))
    loss = partial(dt.soft_kmeans_loss, distance=distance, temperature=0.5)
    assert torch.autograd.gradcheck(loss, (x, c))


def test_softmax_passes_gradcheck_and_straight_through_has_its_gradient():
    logits, tau = X.clone().requires_grad_(), T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: dt.softmax(z, tau=t), (logits, tau))
    for f in (dt.softmax, dt.straight_through):
        out = f(logits, tau=tau)
        grads = torch.autograd.grad((out * X).sum(), (logits, tau))
        expected = grads if f is dt.softmax else expected
        torch.testing.assert_close(grads, expected)
    assert set(dt.straight_through(logits).unique().tolist()) == {0.0, 1.0}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_func_transforms_work():
    loss = partial(dt.kmeans_loss, X)
    stats = dt.statistics(X, C)
    torch.testing.assert_close(torch.func.grad(loss)(C), -2 * stats.shifts)
    hessian = torch.func.hessian(loss)(C).reshape(12, 12)
    expected = torch.diag(2 * stats.counts.repeat_interleave(3))
    torch.testing.assert_close(hessian, expected)
    both = torch.stack([C, 2 * C])
    soft_loss = partial(dt.soft_kmeans_loss, X, temperature=0.5)
    mapped = torch.func.vmap(soft_loss)(both)
    torch.testing.assert_close(mapped, torch.stack([soft_loss(c) for c in both]))
    _, slope = torch.func.jvp(soft_loss, (C,), (C,))
    torch.testing.assert_close(slope, (torch.func.grad(soft_loss)(C) * C).sum())


def test_block_size_changes_memory_and_no_value():
    for t in (None, 0.5):
        whole = dt.statistics(X, C, temperature=t)
        for size in (1, 5, 13, 50):
            parts = dt.statistics(X, C, temperature=t, block_size=size)
            torch.testing.assert_close(tuple(parts), tuple(whole))


def test_newton_is_scikit_learns_lloyd():
    data = load_digits().data
    start = data[:10] + 1e-3 * RNG.normal(size=(10, 64))
    theirs = KMeans(10, init=start, n_init=1, algorithm="lloyd").fit(data)
    ours = dt.fit(torch.tensor(data), torch.tensor(start))
    assert ours.num_steps == theirs.n_iter_
    assert ours.status == dt.Status.CONVERGED
    np.testing.assert_allclose(ours.loss, theirs.inertia_, rtol=1e-12)


def test_data_that_are_not_finite_never_converge():
    bad = X.clone()
    bad[2, 1] = torch.nan
    result = dt.fit(bad, C)
    assert result.status & dt.Status.NON_FINITE
    assert not result.status & dt.Status.CONVERGED
    torch.testing.assert_close(result.centroids, C)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype):
    x, c = X.to(dtype), C.to(dtype).requires_grad_()
    stats = dt.statistics(x, c)
    assert {leaf.dtype for leaf in stats} == {torch.float32}
    stats.loss.backward()
    assert c.grad is not None
    assert c.grad.dtype == dtype
    assert dt.fit(x, c.detach()).centroids.dtype == dtype


def test_it_imports_no_jax():
    program = "import diffkm_torch, sys; assert 'jax' not in sys.modules"
    root = Path(dt.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


@pytest.mark.parametrize(
    ("missing", "module", "message"),
    [
        ("torch", "diffkm_torch", r'pip install "diffkm\[torch\]"'),
        ("jax", "diffkm_torch.agreement", "calls JAX, .*: pip install diffkm"),
        ("jax", "diffkm_torch.bridge", "calls JAX, .*: pip install diffkm"),
    ],
)
def test_what_is_not_installed_is_named(missing, module, message):
    program = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(dt.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert re.search(f"ImportError: .*{message}", run.stderr)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_centroid_that_is_not_finite_makes_the_loss_nan(bad):
    c = C.clone()
    c[0, 1] = bad
    assert dt.kmeans_loss(X, c).isnan()
    assert dt.soft_kmeans_loss(X, c, temperature=0.5).isnan()
