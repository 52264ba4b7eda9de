"""The derivative of a fit in torch: against finite differences, and mode by mode."""

import numpy as np
import pytest
import torch

import diffkm_torch as dt

RNG = np.random.default_rng(0)
CENTERS = torch.tensor([[0.0, 0.0], [3.0, 0.5], [0.5, 3.5]])
X = CENTERS.double().repeat(10, 1) + 0.7 * torch.tensor(RNG.normal(size=(30, 2)))
C = X[:3].clone()
W = torch.tensor(RNG.uniform(0.2, 2, 30))
T = torch.tensor(0.5, dtype=torch.float64)
PULL = torch.tensor(RNG.normal(size=(3, 2)))
PRECISION = torch.tensor([[1.5, 0.4], [0.4, 0.7]], dtype=torch.float64)
MODES = ["implicit", "one_step", "unrolled", "none"]
DISTANCES = {
    "squared": {},
    "euclidean": {"distance": dt.euclidean, "optimizer": dt.sgd(0.04)},
    "mahalanobis": {
        "distance": dt.mahalanobis(PRECISION),
        "optimizer": dt.sgd(0.02),
    },
}
CASES = [(name, soft) for name in DISTANCES for soft in (False, True)]
EVERY_CASE = pytest.mark.parametrize(("name", "soft"), CASES)


def arguments(soft, **more):
    found = {"points": X, "weights": W} | ({"temperature": T} if soft else {}) | more
    return {key: a.clone().requires_grad_() for key, a in found.items()}


def fitted(arrays, name="squared", start=C, **options):
    options = {"tol": 0.0, "max_steps": 1000} | DISTANCES[name] | options
    points, rest = arrays["points"], {k: a for k, a in arrays.items() if k != "points"}
    return dt.fit(points, start, **rest, **options)


def pulled(arrays, *args, **options):
    return (PULL * fitted(arrays, *args, **options).centroids).sum()


def gradient(arrays, *args, **options):
    out = pulled(arrays, *args, **options)
    return torch.autograd.grad(out, list(arrays.values()), materialize_grads=True)


def moved(arrays, key, way, size):
    shift = {key: (arrays[key].detach() + size * way).requires_grad_()}
    return arrays | shift


def close(actual, expected, size=1e-6):
    torch.testing.assert_close(actual, expected, rtol=size, atol=size)


def direction(array):
    return torch.tensor(np.random.default_rng(1).normal(size=tuple(array.shape)))


@EVERY_CASE
def test_the_derivative_of_a_converged_fit_is_that_of_finite_differences(name, soft):
    arrays = arguments(soft)
    result = fitted(arrays, name)
    assert result.status == dt.Status.CONVERGED
    rest = result.centroids.detach()
    for key, slope in zip(arrays, gradient(arrays, name), strict=True):
        way, h = direction(arrays[key]), 1e-5
        ends = [
            pulled(moved(arrays, key, way, s), name, start=rest).detach()
            for s in (h, -h)
        ]
        close((slope * way).sum(), (ends[0] - ends[1]) / (2 * h))
        assert (slope * way).sum().abs() > 1e-3


@EVERY_CASE
def test_second_derivatives_are_finite_differences_of_the_gradient(name, soft):
    arrays = arguments(soft)
    rest = fitted(arrays, name).centroids.detach()
    for key in arrays:
        way, h = direction(arrays[key]), 1e-5
        values = list(arrays.values())
        out = pulled(arrays, name, start=rest)
        (slope,) = torch.autograd.grad(out, arrays[key], create_graph=True)
        options = {"materialize_grads": True}
        second = torch.autograd.grad((slope * way).sum(), values, **options)
        ends = [gradient(moved(arrays, key, way, s), name, start=rest) for s in (h, -h)]
        for ours, up, down in zip(second, *ends, strict=True):
            close(ours, (up - down) / (2 * h))


@EVERY_CASE
def test_implicit_is_unrolled_at_convergence(name, soft):
    arrays = arguments(soft)
    implicit = gradient(arrays, name)
    close(gradient(arrays, name, derivative="unrolled"), implicit, 1e-8)


def test_a_light_cluster_has_its_derivative_too():
    light = W * torch.tensor([1.0, 1.0, 1e-14]).repeat(10)
    arrays = arguments(True, weights=light, temperature=T / 5)
    implicit, unrolled = (
        gradient(arrays, derivative=mode)[0] for mode in ("implicit", "unrolled")
    )
    close(implicit, unrolled, 1e-8)
    assert implicit[2::3].abs().max() > 0.1


