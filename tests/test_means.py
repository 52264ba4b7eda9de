"""Distances that have means: their pass, its derivatives, their fits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from means import (
    DISTANCES,
    NAMES,
    TEMPERATURES,
    C,
    K,
    N,
    P,
    W,
    X,
    by_hand,
    hard_loss,
    lloyd,
    quartic,
    soft_loss,
)

import diffkm_jax as dk

ARRAYS = tuple(map(jnp.asarray, (X, C, W)))
named = pytest.mark.parametrize("name", NAMES)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def assert_close(found, expected, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * (1 + np.abs(b).max()))


@named
@pytest.mark.parametrize("soft", [False, True])
def test_loss_gradients_and_hessians_are_those_of_all_distances(name, soft):
    distance, t = DISTANCES[name], jnp.asarray(TEMPERATURES[name])

    def ours(x, c, w, t):
        options = {"weights": w, "distance": distance, "block_size": 16}
        if soft:
            return dk.soft_kmeans_loss(x, c, temperature=t, **options)
        return dk.kmeans_loss(x, c, **options)

    def theirs(x, c, w, t):
        if soft:
            return soft_loss(distance, x, c, w, t)
        return hard_loss(distance, x, c, w)

    def everything(f):
        gradient = jax.grad(f, (0, 1, 2, 3))

        def of_all(*args):
            # Forward over reverse, along one direction in every argument.
            along = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size * 1.0)), args)
            along = jax.tree.map(lambda v, a: v.reshape(a.shape), along, args)
            return f(*args), *jax.jvp(gradient, args, along)

        return jax.jit(of_all)(*ARRAYS, t)

    assert_close(everything(ours), everything(theirs))


@named
def test_labels_counts_and_shifts_are_those_by_hand(name):
    distance, costs = DISTANCES[name], by_hand(name, X, C)
    labels = costs.argmin(1)
    np.testing.assert_array_equal(dk.assign(X, C, distance=distance), labels)
    found = dk.statistics(X, C, weights=W, distance=distance)
    np.testing.assert_allclose(found.loss, (W * costs.min(1)).sum(), rtol=1e-12)
    one_hot = np.eye(K)[labels] * W[:, None]
    np.testing.assert_allclose(found.counts, one_hot.sum(0), rtol=1e-12)
    x, c = map(unit, (X, C)) if name == "cosine" else (X, C)
    shifts = one_hot.T @ x - one_hot.sum(0)[:, None] * c
    np.testing.assert_allclose(found.shifts, shifts, atol=1e-12)


@named
def test_newton_is_lloyds_algorithm_step_by_step(name):
    state, (centroids, losses) = dk.init(C), lloyd(name, X, C, 6)
    for expected, loss in zip(centroids, losses, strict=True):
        state, stats = dk.update(X, state, distance=DISTANCES[name])
        np.testing.assert_allclose(state.centroids, expected, rtol=1e-9)
        np.testing.assert_allclose(stats.loss, loss, rtol=1e-9)


@named
def test_lloyd_and_em_never_increase_the_loss_and_converge(name):
    for temperature in (None, TEMPERATURES[name]):
        result = dk.fit(
            X, C, distance=DISTANCES[name], temperature=temperature, max_steps=2000
        )
        assert result.flags == dk.Status.CONVERGED
        history = np.asarray(result.history)
        assert (np.diff(history) <= 1e-12 * np.abs(history).max()).all()


def slope(f, args, along, h=1e-5):
    """The derivative of f along a direction, by differences of fourth order."""

    def at(e):
        return f(*(a + e * v for a, v in zip(args, along, strict=True)))

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


CASES = [(name, "implicit", soft) for name in NAMES for soft in (False, True)]
CASES += [(name, "one_step", False) for name in ("cosine", "kl_divergence")]


@pytest.mark.parametrize(("name", "derivative", "soft"), CASES)
def test_derivatives_of_fits_are_those_by_differences(name, derivative, soft):
    rng = np.random.default_rng(1)
    cotangent, distance = jnp.asarray(rng.normal(size=C.shape)), DISTANCES[name]

    @jax.jit
    def f(x, w, t):
        result = dk.fit(
            x,
            C,
            weights=w,
            temperature=t if soft else None,
            distance=distance,
            tol=0.0,
            max_steps=3000,
            derivative=derivative,
        )
        value = jnp.sum(cotangent * result.centroids) + 0.1 * result.loss
        return value + jnp.sum(result.counts**2) * 0.01, result.status

    args = (*(jnp.asarray(a) for a in (X, W)), jnp.asarray(TEMPERATURES[name]))
    along = [jnp.asarray(rng.normal(size=np.shape(a))) for a in args]
    gradients, status = jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(*args)
    assert dk.Status.LINEAR_SOLVE not in dk.Status(int(status))
    expected = slope(lambda *args: f(*args)[0], args, along)
    found = sum(jnp.vdot(g, v) for g, v in zip(gradients, along, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("rank", [3, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_a_fit_is_differentiated_in_the_precision_even_a_singular_one(rank, soft):
    rng = np.random.default_rng(2)
    root = jnp.asarray(np.linalg.cholesky(P)[:, :rank])
    cotangent, along = (rng.normal(size=s) for s in (C.shape, root.shape))

    @jax.jit
    def f(root, x):
        distance = dk.mahalanobis(root @ root.T)
        result = dk.fit(
            x, C, distance=distance, temperature=0.4 if soft else None, tol=0.0,
            max_steps=3000,
        )  # fmt: skip
        return jnp.sum(cotangent * result.centroids) + result.loss

    args, ways = (root, jnp.asarray(X)), (along, rng.normal(size=X.shape))
    gradients = jax.jit(jax.grad(f, (0, 1)))(*args)
    found = sum(jnp.vdot(g, v) for g, v in zip(gradients, ways, strict=True))
    np.testing.assert_allclose(found, slope(f, args, ways), rtol=1e-6)


def powers(a, v):
    return jnp.sum(a * v**4)


@pytest.mark.parametrize("soft", [False, True])
def test_arrays_that_a_distance_holds_have_gradients_to_second_order(soft):
    x, c, w = ARRAYS

    def losses(distance):
        if soft:
            t = jnp.asarray(0.5)
            ours = dk.soft_kmeans_loss(
                x, c, temperature=t, weights=w, distance=distance
            )
            return ours, soft_loss(distance, x, c, w, t)
        ours = dk.kmeans_loss(x, c, weights=w, distance=distance)
        return ours, hard_loss(distance, x, c, w)

    def second(make, theta, i):
        gradient = jax.value_and_grad(lambda a: losses(make(a))[i])
        return jax.jit(jax.jacfwd(gradient))(theta)

    for make, theta in (
        (dk.mahalanobis, jnp.asarray(P)),
        (lambda a: dk.bregman(jax.tree_util.Partial(powers, a)), jnp.ones(3)),
    ):
        assert_close(second(make, theta, 0), second(make, theta, 1))


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_arrays_that_phi_closes_over_have_gradients_too(temperature):
    x, c, _ = ARRAYS

    def centroids(x, distance):
        fit = partial(dk.fit, temperature=temperature, tol=0.0, max_steps=500)
        found = fit(x, c, distance=distance)
        return jnp.sum(jnp.sin(found.centroids)) + found.loss

    def closing(x, a):
        return centroids(x, dk.bregman(lambda v: powers(a, v)))

    def holding(x, a):
        return centroids(x, dk.bregman(jax.tree_util.Partial(powers, a)))

    found, expected = (
        jax.jit(jax.grad(f, (0, 1)))(x, jnp.ones(3)) for f in (closing, holding)
    )
    assert_close(found, expected)


def test_two_distances_of_the_same_kind_are_one_program():
    traced = []

    @jax.jit
    def loss(distance):
        traced.append(distance)
        return dk.kmeans_loss(*ARRAYS[:2], distance=distance)

    values = [float(loss(dk.mahalanobis(s * jnp.eye(3)))) for s in (1.0, 2.0)]
    np.testing.assert_allclose(2 * values[0], values[1])
    for _ in range(2):
        loss(dk.bregman(quartic))
    assert len(traced) == 2


@named
def test_macqueen_and_ema_average_points_whatever_the_distance(name):
    distance, half = DISTANCES[name], N // 2
    rows = unit(X) if name == "cosine" else X

    def run(optimizer):
        state = dk.init(C[:1], optimizer=optimizer)
        for batch in (X[:half], X[half:]):
            state, _ = dk.update(batch, state, optimizer=optimizer, distance=distance)
        return state.centroids[0]

    def there(v):
        return unit(v) if name == "cosine" else v

    first = there(rows[:half].mean(0))
    # Of a sphere the running mean starts from the last one, normalized.
    mean = there((first + rows[half:].mean(0)) / 2)
    np.testing.assert_allclose(run(dk.macqueen()), mean, rtol=1e-9)
    start = there(C[0])
    for batch in (rows[:half], rows[half:]):
        start = there(0.75 * start + 0.25 * batch.mean(0))
    np.testing.assert_allclose(run(dk.ema(0.75)), start, rtol=1e-9)


def test_optimizers_without_shifts_take_the_gradient_to_be_squared():
    gradient, n = jnp.array([[-2.0, 4.0]]), jnp.array([2.0])
    for optimizer in (dk.newton(), dk.macqueen(), dk.ema(0.0)):
        state = optimizer.init(gradient)
        step, _ = optimizer.update(gradient, state, counts=n)
        np.testing.assert_array_equal(step, [[0.5, -1.0]])
        step, _ = optimizer.update(gradient, state, counts=n, shifts=4 * gradient)
        np.testing.assert_array_equal(step, [[-4.0, 8.0]])


@named
def test_a_gradient_optimizer_takes_the_gradient(name):
    distance, descent = DISTANCES[name], optax.sgd(1e-3)
    # On the sphere a step begins and ends.
    on_sphere = partial(unit if name == "cosine" else np.asarray)
    state = dk.init(C, optimizer=descent)
    state, _ = dk.update(X, state, distance=distance, optimizer=descent)
    start = on_sphere(C)
    gradient = jax.grad(partial(dk.kmeans_loss, X, distance=distance))(start)
    expected = on_sphere(start - 1e-3 * np.asarray(gradient))
    np.testing.assert_allclose(state.centroids, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["kl_divergence", "itakura_saito", "mahalanobis"])
def test_the_stop_rule_does_not_change_with_the_unit_of_the_data(name):
    fits = []
    for scale in (1.0, 2.0**40, 2.0**-40):
        distance = DISTANCES[name]
        if name == "mahalanobis":
            distance = dk.mahalanobis(jnp.asarray(P) / scale**2)
        fits.append(dk.fit(scale * X, scale * C, distance=distance, tol=1e-3))
    assert len({int(f.num_steps) for f in fits}) == 1
    for f in fits[1:]:
        np.testing.assert_array_equal(f.labels, fits[0].labels)


@named
def test_the_residual_is_the_distance_of_the_full_step(name):
    distance = DISTANCES[name]
    result = dk.fit(X, C, distance=distance, max_steps=1)
    (_, second), _ = lloyd(name, X, C, 2)
    expected = np.diag(by_hand(name, second, np.asarray(result.centroids))).sum()
    # Of a φ that is only a function, to third order.
    rtol = 1e-2 if name == "bregman" else 1e-6
    np.testing.assert_allclose(result.residual, expected, rtol=rtol)


@named
def test_a_fit_is_vmapped_and_goes_on(name):
    distance = DISTANCES[name]
    fit = partial(dk.fit, distance=distance, max_steps=5)
    whole = fit(X, C, tol=0.0)
    both = jax.vmap(lambda c: fit(jnp.asarray(X), c, tol=0.0).centroids)(
        jnp.stack([ARRAYS[1], ARRAYS[1][::-1]])
    )
    np.testing.assert_allclose(both[0], whole.centroids, rtol=1e-12)
    halfway = dk.fit(X, C, distance=distance, max_steps=2, tol=0.0)
    onward = dk.fit(X, halfway.state, distance=distance, max_steps=3, tol=0.0)
    np.testing.assert_allclose(onward.centroids, whole.centroids, rtol=1e-12)


def test_a_distance_without_means_is_refused_by_those_that_have_them():
    message = "squared_euclidean, cosine, kl_divergence, itakura_saito, mahalanobis"
    for optimizer in (dk.newton(), dk.macqueen(), dk.ema()):
        with pytest.raises(ValueError, match=message):
            dk.fit(X, C, distance=dk.manhattan, optimizer=optimizer)
    with pytest.raises(ValueError, match=message):
        dk.certificate(X, C, distance=dk.euclidean)
    with pytest.raises(ValueError, match="phi must return a scalar"):
        dk.kmeans_loss(X, C, distance=dk.bregman(jnp.exp))
    with pytest.raises(TypeError, match="phi must be a function"):
        dk.bregman(3.0)


@pytest.mark.parametrize("scale", [1e-250, 1e-170, 1e170, 1e250])
def test_itakura_saito_has_no_unit_where_squares_over_or_underflow(scale):
    distance = dk.itakura_saito

    @jax.jit
    def found(x, c):
        gradient = jax.grad(partial(dk.kmeans_loss, distance=distance), 1)(x, c)
        result = dk.fit(x, c, distance=distance)
        margin = dk.certificate(x, result.centroids, distance=distance).margin
        return result, margin, gradient

    expected, margin, gradient = found(X, C)
    result, at_scale, slope = found(scale * X, scale * C)
    assert result.flags == dk.Status.CONVERGED
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-9)
    np.testing.assert_allclose(result.centroids / scale, expected.centroids, rtol=1e-9)
    np.testing.assert_allclose(at_scale, margin, rtol=1e-9)
    np.testing.assert_allclose(slope * scale, gradient, rtol=1e-9, atol=1e-9)
