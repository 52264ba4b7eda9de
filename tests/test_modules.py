"""The layers of diffkm_torch: the functions, their training, what they keep."""

import inspect
from copy import deepcopy
from functools import partial
from io import BytesIO

import pytest
import torch
from problems import layer_data
from torch.testing import assert_close as close
from twins import exact, with_gradients

import diffkm_torch as dt

X, C, W, V = layer_data()
METHODS = [dt.straight_through_vector, dt.rotation_trick, dt.nsvq]


@pytest.mark.parametrize("temperature", [None, 0.7, torch.tensor(0.7)])
@pytest.mark.parametrize("distance", [dt.squared_euclidean, dt.manhattan])
def test_the_loss_is_the_functions(temperature, distance):
    layer = dt.KMeansLoss(C, temperature=temperature, distance=distance)
    x = X.clone().requires_grad_()
    ours = layer(x.reshape(2, 12, 3), weights=W.reshape(2, 12))
    grads = torch.autograd.grad(ours, (x, layer.centroids))
    f = partial(dt.kmeans_loss, weights=W, distance=distance)
    if temperature is not None:
        soft = partial(dt.soft_kmeans_loss, weights=W, distance=distance)
        f = partial(soft, temperature=temperature)
    (value,), expected = with_gradients(f, X, C)
    exact(ours.detach(), value)
    exact(list(grads), expected)


def test_the_mean_is_over_the_total_weight():
    total, mean = dt.KMeansLoss(C), dt.KMeansLoss(C, reduction="mean")
    close(mean(X), total(X) / 24)
    close(mean(X, weights=W), total(X, weights=W) / W.sum())
    repeated = torch.cat([X, X[:5]])
    close(mean(repeated), mean(X, weights=(torch.arange(24) < 5) + 1.0))


def test_a_gradient_step_of_the_layer_is_a_k_means_step():
    layer = dt.KMeansLoss(C)
    layer(X).backward()
    counts = dt.statistics(X, C).counts[:, None]
    moved = C - layer.centroids.grad / (2 * counts)
    close(moved, dt.fit(X, C, max_steps=1).centroids)


def test_training_with_a_falling_temperature_lowers_the_loss():
    layer = dt.KMeansLoss(C, temperature=torch.tensor(2.0), reduction="mean")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    before = dt.kmeans_loss(X, C)
    for step in range(60):
        layer.temperature = 2.0 * 0.9**step
        optimizer.zero_grad()
        layer(X).backward()
        optimizer.step()
    assert dt.kmeans_loss(X, layer.centroids) < 0.8 * before


def test_a_temperature_can_be_learned():
    layer = dt.KMeansLoss(C, temperature=torch.nn.Parameter(torch.tensor(0.7)))
    layer(X).backward()
    assert set(layer.state_dict()) == {"centroids", "temperature"}
    assert layer.temperature.grad != 0


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_the_quantizer_is_the_functions(method, decay):
    layer = dt.VectorQuantizer(C, method=method, decay=decay)
    nsvq = {dt.nsvq: {"noise": V}}.get(method, {})
    shape = (2, 3, 4, 3)

    def ours(x):
        noise = {name: v.reshape(shape) for name, v in nsvq.items()}
        out = layer(x.reshape(shape), weights=W.reshape(shape[:-1]), **noise)
        assert out.values.shape == shape
        assert out.labels.shape == shape[:-1]
        return out._replace(values=out.values.flatten(0, 2), labels=out.labels.ravel())

    def theirs(x):
        if method is dt.nsvq:
            return dt.nsvq(x, C, V, weights=W)
        return dt.quantize(x, C, method=method, weights=W)

    exact(with_gradients(ours, X), with_gradients(theirs, X))


def test_training_by_the_codebook_loss_lowers_it_and_leaves_the_points_alone():
    layer, points = dt.VectorQuantizer(C), X.clone().requires_grad_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = layer(points).codebook_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert points.grad is None