def test_the_hard_derivative_is_exact_at_the_third_order():
    w = W.clone().requires_grad_()
    labels = dt.fit(X, C, weights=W).labels
    rows = labels == 0
    mean = (w[rows][:, None] * X[rows]).sum(0) / w[rows].sum()
    slopes = [mean.sum(), dt.fit(X, C, weights=w).centroids[0].sum()]
    for _ in range(3):
        slopes = [
            torch.autograd.grad((s * s).sum(), w, create_graph=True)[0] for s in slopes
        ]
    close(slopes[1], slopes[0], 1e-10)
    assert slopes[0].abs().max() > 1e-3


def test_one_step_is_implicit_when_hard_and_biased_when_soft():
    arrays = arguments(False)
    one_step = gradient(arrays, derivative="one_step")
    assert all(map(torch.equal, one_step, gradient(arrays)))
    arrays = arguments(True)
    one_step = gradient(arrays, derivative="one_step")
    for biased, exact in zip(one_step, gradient(arrays), strict=True):
        assert 0.01 < (biased - exact).norm() / exact.norm() < 1


@pytest.mark.parametrize("soft", [False, True])
def test_one_step_is_the_derivative_of_the_update_map(soft):
    arrays = arguments(soft)
    rest = fitted(arrays).centroids.detach()
    state, _ = dt.update(state=dt.init(rest), **arrays)
    expected = torch.autograd.grad((PULL * state.centroids).sum(), arrays.values())
    close(gradient(arrays, derivative="one_step"), expected, 1e-12)


@EVERY_CASE
def test_values_are_bitwise_equal_over_the_modes(name, soft):
    modes = [m for m in MODES if name == "squared" or m != "one_step"]
    options = {"max_steps": 7, "tol": 1e-4}
    plain = {key: a.detach() for key, a in arguments(soft).items()}
    expected = fitted(plain, name, **options)
    for mode in modes:
        result = fitted(arguments(soft), name, derivative=mode, **options)
        for field in ("centroids", "labels", "loss", "counts", "residual", "history"):
            assert torch.equal(getattr(result, field), getattr(expected, field)), field
        assert torch.equal(result.state.centroids, expected.state.centroids)
        assert result.num_steps == expected.num_steps
        assert result.status == expected.status


