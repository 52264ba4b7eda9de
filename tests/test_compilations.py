"""Eager calls compile once: never again for the same shapes and the same functions."""

import inspect
import pkgutil
import tempfile
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from matplotlib.figure import Figure

import diffkm_jax as dk
from diffkm_jax import estimators as es
from diffkm_jax import plotting
from diffkm_jax.cluster import KMeans
from diffkm_torch import _calls, _parity
from diffkm_torch.bridge import jax_to_torch

DATA = {name: jnp.asarray(array) for name, array in _calls.arrays().items()}
X, C, W, LOGITS = (DATA[name] for name in ("points", "centroids", "weights", "logits"))
KEY = jax.random.key(0)
MESH = jax.make_mesh((2,), ("data",))
STATE = dk.init(C)
COUNTED = dk.init(C, optimizer=dk.macqueen())
MOMENTUM = optax.sgd(0.01, momentum=0.9)
SCHEDULE = optax.exponential_decay(1.0, 3, 0.5, end_value=0.3)
NUMBERS = iter(np.linspace(0.3, 0.9, 1000))
COMPILED = "/jax/core/compile/backend_compile_duration"


COUNTERS = []


def _note(event, duration, **more):
    for found in COUNTERS:
        found.extend([more] if event == COMPILED else [])


# Once, because until jax 0.9 a listener cannot be taken away.
jax.monitoring.register_event_duration_secs_listener(_note)


@contextmanager
def compilations():
    """The list of what is compiled meanwhile."""
    found = []
    COUNTERS.append(found)
    try:
        yield found
    finally:
        COUNTERS.pop()


def number():
    """Another one at every call."""
    return float(next(NUMBERS))


def smaller():
    """A batch, and another of fewer rows, of other ones at every call."""
    rows = np.asarray(X)  # A slice of an array of JAX is a program.
    return [rows, rows[: 1 + int(1000 * number()) % (len(rows) - 1)]]


def saved(value):
    """A value, from a file."""
    with tempfile.TemporaryDirectory() as folder:
        dk.save(f"{folder}/value", value)
        return dk.load(f"{folder}/value")


def cost(rows):
    return jnp.sum(rows**2 * DATA["target"][..., : rows.shape[-1]], (-2, -1))


def fourth(row):
    return jnp.sum(row**4)


def panels(number):
    """Axes of a new figure, which nothing keeps."""
    return Figure().subplots(1, number)


def mirrored(name):
    """A call of a function that torch has too, in its first variant."""
    variant = next(_calls.variants(name))
    arrays = _calls.arguments(name, variant, DATA)
    arrays = {key: jnp.asarray(array) for key, array in arrays.items()}
    return lambda: _calls.call(dk, name, variant)(**arrays)