def test_the_values_train_an_encoder_and_the_codebook_only_under_nsvq():
    for method, moves in zip(METHODS, (False, False, True), strict=True):
        layer, points = dt.VectorQuantizer(C, method=method), X.clone().requires_grad_()
        (layer(points).values * V).sum().backward()
        assert (points.grad != 0).any()
        assert (layer.centroids.grad is not None) == moves


@pytest.mark.parametrize("weights", [None, W])
def test_moving_averages_are_those_of_update_step_by_step(weights):
    layer, optimizer = dt.VectorQuantizer(C, decay=0.8), dt.ema(0.8)
    state = dt.init(C, optimizer=optimizer)
    for step in range(4):
        batch = X.roll(step, 0)[:10] + step
        mass = None if weights is None else weights[:10]
        out = layer(batch, weights=mass)
        exact(out.values, state.centroids[dt.assign(batch, state.centroids)])
        state, _ = dt.update(batch, state, optimizer=optimizer, weights=mass)
        # An update keeps what rounding takes of the centroids, a layer does not.
        state = state._replace(remainder=None)
        exact(layer.centroids, state.centroids)
        exact(layer.counts, state.opt_state.counts)
    assert not list(layer.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, W])
def test_rows_that_are_not_finite_leave_no_trace_in_moving_averages(
    weights, dtype, value
):
    layer, other = (dt.VectorQuantizer(C, decay=0.8) for _ in range(2))
    keep = torch.arange(24) % 5 > 0
    for step in range(3):
        good = (X + step).to(dtype)
        bad = torch.where(keep[:, None] | (torch.arange(3) != 1), good, value)
        kept = weights if weights is None else weights[keep]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not layer(bad, weights=weights).commitment_loss.isfinite()
            other(good[keep], weights=kept)
    assert layer.centroids.isfinite().all()
    close(dict(layer.state_dict()), dict(other.state_dict()), rtol=1e-6, atol=1e-6)


def test_a_batch_without_a_finite_row_changes_no_moving_average():
    layer = dt.VectorQuantizer(C, decay=0.8)
    layer(X)
    before = deepcopy(layer.state_dict())
    assert layer(torch.full_like(X, torch.nan)).codebook_loss.isnan()
    layer(X, weights=torch.full_like(W, torch.inf))
    exact(dict(layer.state_dict()), before)


def test_rows_of_weight_zero_leave_no_trace_whatever_they_hold():
    layer, other = (dt.VectorQuantizer(C, decay=0.8) for _ in range(2))
    w = (torch.arange(24) % 5 > 0).float()
    for value in (torch.nan, torch.inf, 1e20, 3e38):
        layer(torch.where(w[:, None] > 0, X, value), weights=w)
        other(X[w > 0])
    close(dict(layer.state_dict()), dict(other.state_dict()), rtol=1e-6, atol=1e-6)


def test_a_sum_that_overflows_does_not_enter_moving_averages():
    layer = dt.VectorQuantizer(torch.tensor([[0.0], [1e38]]), decay=0.5)
    layer(torch.tensor([[1.0], [3e38], [3e38], [3e38]]))
    assert layer.centroids.isfinite().all()
    exact(layer.centroids[1], torch.tensor([1e38]))
    exact(layer.counts[1], torch.tensor(0.0))


def test_moving_averages_rest_in_eval_mode():
    layer = dt.VectorQuantizer(C, decay=0.8).eval()
    layer(X)
    exact(layer.centroids, C)
    exact(layer.counts, torch.zeros(4))


def test_two_calls_before_one_backward_pass_keep_their_gradients():
    layer = dt.VectorQuantizer(C, method=dt.rotation_trick, decay=0.5)
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(deepcopy(layer)(x).values.sum(), x)
    first = layer(x).values
    layer(x)
    exact(torch.autograd.grad(first.sum(), x)[0], expected)