@pytest.mark.parametrize("soft", [False, True])
def test_none_is_zero_and_loss_and_counts_keep_their_own_gradient(soft):
    arrays = arguments(soft, centroids=C)
    start = arrays.pop("centroids")
    result = fitted(arrays, start=start, derivative="none")
    assert not result.centroids.requires_grad
    assert not result.state.centroids.requires_grad
    stats = dt.statistics(centroids=result.centroids, **arrays)
    for ours, theirs in (
        (result.loss, stats.loss),
        (result.counts[0], stats.counts[0]),
    ):
        close(*(torch.autograd.grad(f, arrays["weights"]) for f in (ours, theirs)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soft", [False, True])
def test_only_unrolled_steps_have_a_gradient_in_the_start(soft, mode):
    for steps in (0, 3):
        start = C.clone().requires_grad_()
        for begin in (start, dt.init(start)):
            result = dt.fit(
                X,
                begin,
                temperature=T if soft else None,
                max_steps=steps,
                derivative=mode,
                optimizer=dt.newton(),
            )
            assert result.centroids.requires_grad == (mode == "unrolled")
            assert result.state.centroids.requires_grad == (mode == "unrolled")


def test_the_unrolled_gradient_in_the_start_is_that_of_finite_differences():
    def end(start):
        options = {"temperature": T, "max_steps": 3, "derivative": "unrolled"}
        return (PULL * dt.fit(X, start, **options).centroids).sum()

    assert torch.autograd.gradcheck(end, C.clone().requires_grad_())


def test_history_and_residual_carry_no_gradient_and_the_states_do():
    for mode in MODES:
        w, optimizer = W.clone().requires_grad_(), dt.macqueen()
        begin = dt.init(C, optimizer=optimizer)
        begin, _ = dt.update(X, begin, weights=w, optimizer=optimizer)
        for steps in (0, 4):
            options = {"temperature": T, "max_steps": steps, "derivative": mode}
            result = dt.fit(X, begin, weights=w, optimizer=optimizer, **options)
            assert not result.history.requires_grad
            assert not result.residual.requires_grad
            assert result.loss.requires_grad
            assert result.counts.requires_grad
            assert result.state.opt_state.counts.requires_grad == (mode == "unrolled")
            assert result.state.centroids.requires_grad == (mode != "none")


def test_loss_and_counts_are_functions_of_the_returned_centroids():
    for mode in ("implicit", "unrolled"):
        arrays = arguments(True)
        result = fitted(arrays, derivative=mode)
        stats = dt.statistics(centroids=result.centroids, **arrays)
        for ours, theirs in ((result.loss, stats.loss), (result.counts, stats.counts)):
            ours, theirs = (
                torch.autograd.grad(f.pow(2).sum(), arrays.values(), retain_graph=True)
                for f in (ours, theirs)
            )
            close(ours, theirs, 1e-12)


@pytest.mark.parametrize("name", ["squared", "euclidean"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_cluster_without_weight_or_inactive_has_derivative_zero(name, soft):
    start = torch.cat([C, torch.full((2, 2), 1e3)]).double()
    active = torch.tensor([True, True, True, True, False])
    start[4] = torch.nan
    arrays = arguments(soft)
    result = fitted(arrays, name, start=start, active=active)
    assert result.status == dt.Status.CONVERGED | dt.Status.EMPTY_CLUSTER
    assert torch.equal(result.centroids[3], start[3])
    for j, size in ((3, 0), (4, 0), (0, None)):
        slopes = torch.autograd.grad(
            result.centroids[j].sum(), arrays.values(), retain_graph=True
        )
        assert all(s.isfinite().all() for s in slopes)
        assert size is None or all(s.abs().max() == size for s in slopes)
    (ours,) = torch.autograd.grad((PULL * result.centroids[:3]).sum(), arrays["points"])
    close(ours, gradient(arguments(soft), name)[0], 1e-8)


def test_a_relocated_row_has_derivative_zero_when_unrolled():
    start = torch.cat([C, torch.full((1, 2), 1e3)]).double()
    x = X.clone().requires_grad_()
    options = {"empty": "farthest", "max_steps": 1, "derivative": "unrolled"}
    result = dt.fit(x, start, **options)
    (slope,) = torch.autograd.grad(result.centroids[3].sum(), x, retain_graph=True)
    assert slope.abs().max() == 0
    (slope,) = torch.autograd.grad(result.centroids[0].sum(), x)
    assert slope.abs().max() > 0


def test_an_inert_row_harms_no_derivative():
    for soft in (False, True):
        arrays = arguments(soft)
        with torch.no_grad():
            arrays["points"] = torch.cat([X, torch.full((1, 2), torch.nan)])
            arrays["weights"] = torch.cat([W, torch.zeros(1)])
        arrays = {key: a.detach().requires_grad_() for key, a in arrays.items()}
        assert fitted(arrays).status == dt.Status.CONVERGED
        slopes = gradient(arrays)
        for ours, theirs in zip(slopes, gradient(arguments(soft)), strict=True):
            close(ours[:30] if ours.ndim else ours, theirs, 1e-10)
        assert slopes[0][30].abs().max() == 0


@pytest.mark.parametrize("distance", [dt.squared_euclidean, dt.euclidean])
def test_data_that_are_not_finite_give_no_derivative(distance):
    bad = X.clone()
    bad[2, 1] = torch.nan
    bad.requires_grad_()
    options = {"optimizer": dt.sgd(0.01), "distance": distance}
    result = dt.fit(bad, C, temperature=T, **options)
    assert result.status == dt.Status.NON_FINITE
    assert torch.equal(result.centroids, C)
    (slope,) = torch.autograd.grad(result.centroids.sum(), bad)
    assert slope.abs().max() == 0


# An even number of points in every cluster has an interval of medians.
STAIRS = torch.tensor([[0.0], [1.0], [2.0], [3.1], [10.0], [11.0], [12.0], [13.1]])
STAIRS = STAIRS.double()
MEDIANS = {
    "distance": dt.manhattan,
    "optimizer": dt.sgd(0.01),
    "tol": 0.0,
    "max_steps": 5,
}


def test_a_singular_hessian_is_reported_and_its_derivative_finite():
    x = STAIRS.clone().requires_grad_()
    start = torch.tensor([[1.5], [11.4]]).double()
    result = dt.fit(x, start, **MEDIANS)
    assert result.status == dt.Status.CONVERGED | dt.Status.LINEAR_SOLVE
    assert str(result.status) == "CONVERGED|LINEAR_SOLVE"
    (slope,) = torch.autograd.grad(result.centroids.sum(), x)
    assert slope.abs().max() == 0
    for mode in ("unrolled", "none"):
        result = dt.fit(x, start, derivative=mode, **MEDIANS)
        assert result.status == dt.Status.CONVERGED


def test_a_hessian_or_a_gradient_that_is_not_finite_gives_no_derivative():
    x = torch.tensor([[-1.0], [0.0], [1.0]]).double().requires_grad_()
    start = torch.zeros(1, 1).double()
    for power, status in ((1.5, "CONVERGED|LINEAR_SOLVE"), (0.5, "NON_FINITE")):

        def distance(x, y, power=power):
            return ((x - y).abs() ** power).sum(-1)

        result = dt.fit(x, start, distance=distance, optimizer=dt.sgd(0.1))
        assert str(result.status) == status
        assert torch.equal(result.centroids, start)
        (slope,) = torch.autograd.grad(result.centroids.sum(), x)
        assert slope.abs().max() == 0


def test_a_cluster_of_hardly_any_weight_has_a_finite_derivative():
    x = X.clone().requires_grad_()
    for far in (16.0, 19.25, 19.5, 19.75, 20.0):
        start = torch.cat([C, torch.full((1, 2), -far).double()])
        result = dt.fit(x, start, temperature=1.0, max_steps=0)
        assert 0 < result.counts[3] < 1e-190
        assert torch.equal(result.centroids, start)
        (slope,) = torch.autograd.grad(result.centroids.sum(), x)
        assert slope.isfinite().all()


@pytest.mark.parametrize("apart", [0.0, 1e-3])
def test_a_saddle_is_reported(apart):
    """Two centroids, merged or almost, below the critical temperature."""
    x = X.clone().requires_grad_()
    start = X.mean(0) + apart * torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    result = dt.fit(x, start, temperature=0.5, max_steps=0)
    assert result.status & dt.Status.LINEAR_SOLVE
    (slope,) = torch.autograd.grad(result.centroids.sum(), x)
    assert slope.isfinite().all()


@pytest.mark.parametrize("temperature", [None, 0.01])
def test_points_that_sit_on_their_centroids_carry_them(temperature):
    x = CENTERS.double().requires_grad_()
    options = {"temperature": temperature, **DISTANCES["mahalanobis"]}
    result = dt.fit(x, x.detach(), **options)
    assert result.status == dt.Status.CONVERGED
    (slope,) = torch.autograd.grad((PULL * result.centroids).sum(), x)
    close(slope, PULL, 1e-12)


def test_a_singular_direction_that_nothing_pulls_in_is_none_to_report():
    """The cosine does not see the length of a centroid."""
    x = (X + 3).requires_grad_()
    start = x.detach()[[1, 2]]
    options = {"distance": dt.cosine, "temperature": 0.05, "tol": 0.0}
    result = dt.fit(x, start, optimizer=dt.sgd(0.05), max_steps=3000, **options)
    assert result.status == dt.Status.CONVERGED
    for squared in (result.centroids**2).sum(1):
        (slope,) = torch.autograd.grad(squared, x, retain_graph=True)
        close(slope, torch.zeros_like(x), 1e-10)
    unit = torch.nn.functional.normalize(result.centroids)
    (ours,) = torch.autograd.grad((PULL[:2] * unit).sum(), x)
    way, h, ends = direction(X), 1e-5, []
    for size in (h, -h):
        begin = result.centroids.detach()
        options["derivative"] = "none"
        there = dt.fit(
            x + size * way, begin, optimizer=dt.sgd(0.05), max_steps=3000, **options
        )
        unit = torch.nn.functional.normalize(there.centroids)
        ends.append((PULL[:2] * unit).sum().detach())
    close((ours * way).sum(), (ends[0] - ends[1]) / (2 * h))


def test_nothing_is_solved_where_nothing_is_differentiated(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a Hessian was built")

    monkeypatch.setattr(torch.func, "jacrev", refuse)
    start = torch.tensor([[1.5], [11.4]]).double()
    x = STAIRS.clone().requires_grad_()
    assert dt.fit(STAIRS, start, **MEDIANS).status == dt.Status.CONVERGED
    with torch.no_grad():
        assert dt.fit(x, start, **MEDIANS).status == dt.Status.CONVERGED
        result = dt.fit(x, start, derivative="unrolled", **MEDIANS)
        assert not result.centroids.requires_grad
    assert dt.fit(X.clone().requires_grad_(), C).centroids.requires_grad
    with pytest.raises(AssertionError, match="a Hessian was built"):
        dt.fit(x, start, **MEDIANS)


def test_the_end_of_a_schedule_has_the_gradient_of_a_constant():
    t, u = (T.clone().requires_grad_() for _ in range(2))
    options = {"tol": 0.0, "max_steps": 1000}
    result = dt.fit(X, C, temperature=lambda s: t * max(1, 2 - s / 10), **options)
    assert result.status == dt.Status.CONVERGED
    assert result.temperature is not None
    assert float(result.temperature.detach()) == float(T)
    (ours,) = torch.autograd.grad((PULL * result.centroids).sum(), t)
    constant = dt.fit(X, C, temperature=u, **options)
    (theirs,) = torch.autograd.grad((PULL * constant.centroids).sum(), u)
    close(ours, theirs, 1e-10)


def test_what_a_distance_closes_over_is_differentiated():
    def end(precision, start=C):
        return pulled(
            {"points": X},
            start=start,
            distance=dt.mahalanobis(precision),
            optimizer=dt.sgd(0.02),
            temperature=T,
        )

    precision = PRECISION.clone().requires_grad_()
    (slope,) = torch.autograd.grad(end(precision), precision)
    way, h = direction(PRECISION), 1e-5
    ends = [end(PRECISION + s * way) for s in (h, -h)]
    close((slope * way).sum(), (ends[0] - ends[1]) / (2 * h))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("soft", [False, True])
def test_torch_func_transforms_of_a_fit(soft):
    def end(x):
        options = {"temperature": T if soft else None, "tol": 0.0}
        return (PULL * dt.fit(x, C, **options).centroids).sum()

    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(end(x), x)
    close(torch.func.grad(end)(X), expected, 1e-12)
    way = direction(X)
    _, slope = torch.func.jvp(end, (X,), (way,))
    close(slope, (expected * way).sum(), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_low_precision_keeps_its_dtype_and_its_derivative(dtype, soft):
    arrays = {key: a.detach().to(dtype) for key, a in arguments(soft).items()}
    wide = {key: a.double().requires_grad_() for key, a in arrays.items()}
    arrays = {key: a.requires_grad_() for key, a in arrays.items()}
    result = fitted(arrays, start=C.to(dtype), tol=1e-8)
    assert result.status == dt.Status.CONVERGED
    assert result.centroids.dtype == dtype
    assert result.state.centroids.dtype == torch.float32
    slopes = torch.autograd.grad((PULL * result.state.centroids).sum(), arrays.values())
    size = 1e-4 if dtype == torch.float32 else 1e-2
    for ours, theirs in zip(slopes, gradient(wide, start=C), strict=True):
        assert ours.dtype == dtype
        close(ours.double(), theirs, size)


def test_a_narrow_state_of_wide_points_has_a_derivative():
    x = X.clone().requires_grad_()
    result = dt.fit(x, dt.init(C.float()), temperature=T)
    assert result.state.centroids.dtype == torch.float32
    (slope,) = torch.autograd.grad((PULL * result.centroids).sum(), x)
    (expected, *_) = gradient({"points": X.clone().requires_grad_()}, temperature=T)
    close(slope, expected, 1e-2)


@pytest.mark.parametrize("derivative", ["magic", None])
def test_an_unknown_derivative_raises(derivative):
    expected = "'implicit', 'one_step', 'unrolled' or 'none'"
    message = f"derivative must be {expected}, got {derivative!r}"
    with pytest.raises(ValueError, match=message):
        dt.fit(X, C, derivative=derivative)


def test_one_step_of_another_distance_raises():
    message = "derivative 'one_step' .* needs a distance that has one .*, got .*manh"
    with pytest.raises(ValueError, match=message):
        dt.fit(X, C, derivative="one_step", **MEDIANS)
