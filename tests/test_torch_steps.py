"""The pure functions that a fit in torch is made of."""

import pytest
import torch

import diffkm_torch as dt
from diffkm_torch._checks import as_problem
from diffkm_torch.fitting._loop import StopRule, has_converged, tolerance
from diffkm_torch.fitting._pseudo_inverse import pseudo_inverse
from diffkm_torch.statistics import full_step, pull_of, residual_of, statistics_of

X = torch.tensor([[1.0, 2.0], [2.0, 0.5], [6.0, 7.0], [8.0, 5.0]], dtype=torch.float64)
C = torch.tensor([[1.0, 1.0], [6.0, 5.0]], dtype=torch.float64)
W = torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64)
HERE, _ = as_problem(X, C, distance=dt.squared_euclidean)
DISTANCES = [
    dt.squared_euclidean,
    dt.euclidean,
    dt.kl_divergence,
    dt.mahalanobis(torch.tensor([[1.5, 0.4], [0.4, 0.7]], dtype=torch.float64)),
]


@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_step_down_is_by_the_gradient_of_every_distance(
    distance, block_size, temperature
):
    options = {"weights": W, "block_size": block_size, "distance": distance}
    c = C.clone().requires_grad_()
    if temperature is None:
        loss = dt.kmeans_loss(X, c, **options)
    else:
        loss = dt.soft_kmeans_loss(X, c, temperature=temperature, **options)
    (gradient,) = torch.autograd.grad(loss, c)
    problem, _ = as_problem(X, C, temperature=temperature, **options)
    stats = statistics_of(problem, C)
    pull = pull_of(problem, C, stats)
    torch.testing.assert_close(pull, -gradient)
    assert pull.abs().min() > 0
    options |= {"temperature": temperature, "optimizer": dt.sgd(0.01)}
    state, found = dt.update(X, dt.init(C), **options)
    torch.testing.assert_close(found, stats)
    torch.testing.assert_close(state.centroids, C - 0.01 * gradient)


def test_a_full_step_is_to_the_mean_and_zero_without_weight():
    counts, shifts = torch.tensor([2.0, 0.0]), torch.tensor([[6.0, 8.0], [5.0, 5.0]])
    stats = dt.Statistics(torch.tensor(0.0), counts, shifts)
    assert full_step(stats).tolist() == [[3, 4], [0, 0]]
    assert residual_of(HERE, C, stats) == 25


def test_the_tolerance_is_relative_to_the_variance_above_rounding():
    variance = torch.tensor(3.0, dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    far = torch.cat([C, torch.full((1, 2), torch.inf, dtype=torch.float64)])
    active = torch.tensor([True, True, False])
    assert tolerance(StopRule(0.5, variance, None), HERE, C, None) == 1.5
    floor = eps**2 * ((C**2).sum() + 64 * 4 * 3)
    at_rounding = StopRule(0.0, variance, None)
    torch.testing.assert_close(tolerance(at_rounding, HERE, C, None), floor)
    floor += eps**2 * 64 * 2 * 3
    found = tolerance(at_rounding, HERE, far, active)
    torch.testing.assert_close(found, floor)


def test_a_fit_rests_below_the_tolerance_at_the_last_temperature():
    variance = torch.tensor(1.0, dtype=torch.float64)
    rule = StopRule(0.5, variance, 0.1)
    small, large, nan = (torch.tensor(v).double() for v in (0.5, 0.51, torch.nan))
    last, before = (HERE._replace(temperature=t) for t in (0.1, 0.2))
    assert has_converged(rule, last, small, C, None)
    assert not has_converged(rule, before, small, C, None)
    assert has_converged(rule, HERE, small, C, None)
    assert not has_converged(rule, last, large, C, None)
    assert not has_converged(rule, last, nan, C, None)
    endless = rule._replace(variance=torch.tensor(torch.inf))
    assert not has_converged(endless, last, small, C, None)


def test_the_pseudo_inverse_inverts_where_the_hessian_is_positive():
    scale, push = torch.diag(torch.tensor([0.5, 1.0])).double(), torch.ones(2).double()
    hessian = torch.tensor([[4.0, 0.5], [0.5, 1.0]]).double()
    inverse, trusted = pseudo_inverse(hessian, scale, push)
    torch.testing.assert_close(inverse, hessian.inverse())
    assert trusted
    first = torch.diag(torch.tensor([0.5, 0.0])).double()
    empty, trusted = pseudo_inverse(hessian, first, push)
    torch.testing.assert_close(empty, torch.diag(torch.tensor([0.25, 0.0]).double()))
    assert trusted
    assert pseudo_inverse(hessian * torch.nan, scale, push) == (None, False)


@pytest.mark.parametrize(
    ("curvature", "push", "trust"),
    [(0.0, 0.0, True), (0.0, 1.0, False), (-1.0, 0.0, False), (1.0, 1.0, True)],
)
def test_a_flat_direction_is_trusted_only_if_nothing_pushes_along_it(
    curvature, push, trust
):
    hessian = torch.diag(torch.tensor([4.0, curvature])).double()
    push = torch.tensor([1.0, push]).double()
    scale = torch.diag(torch.tensor([0.5, 1.0])).double()
    _, trusted = pseudo_inverse(hessian, scale, push)
    assert trusted == trust
