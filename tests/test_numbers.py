"""Numbers are checked as they are used: in the dtype that is computed in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diffkm_jax as dk
import diffkm_torch as dt

X = np.asarray([[0.0, 0.0], [1.0, 0.5], [9.0, 2.0], [10.0, 3.0]])
C = X[[0, 3]]
LOGITS = np.asarray([[1.0, 0.0, 0.0], [0.0, 2.0, 1.5]])
NOISE = np.random.default_rng(0).gumbel(size=(3, 2, 3))
MAPS = {
    "softmax": ("tau", ()),
    "sparsemax": ("tau", ()),
    "entmax15": ("tau", ()),
    "entmax": ("tau", ()),
    "sinkhorn": ("tau", ()),
    "straight_through": ("tau", ()),
    "sampled_straight_through": ("tau", (NOISE[0],)),
    "gumbel_softmax": ("tau", (NOISE[0],)),
    "gumbel_rao": ("tau", (NOISE,)),
    "gapped_straight_through": ("tau", (NOISE[0],)),
    "decoupled_gumbel_softmax": ("tau_backward", (NOISE[0],)),
    "reinmax": ("tau", (NOISE[0],)),
    "blackbox": ("strength", ()),
    "implicit_mle": ("strength", (NOISE[0],)),
    "perturbed_argmax": ("scale", (NOISE,)),
}
RECORDS = {
    "straight_through": ("tau",),
    "sampled_straight_through": ("tau",),
    "gumbel_softmax": ("tau",),
    "gumbel_rao": ("tau",),
    "gapped_straight_through": ("tau",),
    "decoupled_gumbel_softmax": ("tau", "tau_backward"),
    "reinmax": ("tau",),
    "implicit_mle": ("strength",),
    "blackbox": ("strength",),
    "rebar": ("tau",),
}
BOTH = pytest.mark.parametrize(
    ("package", "array"),
    [(dk, jnp.asarray), (dt, torch.as_tensor)],
    ids=["jax", "torch"],
)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def refused(name, dtype):
    """The message of a number that the dtype cannot hold as a normal one."""
    least, most = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    span = f"{np.dtype(dtype)}, from {least} to {most}".replace("+", r"\+")
    return pytest.raises(ValueError, match=f"^{name} must be .* in {span}, got ")


def beyond(dtype):
    """A subnormal number of the dtype, and one above it or beyond all."""
    return float(np.finfo(dtype).tiny) / 2, {np.float32: 1e39}.get(dtype, 10**400)


@BOTH
@DTYPES
@pytest.mark.parametrize("name", MAPS)
def test_maps_take_what_is_a_normal_number(package, array, dtype, name):
    parameter, noise = MAPS[name]
    args = [array(a.astype(dtype)) for a in (LOGITS, *noise)]
    for number in beyond(dtype):
        with refused(parameter, dtype):
            getattr(package, name)(*args, **{parameter: number})
    rows = getattr(package, name)(*args, **{parameter: float(np.finfo(dtype).tiny)})
    assert np.isfinite(np.asarray(rows)).all()


@BOTH
@pytest.mark.parametrize("name", RECORDS)
def test_records_take_what_float32_can_hold(package, array, name):
    for parameter in RECORDS[name]:
        for number in beyond(np.float32):
            with refused(parameter, np.float32):
                getattr(package.estimators, name)(**{parameter: number})


@BOTH
@DTYPES
def test_temperatures_are_normal_numbers(package, array, dtype):
    x, c = array(X.astype(dtype)), array(C.astype(dtype))
    loss, assigned = package.soft_kmeans_loss, package.assigned_loss
    state = package.init(c)
    for number in beyond(dtype):
        for call in (
            lambda t: loss(x, c, temperature=t),
            lambda t: assigned(x, c, package.softmax, temperature=t),
            lambda t: package.statistics(x, c, temperature=t),
            lambda t: package.fit(x, c, temperature=t),
            lambda t: package.fit(x, c, temperature=lambda step: t),
            lambda t: package.update(x, state, temperature=t),
            lambda t: package.update(x, state, temperature=lambda step: t),
        ):
            with refused("temperature", dtype):
                call(number)


@BOTH
@DTYPES
def test_at_the_smallest_temperature_the_loss_and_its_gradients_are_the_hard_ones(
    package, array, dtype
):
    x, c, t = X.astype(dtype), C.astype(dtype), float(np.finfo(dtype).tiny)
    # The points are 1 + 0.25 away from their centroids, and 1 + 1.
    expected = [[0.0, 0.0], [2.0, 1.0], [-2.0, -2.0], [0.0, 0.0]]
    if package is dk:
        loss, slope = jax.value_and_grad(dk.soft_kmeans_loss)(x, c, temperature=t)
    else:
        leaf = torch.tensor(x, requires_grad=True)
        loss = dt.soft_kmeans_loss(leaf, torch.tensor(c), temperature=t)
        loss.backward()
        loss, slope = loss.detach(), leaf.grad
    assert float(loss) == 3.25
    np.testing.assert_array_equal(slope, expected)
    result = package.fit(array(x), array(c), temperature=t)
    np.testing.assert_allclose(result.centroids, [[0.5, 0.25], [9.5, 2.5]])


@BOTH
def test_other_numbers(package, array):
    x, c = array(X.astype(np.float32)), array(C.astype(np.float32))
    with refused("tol", np.float32):
        package.fit(x, c, tol=1e39)
    for number in (0, 0.0, 1e-320):
        assert package.fit(x, c, tol=number).num_steps == 2
    args = [array(a.astype(np.float32)) for a in (LOGITS, NOISE[0])]
    with refused("gap", np.float32):
        package.gapped_straight_through(*args, gap=1e39)
    for number in beyond(np.float32):
        with refused("temperature", np.float32):
            dt.KMeansLoss(torch.zeros(2, 2), temperature=number)
        with refused("learning_rate", np.float32):
            dt.sgd(number)


def test_a_schedule_that_is_traced_ends_where_it_is_no_normal_number():
    x = jnp.asarray(X, jnp.float32)
    cooling = optax.exponential_decay(1.0, 1, 1e-20)
    result = dk.fit(x, x[:2], temperature=cooling, max_steps=5)
    assert dk.Status.NON_FINITE in result.flags


@BOTH
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a", "got 'a'$"),
        (1j, r"got (1j|dtype complex)"),
        (np.complex64(1), "got"),
        ({}, r"got (\{\}|dict)"),
        (
            lambda step: 1.0,
            r"got <lambda>: a schedule is for fit and update; elsewhere",
        ),
    ],
    ids=["text", "complex", "numpy", "dict", "schedule"],
)
def test_what_is_no_number(package, array, value, message):
    x, c, z = map(array, (X, C, LOGITS))
    for name, call in (
        ("temperature", lambda: package.soft_kmeans_loss(x, c, temperature=value)),
        ("tau", lambda: package.softmax(z, tau=value)),
        ("tau", lambda: package.estimators.reinmax(tau=value)),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be .*{message}"):
            call()


def test_integers_and_scalar_arrays_stay_numbers():
    expected = float(dk.soft_kmeans_loss(X, C, temperature=2.0))
    for t in (2, np.int64(2), np.float32(2), jnp.asarray(2), torch.tensor(2.0)):
        assert float(dk.soft_kmeans_loss(X, C, temperature=t)) == expected
    x, c = torch.as_tensor(X), torch.as_tensor(C)
    for t in (2, np.int64(2), np.float32(2), torch.tensor(2)):
        np.testing.assert_allclose(dt.soft_kmeans_loss(x, c, temperature=t), expected)