def test_nsvq_draws_noise_in_training_only():
    layer = dt.VectorQuantizer(C, method=dt.nsvq)
    torch.manual_seed(0)
    drawn = layer(X).values
    torch.manual_seed(0)
    exact(drawn, layer(X, noise=torch.randn(24, 3)).values)
    assert not torch.equal(drawn, layer(X).values)
    out = layer.eval()(X)
    exact(out.values, C[out.labels])
    exact(layer(X, noise=V).values, layer.train()(X, noise=V).values)


@pytest.mark.parametrize("build", [dt.KMeansLoss, dt.VectorQuantizer])
def test_the_centroids_given_are_copied(build):
    mine = C.clone().requires_grad_()
    layer = build(mine)
    with torch.no_grad():
        layer.centroids.zero_()
    exact(mine.detach(), C)


def trained(build):
    layer = build(C)
    with torch.no_grad():
        layer(X)
        layer.centroids.add_(0.1)
    return layer


LAYERS = [
    dt.KMeansLoss,
    dt.VectorQuantizer,
    partial(dt.VectorQuantizer, method=dt.nsvq, decay=0.9),
]


@pytest.mark.parametrize("build", LAYERS)
def test_state_dict_deepcopy_and_pickle_keep_everything(build):
    layer, file = trained(build), BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = build(torch.zeros(4, 3))
    loaded.load_state_dict(layer.state_dict())
    for other in (loaded, deepcopy(layer), torch.load(file, weights_only=False)):
        exact(dict(other.state_dict()), dict(layer.state_dict()))
        outputs = [torch.utils._pytree.tree_leaves(f.eval()(X)) for f in (layer, other)]
        exact(*outputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("build", LAYERS)
def test_layers_move_to_another_dtype(build, dtype):
    layer = trained(build).to(dtype)
    assert {t.dtype for t in layer.state_dict().values()} == {dtype}
    leaves = torch.utils._pytree.tree_leaves(layer(X.to(dtype)))
    wide = torch.promote_types(dtype, torch.float32)
    assert leaves[-1].dtype == wide
    assert all(leaf.isfinite().all() for leaf in leaves)


def test_repr_says_what_a_layer_is():
    loss = dt.KMeansLoss(C, temperature=0.5, distance=dt.manhattan)
    options = "temperature=0.5, distance=manhattan, reduction='sum'"
    assert repr(loss) == f"KMeansLoss(k=4, d=3, {options})"
    layer = dt.VectorQuantizer(C, method=dt.nsvq, decay=0.9)
    assert repr(layer) == "VectorQuantizer(k=4, d=3, method=nsvq, decay=0.9)"


LOSS, QUANTIZER = dt.KMeansLoss, dt.VectorQuantizer
NSVQ = partial(QUANTIZER, method=dt.nsvq)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "centroids must be floating", lambda: LOSS(C.cdouble())),
        (ValueError, r"centroids must be \[k, d\]", lambda: LOSS(C[0])),
        (ValueError, "centroids must have at least one row", lambda: LOSS(C[:0])),
        (ValueError, "positive, got -1", lambda: LOSS(C, temperature=-1)),
        (ValueError, "temperature must be a scalar", lambda: LOSS(C, temperature=W)),
        (TypeError, "distance must be a function", lambda: LOSS(C, distance="l1")),
        (ValueError, "got 'none'", lambda: LOSS(C, reduction="none")),
        (TypeError, "points must be floating", lambda: LOSS(C)(X.cdouble())),
        (ValueError, r"d = 3 .* got shape \(24, 2\)", lambda: LOSS(C)(X[:, :2])),
        (ValueError, "points must have at least one row", lambda: LOSS(C)(X[:0])),
        (TypeError, "weights must be", lambda: LOSS(C)(X, weights=W.cdouble())),
        (ValueError, "weights must be", lambda: LOSS(C)(X, weights=W[:3])),
        (TypeError, "centroids must be floating", lambda: QUANTIZER(C.cdouble())),
        (ValueError, r"centroids must be \[k, d\]", lambda: QUANTIZER(C[0])),
        (ValueError, "centroids must have at least one row", lambda: QUANTIZER(C[:0])),
        (TypeError, "method must be a function", lambda: QUANTIZER(C, method="ste")),
        (ValueError, "decay must be .* got 1", lambda: QUANTIZER(C, decay=1.0)),
        (TypeError, "points must be floating", lambda: QUANTIZER(C)(X.cdouble())),
        (ValueError, "points must be", lambda: QUANTIZER(C)(X[:, 0])),
        (ValueError, "points must have at least one row", lambda: QUANTIZER(C)(X[:0])),
        (TypeError, "weights must be", lambda: QUANTIZER(C)(X, weights=W.cdouble())),
        (ValueError, "weights must be", lambda: QUANTIZER(C)(X, weights=W[:3])),
        (TypeError, "noise must be", lambda: NSVQ(C)(X, noise=V.int())),
        (ValueError, "noise must be", lambda: NSVQ(C)(X, noise=V[0])),
        (ValueError, "noise .* rotation_trick",
         lambda: QUANTIZER(C, method=dt.rotation_trick)(X, noise=V)),
        (ValueError, "method must keep the shape",
         lambda: QUANTIZER(C, method=lambda x, q: q[:1])(X)),
    ],
)  # fmt: skip
def test_errors_name_the_argument_and_its_value(error, message, call):
    with pytest.raises(error, match=message):
        call()


