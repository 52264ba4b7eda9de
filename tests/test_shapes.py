"""What a user's distance returns, points without coordinates, empty batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

X, C = np.arange(8.0).reshape(4, 2), np.array([[0.0, 1.0], [5.0, 6.0]])
WRONG = {
    "no axis": (lambda a, b: ((a - b) ** 2).sum(), r"\(4, 2\) .* got shape \(\)"),
    "an axis kept": (lambda a, b: ((a - b) ** 2).sum(-1)[..., None], r"\(4, 2, 1\)"),
    # Here k = d, so that the shape is the right one.
    "another axis": (lambda a, b: ((a - b) ** 2).sum(1), "over the last axis only"),
    "the first axis": (lambda a, b: ((a - b) ** 2).sum(0), r"got shape \(2, 2\)"),
    "not reduced": (lambda a, b: (a - b) ** 2, r"got shape \(4, 2, 2\)"),
}


def calls(package, distance):
    """Every public function that takes a distance, called with it."""
    p, make = package, jnp.asarray if package is dk else torch.as_tensor
    optimizer = optax.sgd(0.01) if package is dk else dt.sgd(0.01)
    x, c, options = make(X), make(C), {"distance": distance}
    fits, soft = {**options, "optimizer": optimizer}, {**options, "temperature": 1.0}
    state = p.init(c, optimizer=optimizer)
    found = {
        "pairwise": lambda: p.pairwise(x, c, **options),
        "assign": lambda: p.assign(x, c, **options),
        "kmeans_loss": lambda: p.kmeans_loss(x, c, **options),
        "soft_kmeans_loss": lambda: p.soft_kmeans_loss(x, c, **soft),
        "assigned_loss": lambda: p.assigned_loss(x, c, p.softmax, **options),
        "fit": lambda: p.fit(x, c, **fits),
        "update": lambda: p.update(x, state, **fits),
    }
    if package is dt:
        found["KMeansLoss"] = lambda: dt.KMeansLoss(c, **options)(x)
    else:
        found["fit_minibatch"] = lambda: dk.fit_minibatch(
            jax.random.key(0), x, c, num_steps=2, **fits
        )
        found["fit_restarts"] = lambda: dk.fit_restarts(
            jax.random.key(0), x, 2, num_restarts=2, **fits
        )
        found["traced"] = lambda: jax.eval_shape(found["kmeans_loss"])
    return found


@pytest.mark.parametrize("package", [dk, dt])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_distance_of_another_shape_is_refused_by_name(package, wrong):
    distance, message = WRONG[wrong]
    of = calls(package, distance)
    for name in ("pairwise", "assigned_loss"):
        with pytest.raises(ValueError, match=f"distance must return .*{message}"):
            of[name]()
    for call in of.values():
        with pytest.raises(ValueError, match="distance must return shape"):
            call()


@pytest.mark.parametrize("package", [dk, dt])
def test_a_distance_that_returns_no_real_array_is_refused_by_name(package):
    def pair(a, b):
        return a, b

    join = jax.lax.complex if package is dk else torch.complex

    def imaginary(a, b):
        return join(*[((a - b) ** 2).sum(-1)] * 2)

    for distance, message in ((pair, "array .*, got tuple"), (imaginary, "real array")):
        for call in calls(package, distance).values():
            with pytest.raises(TypeError, match=f"distance must return an? {message}"):
                call()


@pytest.mark.parametrize("package", [dk, dt])
def test_a_distance_of_whole_numbers_becomes_floating(package):
    def hamming(a, b):
        return (a != b).sum(-1)

    make = jnp.asarray if package is dk else torch.as_tensor
    x, c = make(np.float32(X)), make(np.float32(C))
    found = package.pairwise(x, c, distance=hamming)
    assert str(found.dtype).endswith("float32")
    assert found.tolist() == [[0, 2], [2, 2], [2, 2], [2, 2]]
    assert package.assign(x, c, distance=hamming).tolist() == [0, 0, 0, 0]
    assert float(package.kmeans_loss(x, c, distance=hamming)) == 6


@pytest.mark.parametrize("package", [dk, dt])
def test_a_distance_of_half_precision_becomes_float32(package):
    def l1(a, b):
        return abs(a - b).sum(-1)

    make = jnp.asarray if package is dk else torch.as_tensor
    x, c = make(np.float16(X)), make(np.float16(C))
    assert str(package.pairwise(x, c, distance=l1).dtype).endswith("float32")


@pytest.mark.parametrize("package", [dk, dt])
def test_points_without_coordinates_cost_nothing(package):
    p, make = package, jnp.asarray if package is dk else torch.as_tensor
    x, c, w = make(np.zeros((5, 0))), make(np.zeros((2, 0))), make(np.ones(5))
    names = ["squared_euclidean", "euclidean", "manhattan", "kl_divergence"]
    for distance in (getattr(p, name) for name in names):
        assert distance(x, x).tolist() == [0] * 5
        assert p.kmeans_loss(x, c, distance=distance, weights=w) == 0
    assert p.assign(x, c).tolist() == [0] * 5
    assert p.assigned_loss(x, c, p.softmax, weights=w) == 0
    assert p.statistics(x, c, weights=w).counts.tolist() == [5, 0]
    # Five points at two centroids of distance 0: -T log 2 for each.
    soft = p.statistics(x, c, temperature=2.0)
    np.testing.assert_allclose(soft.loss, -10 * np.log(2), rtol=1e-15)
    assert soft.counts.tolist() == [2.5, 2.5]
    for temperature in (None, 1.0):
        found = p.fit(x, c, temperature=temperature)
        assert int(found.status) & dk.Status.CONVERGED
        assert found.num_steps == 1
    if package is dk:
        gradient = jax.grad(lambda x: dk.fit(x, c, temperature=1.0).loss)(x)
    else:
        x.requires_grad_()
        gradient = torch.autograd.grad(dt.fit(x, c, temperature=1.0).loss, x)[0]
        x = x.detach()
    assert gradient.shape == (5, 0)
    _, stats = p.update(x, p.init(c))
    assert stats.counts.tolist() == [5, 0]
    with pytest.raises(ValueError, match=r"points must be .* d at least 1"):
        p.quantize(x, c)


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_a_certificate_of_points_without_coordinates_licenses_nothing(temperature):
    x, c = jnp.zeros((5, 0)), jnp.zeros((2, 0))
    found = dk.certificate(x, c, temperature=temperature)
    assert not found.valid
    assert found.num_undecided == 5
    assert found.critical_temperature == found.residual == 0


@pytest.mark.parametrize("layer", [dt.KMeansLoss, dt.VectorQuantizer])
@pytest.mark.parametrize("shape", [(0, 2), (4, 0, 2), (0, 4, 2)])
def test_a_layer_refuses_an_empty_batch_by_its_own_shape(layer, shape):
    module = layer(torch.as_tensor(C))
    message = rf"points must have at least one row, got shape \({str(shape)[1:-1]}\)"
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(shape), weights=torch.zeros(shape[:-1]))


def test_a_layer_takes_points_without_coordinates():
    assert dt.KMeansLoss(torch.zeros(2, 0))(torch.zeros(3, 4, 0)) == 0
    for shape in ((0, 0), (3, 0, 0)):
        with pytest.raises(ValueError, match="points must have at least one row"):
            dt.KMeansLoss(torch.zeros(2, 0))(torch.zeros(shape))