# What has no twin in torch, or a loop, or another program under other options.
CALLS = {
    **{name: mirrored(name) for name in _parity.mirrored()},
    "finite_scalar_values": lambda: dk.finite_scalar_values(
        jnp.arange(4), levels=(3, 4)
    ),
    "lookup_free_values": lambda: dk.lookup_free_values(jnp.arange(4), d=4),
    "certificate": lambda: dk.certificate(X, C),
    "certificate, soft": lambda: dk.certificate(X, C, temperature=number()),
    "evaluate": lambda: dk.evaluate(KEY, cost, LOGITS, es.reinmax(tau=number())),
    "evaluate, sampled": lambda: dk.evaluate(
        KEY, cost, LOGITS, [es.gumbel_softmax(tau=number()), es.rloo()], num_samples=9
    ),
    "fit_bounded, hard": lambda: dk.fit_bounded(X, C, min_size=2, tol=number()),
    "fit_bounded, soft": lambda: dk.fit_bounded(
        X, C, min_size=7 * number(), temperature=number()
    ),
    "fit_minibatch": lambda: dk.fit_minibatch(
        KEY, X, number() * C, num_steps=3, batch_size=4
    ),
    "fit_restarts": lambda: dk.fit_restarts(KEY, X, 3, num_restarts=2, tol=number()),
    "fit_sharded": lambda: dk.fit_sharded(
        X[:5], C, mesh=MESH, weights=number() * W[:5]
    ),
    "fit_specs": dk.fit_specs,
    "fit_stream": lambda: dk.fit_stream(smaller(), number() * C),
    "fit_stream, passes": lambda: dk.fit_stream(smaller(), number() * C, passes=3),
    "is_discrete": lambda: dk.is_discrete(KEY, cost, LOGITS, es.reinmax(tau=number())),
    "kmeans_parallel": lambda: dk.kmeans_parallel(KEY, X, 3, weights=number() * W),
    "kmeans_plus_plus": lambda: dk.kmeans_plus_plus(KEY, X, 3, weights=number() * W),
    "load": lambda: saved(dk.update(X, STATE)[0]),
    "plot_choices": lambda: plotting.plot_choices([2, 3], X[0, :2], ax=panels(1)),
    "plot_clusters": lambda: plotting.plot_clusters(
        X, dk.fit(X, C, max_steps=0), ax=panels(1)
    ),
    "plot_losses": lambda: plotting.plot_losses(
        dk.fit(X, C, max_steps=0), ax=panels(2)
    ),
    "plot_memberships": lambda: plotting.plot_memberships(
        dk.pairwise(X, C), [number(), 2.0], ax=panels(2)
    ),
    "plot_reports": lambda: plotting.plot_reports(
        dk.evaluate(KEY, cost, LOGITS, es.reinmax(), grid={"tau": [number(), 2.0]}),
        ax=panels(3),
    ),
    "quantize, drawn": lambda: dk.quantize(
        X, C, temperature=number(), noise=DATA["choices"]
    ),
    "quantize, more axes": lambda: dk.quantize(X[None], C, weights=number() * W[None]),
    "reassign": lambda: dk.reassign(X, COUNTED, jnp.arange(4), ratio=number()),
    "reassign, a count": lambda: dk.reassign(
        X, COUNTED, jnp.arange(4), min_count=number()
    ),
    "update, a count": lambda: dk.update(
        X, COUNTED, optimizer=dk.macqueen(), min_count=number(), index=jnp.arange(4)
    ),
    "save": lambda: saved(dk.fit(X, C, tol=number())),
    "random_points": lambda: dk.random_points(KEY, X, 3),
    "fit, no step": lambda: dk.fit(X, C, max_steps=0),
    "fit, a schedule": lambda: dk.fit(X, C, temperature=SCHEDULE, max_steps=9),
    "fit, a gradient optimizer": lambda: dk.fit(
        X, number() * C, optimizer=MOMENTUM, temperature=number(), max_steps=3
    ),
    "fit, another precision": lambda: dk.fit(
        X, C, distance=dk.mahalanobis(number() * jnp.eye(X.shape[1]))
    ),
    "bregman": lambda: dk.kmeans_loss(X, C, distance=dk.bregman(fourth)),
    "fit, from a state": lambda: dk.fit(X, dk.update(X, STATE)[0], tol=number()),
    "update, a schedule": lambda: dk.update(X, STATE, temperature=SCHEDULE),
    "the update of an optimizer": lambda: dk.ema(0.9).update(
        C, dk.ema(0.9).init(C), C, counts=W[:5]
    ),
    "soft_kmeans_loss": lambda: dk.soft_kmeans_loss(X, C, temperature=number()),
    "assigned_loss": lambda: dk.assigned_loss(
        X, C, partial(dk.sinkhorn, num_iters=3), temperature=number()
    ),
    "sinkhorn": lambda: dk.sinkhorn(LOGITS, tau=number()),
    "estimators.exact": lambda: es.exact().expect(cost, LOGITS),
    "evaluate, a reference": lambda: dk.evaluate(
        KEY, cost, LOGITS, es.reinmax(), num_samples=5, reference=es.rebar(tau=number())
    ),
    "evaluate, a grid": lambda: dk.evaluate(
        KEY,
        cost,
        LOGITS,
        [es.reinmax(), es.gumbel_softmax()],
        grid={"tau": [number(), 2.0]},
        num_samples=9,
    ),
    "tune": lambda: dk.tune(KEY, cost, LOGITS, es.rebar(tau=number()), num_steps=2),
    "draw": lambda: es.rloo().draw(KEY, LOGITS.shape),
}
GRADIENTS = {
    "sinkhorn": lambda: jax.grad(lambda z: dk.sinkhorn(z, tau=number())[0, 0, 0])(
        LOGITS
    ),
    "exact": lambda: jax.grad(lambda z: es.exact().expect(cost, z).sum())(LOGITS),
    "vmap": lambda: jax.vmap(dk.sinkhorn)(LOGITS),
}