with_distance = pytest.mark.skipif(
    "distance" not in inspect.signature(dt.quantize).parameters,
    reason="quantize takes no distance",
)


@with_distance
def test_a_cosine_codebook_keeps_unit_rows_and_averages_directions():
    layer = dt.VectorQuantizer(3 * C, decay=0.75, distance=dt.cosine)
    unit = torch.nn.functional.normalize
    code = unit(C)
    close(layer.centroids, code)
    out = layer(X, weights=W)
    close(out.labels, (unit(X) @ code.T).argmax(1))
    close(out.values, code[out.labels])
    # Moving averages of counts and sums, from N = n and N c on.
    one_hot = W[:, None] * torch.nn.functional.one_hot(out.labels, 4)
    n, sums = one_hot.sum(0)[:, None], one_hot.T @ unit(X)
    close(layer.centroids, unit(0.75 * n * code + 0.25 * sums))
    close(layer.counts, n[:, 0])
    assert layer(X, weights=W).codebook_loss < out.codebook_loss
    close(layer.centroids.norm(dim=1), torch.ones(4))


@with_distance
@pytest.mark.parametrize("method", METHODS)
def test_a_quantizer_by_a_distance_is_the_functions(method):
    distance = dt.mahalanobis(V[:3] @ V[:3].T)
    layer = dt.VectorQuantizer(C, method=method, distance=distance).eval()
    nearest = method if method is not dt.nsvq else dt.straight_through_vector
    options = {"method": nearest, "distance": distance, "weights": W}
    exact(tuple(layer(X, weights=W)), tuple(dt.quantize(X, C, **options)))
    assert "distance=Mahalanobis" in repr(layer)


def test_a_codebook_of_moving_averages_needs_a_distance_with_means():
    with pytest.raises(ValueError, match="distance must be one that has means"):
        dt.VectorQuantizer(C, decay=0.9, distance=dt.manhattan)
    with pytest.raises(TypeError, match="distance must be a function"):
        dt.VectorQuantizer(C, distance="cosine")


def test_a_loss_by_a_distance_with_means_has_its_gradient():
    x, c = X.exp(), C.exp()
    layer = dt.KMeansLoss(c, distance=dt.kl_divergence)
    layer(x, weights=W).backward()
    stats = dt.statistics(x, c, weights=W, distance=dt.kl_divergence)
    close(layer.centroids.grad, -stats.shifts / c)
