"""The blocks of the torch reference: whatever their size, values and derivatives."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import diffkm_torch as dt
from diffkm_torch._blocks import block_for
from diffkm_torch._checks import as_problem
from diffkm_torch._products import rows_of, sums_by_label
from diffkm_torch.fitting._loop import mean_variance
from diffkm_torch.statistics import statistics_of

RNG = np.random.default_rng(0)
N = 23
X = torch.tensor(RNG.normal(size=(N, 3)))
C = torch.tensor(RNG.normal(size=(4, 3)))
W = torch.tensor(RNG.uniform(0.2, 2, N)).index_fill(0, torch.tensor([4, 9]), 0.0)
ACTIVE = torch.tensor([True, False, True, True])
INERT = X.index_fill(0, torch.tensor([4]), torch.nan)
SIZES = None, 1, 2, 3, 7, 22, 23, 100
LAWS = {
    "hard": {},
    "soft": {"temperature": 0.7},
    "manhattan": {"distance": dt.manhattan},
    "soft manhattan": {"distance": dt.manhattan, "temperature": 0.7},
}
HARD = partial(as_problem, distance=dt.squared_euclidean)


def problem(n, k, d, block_size=None):
    points = torch.empty(n, d, device="meta" if n > 10**6 else None)
    return HARD(points, points[:k], block_size=block_size)[0]


@pytest.mark.parametrize(
    ("k", "d", "size"), [(3, 16, 2**15), (32, 64, 8192), (64, 600, 512), (1, 4096, 256)]
)
def test_blocks_are_powers_of_two_that_take_2_mb_or_less(monkeypatch, k, d, size):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert block_for(problem(100, k, d), k, d) == size
    assert block_for(problem(100, k, d, block_size=7), k, d) == 7
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert block_for(problem(100, 8, 8192), 8, 8192) == 256
    assert block_for(problem(100, 8, 2048), 8, 2048) == 512


def test_an_accelerator_takes_all_points_at_once():
    assert block_for(problem(10**7, 8, 4), 8, 4) == 10**7


def test_the_default_is_in_blocks():
    x = torch.tensor(RNG.normal(size=(600, 2**13)), requires_grad=True)
    c = x[:2].detach().requires_grad_()
    found, whole = (dt.kmeans_loss(x, c, block_size=size) for size in (None, 600))
    torch.testing.assert_close(found, whole)
    arguments = x, c
    ours, theirs = (torch.autograd.grad(f, arguments) for f in (found, whole))
    torch.testing.assert_close(ours, theirs)
    labels = [dt.assign(x, c, block_size=size) for size in (None, 600)]
    torch.testing.assert_close(*labels)


def everything(law, size):
    """Loss, counts, slopes of a loss of both, labels, and the fit."""
    options = {"active": ACTIVE, "block_size": size, **LAWS[law]}
    args = [a.clone().requires_grad_() for a in (X, C, W)]
    make = dt.soft_kmeans_loss if "temperature" in options else dt.kmeans_loss
    loss = make(args[0], args[1], weights=args[2], **options)
    slopes = torch.autograd.grad(loss, args)
    inert = make(INERT, C, weights=W, **options)
    law_of_labels = {k: v for k, v in options.items() if k != "temperature"}
    labels = dt.assign(X, C, **law_of_labels)
    settings = {"max_steps": 3, "tol": 0, "optimizer": dt.sgd(0.01), **options}
    fit = dt.fit(INERT, C, weights=W, **settings)
    return loss, slopes, inert, labels, fit.centroids, fit.history, fit.counts


@pytest.mark.parametrize("law", LAWS)
def test_values_and_gradients_are_those_of_all_points_at_once(law):
    whole = everything(law, N)
    torch.testing.assert_close(whole[2], whole[0])
    for size in SIZES:
        torch.testing.assert_close(everything(law, size), whole)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("law", ["hard", "soft"])
def test_statistics_and_their_derivatives_are_those_of_all_points_at_once(law):
    def statistics(x, c, w, size):
        return tuple(dt.statistics(x, c, weights=w, block_size=size, **LAWS[law]))

    args, tangents = (X, C, W), (X.cos(), C.sin(), W)

    def both(size):
        f = partial(statistics, size=size)
        jacobians = torch.func.jacrev(f, argnums=(0, 1, 2))(*args)
        hessian = torch.func.hessian(lambda c: f(X, c, W)[0])(C)
        return *torch.func.jvp(f, args, tangents), jacobians, hessian

    whole = both(N)
    for size in (3, 8):
        torch.testing.assert_close(both(size), whole)


@pytest.mark.parametrize("size", SIZES)
def test_a_point_that_is_not_finite_is_seen_in_its_cluster_and_in_the_loss(size):
    x = X.index_fill(0, torch.tensor([11]), torch.nan)
    loss, _, shifts = dt.statistics(x, C, block_size=size)
    assert loss.isnan()
    assert shifts.isnan().any(1).sum() == 1
    result = dt.fit(x, C, block_size=size)
    assert result.status & dt.Status.NON_FINITE


@pytest.mark.parametrize("weights", [None, W])
def test_a_remainder_moves_the_centroids_of_a_pass(weights):
    remainder = torch.tensor(RNG.normal(size=C.shape)) / 8
    found, _ = HARD(X, C, weights=weights, block_size=5)
    args = X.clone().requires_grad_(), C.clone().requires_grad_()

    def both(r, c):
        given = found._replace(points=args[0], remainder=r)
        stats = statistics_of(given, c)
        return tuple(stats), torch.autograd.grad(stats.loss, args)

    stats = both(remainder, args[1])
    torch.testing.assert_close(stats, both(None, args[1] + remainder))


@pytest.mark.parametrize("size", SIZES)
def test_an_infinite_loss_stays_so_beside_a_remainder(size):
    x = X.index_fill(0, torch.tensor([11]), torch.inf)
    found, _ = HARD(x, C, block_size=size)
    moved = found._replace(remainder=torch.zeros_like(C))
    pair = (tuple(statistics_of(one, C)) for one in (moved, found))
    torch.testing.assert_close(*pair, equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", [None, W])
def test_the_variance_is_that_of_all_points(size, weights):
    far = 1e6 + X
    found, _ = HARD(far, 1e6 + C, weights=weights, block_size=size)
    w = np.ones(N) if weights is None else weights.numpy()
    mean = np.average(X, axis=0, weights=w)
    expected = np.average(((X.numpy() - mean) ** 2).mean(1), weights=w)
    np.testing.assert_allclose(mean_variance(found, 1e6 + C), expected, rtol=1e-8)


@pytest.mark.parametrize("n", [5, 64, 65, 1000])
def test_sums_by_label_and_rows_are_those_of_one_piece(n):
    labels = torch.tensor(RNG.integers(3, size=n))
    values = torch.tensor(RNG.normal(size=(n, 2)))
    one_hot = torch.eye(3, dtype=values.dtype)[labels]
    counts, sums = sums_by_label(labels, 3, one_hot.sum(1), values)
    torch.testing.assert_close(counts, one_hot.sum(0))
    torch.testing.assert_close(sums, one_hot.T @ values)
    c = torch.tensor(RNG.normal(size=(3, 2)), requires_grad=True)
    torch.testing.assert_close(rows_of(c, labels), c[labels])
    (slope,) = torch.autograd.grad(rows_of(c, labels), c, values)
    torch.testing.assert_close(slope, one_hot.T @ values)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("which", ["points", "weights"])
def test_a_fit_knows_by_one_point_whether_a_derivative_is_asked_for(which):
    def fitted(a):
        x, w = (a, W) if which == "points" else (X, a)
        return dt.fit(x, C, weights=w, tol=1e-12).centroids

    start = X if which == "points" else W
    reverse = torch.autograd.functional.jacobian(fitted, start)
    # Of the last point alone too.
    tangent = torch.zeros_like(start)
    tangent[-1] = 1.0
    with forward_ad.dual_level():
        dual = fitted(forward_ad.make_dual(start, tangent))
        forward = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(forward, torch.tensordot(reverse, tangent, tangent.ndim))
    assert forward.abs().sum() > 0
    assert not dt.fit(X, C, weights=W).centroids.requires_grad