LOOPS = [
    "certificate",
    "estimators.exact",
    "evaluate, sampled",
    "fit, a schedule",
    "is_discrete",
    "kmeans_loss",
    "sinkhorn",
]


def check(call):
    """Compiles in its first calls only."""
    jax.block_until_ready(call())
    jax.block_until_ready(call())
    with compilations() as found:
        jax.block_until_ready(call())
    assert found == []


@pytest.mark.parametrize(
    "name",
    [n if n in LOOPS else pytest.param(n, marks=pytest.mark.slow) for n in CALLS],
)
def test_repeated_eager_calls_compile_nothing(name):
    check(CALLS[name])


@pytest.mark.parametrize("name", GRADIENTS)
def test_repeated_eager_gradients_compile_nothing(name):
    check(GRADIENTS[name])


def test_every_public_function_is_called_here():
    public = {""}
    for module in pkgutil.walk_packages(dk.__path__, "diffkm_jax."):
        names = module.name.split(".")[1:]
        if any(name.startswith("_") for name in names):
            continue
        found = import_module(module.name)
        space = "estimators." if names[0] == "estimators" else ""
        for name in getattr(found, "__all__", []):
            if inspect.isfunction(inspect.unwrap(getattr(found, name))):
                public.add(space + name)
    assert public - CALLS.keys() == {""}


def test_a_bridged_function_compiles_once():
    bridged = jax_to_torch(lambda x, c, t: dk.soft_kmeans_loss(x, c, temperature=t))
    x, c = (torch.tensor(np.array(a), requires_grad=True) for a in (X, C))
    for _ in range(2):
        bridged(x, c, number()).backward()
    with compilations() as found:
        bridged(x, c, number()).backward()
    assert found == []


class Model:
    """A cost whose arrays change between calls."""

    def __init__(self):
        self.scale = jnp.ones(())

    def cost(self, rows):
        return self.scale * cost(rows)


def test_an_expectation_sees_what_its_cost_closes_over_now():
    model, other = Model(), Model()
    other.scale = jnp.asarray(3.0)
    first = es.exact().expect(model.cost, LOGITS)
    model.scale = 2.0 * jnp.ones(())
    with compilations() as found:
        second = es.exact().expect(model.cost, LOGITS)
    assert found == []
    np.testing.assert_allclose(second, 2 * first, rtol=1e-12)
    third = es.exact().expect(other.cost, LOGITS)
    np.testing.assert_allclose(third, 3 * first, rtol=1e-12)


def test_numbers_and_jitted_parts_of_a_cost_are_those_of_now():
    factor, part = 1.0, jax.jit(lambda rows: cost(rows))

    def own(rows):
        return factor * part(rows)

    first = es.exact().expect(own, LOGITS)
    factor = 2.0
    second = es.exact().expect(own, LOGITS)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-12)
    three = jnp.asarray(3.0)
    part = jax.jit(lambda rows: three * cost(rows))
    third = es.exact().expect(own, LOGITS)
    np.testing.assert_allclose(third, 6 * first, rtol=1e-12)


def test_gradients_in_what_a_cost_closes_over_are_those_of_every_call():
    model = Model()

    def value(scale):
        model.scale = scale
        return es.exact().expect(model.cost, LOGITS).sum()

    slopes = [jax.grad(value)(jnp.asarray(s)) for s in (1.0, 2.0)]
    np.testing.assert_allclose(slopes, value(jnp.ones(())), rtol=1e-12)


def test_a_second_estimator_of_the_same_shape_compiles_nothing():
    def use(seed):
        x = np.random.default_rng(seed).normal(size=(97, 2))
        model = KMeans(3, random_state=seed, temperature=number()).fit(x)
        model.predict(x)
        model.transform(x)
        model.predict_proba(x)
        model.score(x)
        KMeans(3, random_state=seed).partial_fit(x).partial_fit(x)

    use(0)
    with compilations() as found:
        use(1)
    assert found == []
