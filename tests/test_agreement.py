"""JAX and torch: every mirrored function, values and gradients in every argument."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from problems import NAMES, TIED, problem
from twins import compare, pair

import diffkm_jax as dk
import diffkm_torch as dt

DTYPES = ["float64", "float32"]
DISTANCES = [
    "squared_euclidean",
    "euclidean",
    "manhattan",
    "cosine",
    "kl_divergence",
    "itakura_saito",
]
POSITIVE = {"kl_divergence", "itakura_saito"}


def unresolved_limit(name, dtype):
    """The share of rows in which rounding may exceed 1 % of the gradient."""
    if dtype == "float64":
        return 0.01
    # At an offset of 10⁴ one float32 ulp is 10⁻³ of a point's size.
    return 1.0 if name == "offset" else 0.2


@cache
def assigned(assignment):
    def on(module):
        def loss(points, centroids, temperature, **options):
            return module.assigned_loss(
                points,
                centroids,
                getattr(module, assignment),
                temperature=temperature,
                **options,
            )

        return loss

    return on(dk), on(dt)


def agree(functions, name, arrays, limit=0.0):
    unresolved = compare(*functions, perturb=name not in TIED, **arrays)
    assert unresolved <= limit
    return unresolved


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_hard_statistics_agree(name, dtype):
    limit = unresolved_limit(name, dtype)
    for block_size in (None, 8):
        functions = pair("statistics", block_size=block_size)
        agree(functions, name, problem(name, dtype), limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_soft_statistics_agree(name, dtype):
    limit = unresolved_limit(name, dtype)
    arrays = problem(name, dtype) | {"temperature": np.asarray(0.7, dtype)}
    for block_size in (None, 8):
        functions = pair("statistics", block_size=block_size)
        agree(functions, name, arrays, limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_losses_agree(name, dtype):
    limit = unresolved_limit(name, dtype)
    arrays = problem(name, dtype)
    agree(pair("kmeans_loss"), name, arrays, limit)
    soft = arrays | {"temperature": np.asarray(0.7, dtype)}
    agree(pair("soft_kmeans_loss", block_size=16), name, soft, limit)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("assignment", ["hard", "softmax", "straight_through"])
def test_assigned_losses_agree(assignment, name):
    for dtype in DTYPES:
        arrays = problem(name, dtype) | {"temperature": np.asarray(0.7, dtype)}
        agree(assigned(assignment), name, arrays, unresolved_limit(name, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_and_pairwise_agree(distance, dtype):
    arrays = problem("random", dtype)
    x, c = arrays["points"], arrays["centroids"]
    if distance in POSITIVE:
        x, c = np.exp(x), np.exp(c)
    unresolved = compare(*pair(distance), x=x[:5], y=c)
    assert unresolved <= unresolved_limit(distance, dtype)

    def matrix(module):
        function = getattr(module, distance)
        return lambda **kw: module.pairwise(**kw, distance=function)

    unresolved = compare(matrix(dk), matrix(dt), points=x, centroids=c)
    assert unresolved <= unresolved_limit(distance, dtype)


@pytest.mark.parametrize("distance", ["squared_euclidean", "euclidean", "manhattan"])
def test_distances_of_equal_vectors_agree(distance):
    x = problem("random")["points"]
    compare(*pair(distance), perturb=False, x=x, y=x.copy())


def test_cosine_of_zero_and_kl_of_zero_coordinates_agree():
    x = problem("random")["points"]
    y = np.roll(x, 1, axis=0)
    x[0] = 0
    compare(*pair("cosine"), perturb=False, x=x, y=y)
    x, y = np.exp(x), np.exp(y)
    x[3, 1] = x[4, 2] = y[4, 2] = 0
    compare(*pair("kl_divergence"), perturb=False, x=x, y=y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("distance", [*DISTANCES[1:], "mahalanobis"])
def test_losses_of_other_distances_agree(distance, temperature, dtype):
    arrays = problem("zero weights", dtype)
    if distance in POSITIVE:
        arrays["points"] = np.exp(arrays["points"])
        arrays["centroids"] = np.exp(arrays["centroids"])
    if distance == "mahalanobis":
        a = np.random.default_rng(1).normal(size=(3, 3))
        arrays["precision"] = (a @ a.T).astype(dtype)
    name = "kmeans_loss"
    if temperature is not None:
        name, arrays["temperature"] = "soft_kmeans_loss", np.asarray(temperature, dtype)

    def on(module):
        def loss(precision=None, **kw):
            function = getattr(module, distance)
            if precision is not None:
                function = function(precision)
            kw["active"] = kw["points"][:5, 0] < np.inf
            return getattr(module, name)(distance=function, block_size=8, **kw)

        return loss

    assert compare(on(dk), on(dt), **arrays) <= unresolved_limit(distance, dtype)


def penalty(gradient):
    return (gradient**2).sum()


@pytest.mark.parametrize("name", ["random", "zero weights", "inactive", "ties"])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_second_derivatives_agree(name, temperature):
    """The gradient, in every argument, of a gradient penalty in every argument."""
    arrays = problem(name)
    if temperature is not None:
        arrays["temperature"] = np.asarray(temperature)
    moving = [key for key, a in arrays.items() if a.dtype != bool]

    def ours(**kw):
        floats = {key: kw[key] for key in moving}
        rest = {key: a for key, a in kw.items() if key not in moving}
        grads = jax.grad(lambda f: dk.statistics(**f, **rest).loss)(floats)
        return sum(penalty(g) for g in grads.values())

    def theirs(**kw):
        loss = dt.statistics(**kw).loss
        inputs = [kw[key] for key in moving]
        return sum(map(penalty, torch.autograd.grad(loss, inputs, create_graph=True)))

    agree([ours, theirs], name, arrays)


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_equal(name):
    for dtype in DTYPES:
        arrays = problem(name, dtype)
        arrays.pop("weights", None)
        for distance in ("squared_euclidean", "manhattan"):
            ours = dk.assign(
                **{k: jnp.asarray(a) for k, a in arrays.items()},
                distance=getattr(dk, distance),
                block_size=8,
            )
            theirs = dt.assign(
                **{k: torch.tensor(a) for k, a in arrays.items()},
                distance=getattr(dt, distance),
            )
            np.testing.assert_array_equal(ours, theirs)


FITS = {
    "newton": (dk.newton(), dt.newton(), {}),
    "macqueen": (dk.macqueen(), dt.macqueen(), {"max_steps": 20}),
    "sgd": (optax.sgd(0.02), dt.sgd(0.02), {"max_steps": 20}),
    "soft": (dk.newton(), dt.newton(), {"temperature": 0.5, "tol": 1e-12}),
    "farthest": (dk.newton(), dt.newton(), {"empty": "farthest"}),
    "far macqueen": (dk.macqueen(), dt.macqueen(), {"empty": "farthest"}),
}


# Centroids that coincide but for rounding have no lowest index to agree on.
ROUNDED = ("far macqueen", "duplicates")


@pytest.mark.parametrize(
    ("how", "name"), [(h, n) for h in FITS for n in NAMES if (h, n) != ROUNDED]
)
def test_fits_agree(how, name):
    arrays = problem(name)
    ours, theirs, options = FITS[how]
    mine = dk.fit(
        **{k: jnp.asarray(a) for k, a in arrays.items()}, optimizer=ours, **options
    )
    other = dt.fit(
        **{k: torch.tensor(a) for k, a in arrays.items()}, optimizer=theirs, **options
    )
    assert int(mine.num_steps) == other.num_steps
    assert int(mine.status) == int(other.status)
    np.testing.assert_array_equal(mine.labels, other.labels)
    tight = {"rtol": 1e-10, "atol": 1e-10}
    for field in ("centroids", "loss", "counts", "residual", "history"):
        np.testing.assert_allclose(
            getattr(mine, field), getattr(other, field), **tight, err_msg=field
        )
    assert int(mine.state.step) == other.state.step


def test_fits_of_another_distance_agree():
    arrays = problem("random")
    options = {"max_steps": 30, "temperature": 0.5}
    mine = dk.fit(
        *map(jnp.asarray, arrays.values()),
        optimizer=optax.sgd(0.02),
        distance=dk.manhattan,
        **options,
    )
    other = dt.fit(
        *map(torch.tensor, arrays.values()),
        optimizer=dt.sgd(0.02),
        distance=dt.manhattan,
        **options,
    )
    for field in ("centroids", "loss", "counts", "residual", "history"):
        np.testing.assert_allclose(
            getattr(mine, field), getattr(other, field), rtol=1e-10, err_msg=field
        )


def test_fits_on_a_schedule_agree():
    arrays = problem("random").values()
    ours = dk.fit(
        *map(jnp.asarray, arrays),
        temperature=lambda t: 0.5 + 1 / (1 + t.astype(jnp.float64)),
        max_steps=12,
    )
    theirs = dt.fit(
        *map(torch.tensor, arrays),
        temperature=lambda t: 0.5 + 1 / (1 + t),
        max_steps=12,
    )
    np.testing.assert_allclose(ours.centroids, theirs.centroids, rtol=1e-10)
    np.testing.assert_allclose(ours.history, theirs.history, rtol=1e-10)
    assert float(ours.temperature) == pytest.approx(theirs.temperature)
    assert int(ours.status) == int(theirs.status)


def test_fits_with_a_policy_of_the_user_agree():
    arrays = problem("empty cluster").values()

    def policy(where):
        def to_costliest(centroids, counts, rows, costs):
            return where(counts[:, None] == 0, rows, centroids)

        return to_costliest

    ours = dk.fit(*map(jnp.asarray, arrays), empty=policy(jnp.where))
    theirs = dt.fit(*map(torch.tensor, arrays), empty=policy(torch.where))
    np.testing.assert_allclose(ours.centroids, theirs.centroids, rtol=1e-10)
    np.testing.assert_allclose(ours.history, theirs.history, rtol=1e-10)
    assert int(ours.status) == int(theirs.status) == dk.Status.CONVERGED


def test_the_loss_and_counts_of_a_fit_have_the_same_gradients():
    arrays = problem("weights")

    def on(module):
        def outcome(points, centroids, weights, temperature):
            result = module.fit(
                points, centroids, weights=weights, temperature=temperature
            )
            return result.loss, result.counts

        return outcome

    arrays["temperature"] = np.asarray(0.5)
    assert compare(on(dk), on(dt), **arrays) == 0


def test_updates_agree():
    arrays = problem("zero weights")

    def on(module):
        def outcome(points, centroids, weights):
            state = module.init(centroids, optimizer=module.macqueen())
            for _ in range(2):
                state, stats = module.update(
                    points, state, optimizer=module.macqueen(), weights=weights
                )
            return state.centroids, state.opt_state.counts, *stats

        return outcome

    assert compare(on(dk), on(dt), **arrays) < 0.1


@pytest.mark.parametrize("distance", ["squared_euclidean", "manhattan"])
def test_the_gradient_in_the_temperature_with_inactive_clusters(distance):
    arrays = problem("inactive") | {"temperature": np.asarray(0.7)}

    def on(module):
        f = getattr(module, distance)
        return lambda **kw: module.soft_kmeans_loss(distance=f, **kw)

    assert compare(on(dk), on(dt), **arrays) == 0


@pytest.mark.parametrize("name", ["softmax", "straight_through"])
def test_a_logit_of_minus_infinity_harms_no_gradient_in_tau(name):
    def on(module):
        function = getattr(module, name)

        def loss(points, centroids, active, tau):
            return module.assigned_loss(
                points, centroids, partial(function, tau=tau), active=active
            )

        return loss

    arrays = problem("inactive") | {"tau": np.asarray(0.7)}
    assert compare(on(dk), on(dt), **arrays) == 0
    gradient = jax.grad(lambda t: on(dk)(**(arrays | {"tau": t})))(0.7)
    assert jnp.isfinite(gradient)


def test_cosine_agrees_and_is_right_at_every_scale():
    for scale in (1e-25, 1.0, 1e20):
        x = np.array([[scale, 0], [scale, scale]], np.float32)
        y = np.array([[1, 0], [0, 1]], np.float32)
        ours = dk.cosine(x, y)
        np.testing.assert_allclose(ours, [0, 1 - np.sqrt(0.5)], atol=1e-6)
        theirs = dt.cosine(torch.tensor(x), torch.tensor(y))
        np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_updates_with_several_relocations_have_the_same_gradients():
    arrays = problem("random")
    arrays["centroids"][[1, 3]] += 50

    def on(module):
        def outcome(points, centroids):
            state = module.init(centroids)
            state, stats = module.update(points, state, empty="farthest")
            return state.centroids, *stats

        return outcome

    assert compare(on(dk), on(dt), **arrays) < 0.1
