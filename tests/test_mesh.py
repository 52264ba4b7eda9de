"""Inside `jax.shard_map`: a wrong axis is named, a fit per device works."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import diffkm_jax as dk

AUTO = (jax.sharding.AxisType.Auto,)
MESH = jax.make_mesh((2,), ("i",), axis_types=AUTO, devices=jax.devices()[:2])
X = np.random.default_rng(0).normal(size=(2, 12, 2))
C = X[0, :2]
KEY = jax.random.key(0)


def per_device(function, *shared):
    """What a function of (the points of a device, *shared) gives on each."""

    def call(x, *rest):
        return jax.tree.map(lambda a: a[None], function(x, *rest))

    specs = (P("i"), *(P() for _ in shared))
    run = jax.shard_map(call, mesh=MESH, in_specs=specs, out_specs=P("i"))
    return jax.jit(run)(X.reshape(-1, 2), *shared)


def varying(array):
    """The array, typed as different on every device."""
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, "i", to="varying")
    return jax.lax.pvary(array, "i")


WITH_AXIS = {
    "kmeans_loss": dk.kmeans_loss,
    "soft_kmeans_loss": partial(dk.soft_kmeans_loss, temperature=1.0),
    "statistics": dk.statistics,
    "certificate": dk.certificate,
    "fit": dk.fit,
    "update": lambda x, c, **axis: dk.update(x, dk.init(c), **axis)[0],
}


@pytest.mark.parametrize("name", WITH_AXIS)
def test_an_axis_that_is_not_bound(name):
    function = partial(WITH_AXIS[name], axis_name="j")
    with pytest.raises(
        ValueError, match=r"^axis_name must be .* among \['i'\]; got 'j'"
    ):
        per_device(function, C)
    with pytest.raises(
        ValueError, match=r"^axis_name must .*inside none: .*; got 'j'$"
    ):
        function(X[0], C)
    for axis in (0, (), ("i", 0)):
        with pytest.raises(ValueError, match=r"^axis_name must be an axis of the jax"):
            WITH_AXIS[name](X[0], C, axis_name=axis)


FORGOTTEN = {
    "hard": dk.fit,
    "soft": partial(dk.fit, temperature=1.0),
    "unrolled": partial(dk.fit, derivative="unrolled", max_steps=2),
    "state": lambda x, c: dk.fit(x, dk.init(c)),
    "farthest": lambda x, c: dk.update(x, dk.init(c), empty="farthest"),
    "update": lambda x, c: dk.update(x, dk.init(c)),
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_an_axis_that_was_forgotten(name):
    message = (
        r"^axis_name must be 'i', over which .*jax\.lax\.p(cast|vary)\(centroids, 'i'"
    )
    with pytest.raises(ValueError, match=message):
        per_device(FORGOTTEN[name], C)


def test_a_start_that_differs_over_the_axis_that_is_summed():
    with pytest.raises(ValueError, match="the same on every device of axis_name='i'"):
        per_device(lambda x, c: dk.fit(x, varying(c), axis_name="i"), C)


MOMENTUM = optax.sgd(0.1, momentum=0.9)
OPTIMIZERS = {"macqueen": dk.macqueen(), "ema": dk.ema(), "momentum": MOMENTUM}


def one_step(x, c, optimizer):
    state = dk.init(varying(c), optimizer=optimizer)
    return dk.update(x, state, optimizer=optimizer)[0]


def one_step_alone(optimizer):
    def step(x, c):
        return dk.update(x, dk.init(c, optimizer=optimizer), optimizer=optimizer)[0]

    return step


PER_DEVICE = {
    "hard": (lambda x, c: dk.fit(x, varying(c)), dk.fit, C),
    "soft": (
        lambda x, c: dk.fit(x, varying(c), temperature=0.5, block_size=5),
        partial(dk.fit, temperature=0.5),
        C,
    ),
    "unrolled": (
        lambda x, c: dk.fit(x, varying(c), derivative="unrolled", max_steps=3),
        partial(dk.fit, max_steps=3),
        C,
    ),
    "certificate": (
        partial(dk.certificate, temperature=1.0),
        partial(dk.certificate, temperature=1.0),
        C,
    ),
    "statistics": (dk.statistics, dk.statistics, C),
    "start": (
        lambda x, key: dk.kmeans_plus_plus(key, x, 3),
        lambda x, key: dk.kmeans_plus_plus(key, x, 3),
        KEY,
    ),
    "restarts": (
        lambda x, key: dk.fit_restarts(key, x, 3, num_restarts=2),
        lambda x, key: dk.fit_restarts(key, x, 3, num_restarts=2),
        KEY,
    ),
    **{
        name: (partial(one_step, optimizer=optimizer), one_step_alone(optimizer), C)
        for name, optimizer in OPTIMIZERS.items()
    },
    "sinkhorn": (lambda x, _: dk.sinkhorn(x), lambda x, _: dk.sinkhorn(x), C),
}


@pytest.mark.parametrize("name", PER_DEVICE)
def test_without_an_axis_every_device_does_its_own(name):
    function, alone, shared = PER_DEVICE[name]
    found = per_device(function, shared)
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(
                a[i], b, rtol=1e-9, atol=1e-12
            ),
            found,
            alone(jnp.asarray(X[i]), shared),
        )


def test_evaluate_on_every_device():
    def report(x, key):
        record = dk.estimators.gumbel_softmax()
        options = {"num_samples": 8, "chunk_size": 4}
        return dk.evaluate(key, lambda row: row[..., 0].sum(), x, record, **options)

    found = per_device(lambda x, key: report(x[:2], key).mean, KEY)
    np.testing.assert_allclose(found[1], report(X[1, :2], KEY).mean, rtol=1e-9)


@pytest.mark.parametrize("name", ["soft_kmeans_loss", "assigned_loss"])
def test_a_loss_on_every_device_with_the_same_weights(name):
    weights = jnp.ones(len(X[0])).at[1].set(0)
    maps = {"assignment": dk.softmax} if name == "assigned_loss" else {}

    def loss(x):
        options = {"temperature": 0.5, "weights": weights, "distance": dk.manhattan}
        return getattr(dk, name)(x, X[0, :2], **maps, **options)

    found = per_device(loss)
    np.testing.assert_allclose(found, [loss(x) for x in X], rtol=1e-12)
