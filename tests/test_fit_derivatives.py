"""The derivative of a fit, against finite differences, unrolling and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import DIGITS, C, X, start, status

import diffkm_jax as dk

MODES = ["implicit", "one_step", "unrolled", "none"]
X, C = X[:60], C[:4]
W = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, 60))
COEFFICIENTS = jnp.arange(1.0, 13).reshape(4, 3)
SGD = optax.sgd(4e-3)


def scalar(c):
    """A function of centroids that no symmetry makes flat."""
    return jnp.sum(COEFFICIENTS * jnp.cos(c))


def smooth(x, y):
    """A distance that grows like the Euclidean one, but has a Hessian everywhere."""
    return jnp.sqrt(jnp.sum((x - y) ** 2, axis=-1) + 0.01)


CASES = {
    "hard": {},
    "soft": {"temperature": 0.5},
    "colder": {"temperature": 0.1},
    "adam": {"optimizer": optax.adam(0.03), "max_steps": 3000},
    "soft by sgd": {"temperature": 0.5, "optimizer": optax.sgd(2e-3)},
    "farthest": {"empty": "farthest"},
    "smooth": {"distance": smooth, "optimizer": SGD},
    "soft smooth": {"distance": smooth, "optimizer": SGD, "temperature": 0.3},
    "kl": {"distance": dk.kl_divergence, "optimizer": optax.sgd(1e-2)},
}
PUT = {"kl": jnp.exp}


def case(name):
    """The converged fit of a case, as a function of points, weights and options."""
    options = {"tol": 0.0, "max_steps": 8000} | CASES[name]
    put = PUT.get(name, lambda x: x)

    def fitted(x, w, **more):
        return dk.fit(put(x), put(C), weights=w, **options | more)

    return fitted


def central(f, x, direction, size=1e-5):
    return (f(x + size * direction) - f(x - size * direction)) / (2 * size)


def close(a, b, tol):
    scale = float(jnp.max(jnp.abs(jnp.asarray(b))))
    np.testing.assert_allclose(a, b, rtol=0, atol=tol * max(scale, 1e-3))


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_finite_differences_in_points_and_weights(name):
    fitted = case(name)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def differentiated(x, w):
        result = fitted(x, w)
        return scalar(result.centroids), result

    (_, result), (in_x, in_w) = differentiated(X, W)
    assert status(result) == dk.Status.CONVERGED
    value = jax.jit(lambda x, w: scalar(fitted(x, w).centroids))
    for i, (gradient, at) in enumerate(((in_x, X), (in_w, W))):
        direction = jnp.cos(3 * at) + 0.1

        def along(moved, i=i):
            return value(moved, W) if i == 0 else value(X, moved)

        expected = central(along, at, direction)
        assert abs(expected) > 1e-2
        close(jnp.sum(gradient * direction), expected, 1e-6)


@pytest.mark.parametrize("k", [3, 10])
@pytest.mark.parametrize("temperature", [None, 60.0])
def test_on_digits_where_the_certificate_holds_the_gradient_is_right(temperature, k):
    options = {"tol": 0.0, "temperature": temperature, "max_steps": 3000}
    first = dk.fit(DIGITS, start(0, k), **options)
    certify = jax.jit(partial(dk.certificate, temperature=temperature))
    assert certify(jnp.asarray(DIGITS), first.centroids).valid

    @jax.jit
    def value(x):
        result = dk.fit(x, first.centroids, **options)
        return jnp.sum(jnp.sin(result.centroids)), result.status

    x = jnp.asarray(DIGITS)
    direction = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    (_, flags), gradient = jax.value_and_grad(value, has_aux=True)(x)
    assert int(flags) == dk.Status.CONVERGED
    close(
        jnp.sum(gradient * direction),
        central(lambda x: value(x)[0], x, direction),
        1e-6,
    )


@pytest.mark.parametrize("name", ["soft", "colder", "soft by sgd", "soft smooth"])
def test_the_gradient_in_the_temperature_and_in_the_end_of_a_schedule(name):
    fitted = case(name)
    t = CASES[name]["temperature"]

    @jax.jit
    def constant(t):
        return scalar(fitted(X, W, temperature=t).centroids)

    def scheduled(t):
        def schedule(step):
            return jnp.where(step < 5, 1.0, t)

        return scalar(fitted(X, W, temperature=schedule).centroids)

    for f in (constant, jax.jit(scheduled)):
        close(jax.jit(jax.grad(f))(t), central(f, t, 1.0, 1e-6), 1e-6)


@pytest.mark.parametrize("name", ["hard", "soft", "colder", "farthest"])
def test_at_convergence_all_modes_agree_with_unrolling_as_they_promise(name):
    def gradient(mode):
        fitted = partial(case(name), derivative=mode, max_steps=400)
        value = jax.jit(
            jax.grad(lambda x, w: scalar(fitted(x, w).centroids), argnums=(0, 1))
        )
        return value(X, W)

    found = {mode: gradient(mode) for mode in MODES}
    hard = "temperature" not in CASES[name]
    for i in range(2):
        unrolled = found["unrolled"][i]
        close(found["implicit"][i], unrolled, 1e-10)
        off = float(jnp.max(jnp.abs(found["one_step"][i] - unrolled)))
        assert (off < 1e-10) if hard else (off > 1e-3)
        np.testing.assert_array_equal(found["none"][i], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_mode_changes_no_value(mode, temperature):
    expected = dk.fit(X, C, temperature=temperature, derivative="none")
    found = dk.fit(X, C, temperature=temperature, derivative=mode)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)
    np.testing.assert_array_equal(expected.centroids, found.centroids)


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_the_hessian_is_that_of_finite_differences_in_every_mode_order(name):
    fitted = case(name)
    directions = jnp.stack([jnp.sin(2 * X), jnp.cos(X[::-1])])

    def value(a):
        x = X + jnp.sum(a[:2, None, None] * directions, axis=0)
        return scalar(fitted(x, W * (1 + a[2] * jnp.cos(W))).centroids)

    zero = jnp.zeros(3)
    gradient = jax.jit(jax.grad(value))
    expected = [central(gradient, zero, jnp.eye(3)[i], 1e-5) for i in range(3)]
    for hessian in (jax.hessian(value), jax.jacrev(jax.jacrev(value))):
        close(jax.jit(hessian)(zero), jnp.stack(expected), 1e-5)


def test_third_derivatives_of_hard_means_are_exact():
    labels = dk.fit(X, C).labels

    def fitted(a):
        return scalar(dk.fit(X, C, weights=jnp.exp(a * jnp.cos(W))).centroids)

    def by_means(a):
        w = jnp.exp(a * jnp.cos(W))
        mass = jax.ops.segment_sum(w, labels, 4)
        return scalar(jax.ops.segment_sum(w[:, None] * X, labels, 4) / mass[:, None])

    def third(f):
        return jax.jit(jax.grad(jax.jacfwd(jax.grad(f))))(0.0)

    close(third(fitted), third(by_means), 1e-10)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_forward_mode_is_reverse_mode(temperature):
    def f(x):
        return dk.fit(x, C, temperature=temperature, tol=0.0, max_steps=2000).centroids

    forward = jax.jit(lambda x, v: jax.jvp(f, (x,), (v,))[1])(X, jnp.cos(X))
    backward = jax.jit(lambda x, v: jax.vjp(f, x)[1](v)[0])(X, COEFFICIENTS)
    close(jnp.sum(forward * COEFFICIENTS), jnp.sum(backward * jnp.cos(X)), 1e-9)


def test_loss_and_counts_follow_the_centroids():
    def quantities(x, mode="implicit"):
        options = {"temperature": 0.5, "tol": 0.0, "max_steps": 2000}
        result = dk.fit(x, C, derivative=mode, **options)
        return jnp.stack([result.loss, jnp.sum(jnp.cos(result.counts))])

    direction = jnp.cos(X)
    slopes = jax.jit(lambda x: jax.jvp(quantities, (x,), (direction,))[1])(X)
    close(slopes, central(jax.jit(quantities), X, direction), 1e-6)
    held = jax.jit(lambda x: jax.jvp(partial(quantities, mode="none"), (x,), (X,))[1])
    free = jax.jit(lambda x: jax.jvp(quantities, (x,), (X,))[1])
    # At a minimum the loss does not see its centroids move; counts do.
    close(held(X)[0], free(X)[0], 1e-7)
    assert abs(held(X)[1] - free(X)[1]) > 1e-2


def test_the_second_derivative_of_the_fitted_loss_needs_the_implicit_one():
    def loss(a, mode="implicit"):
        x = X + a * jnp.sin(2 * X)
        return dk.fit(x, C, tol=0.0, derivative=mode).loss

    expected = central(jax.jit(jax.grad(loss)), 0.0, 1.0)
    close(jax.jit(jax.grad(jax.grad(loss)))(0.0), expected, 1e-6)
    held = jax.jit(jax.grad(jax.grad(partial(loss, mode="none"))))
    assert abs(held(0.0) - expected) > 1e-2


def test_without_convergence_hard_is_the_mean_of_the_labels_there_are():
    result = dk.fit(X, C, max_steps=2)
    assert status(result) == dk.Status.MAX_STEPS
    jacobian = jax.jacrev(lambda x: dk.fit(x, C, max_steps=2).centroids[1, 0])(X)
    own = np.asarray(result.labels == 1)
    np.testing.assert_allclose(jacobian[:, 0], own / own.sum(), atol=1e-15)
    np.testing.assert_array_equal(jacobian[:, 1:], 0)


def test_which_points_move_a_centroid_is_its_members_over_their_weight():
    result = dk.fit(X, C, weights=W)
    influence = jax.jacrev(lambda w: dk.fit(X, C, weights=w).centroids)(W)
    for j in range(4):
        own = np.asarray(result.labels == j)
        away = np.asarray(X) - np.asarray(result.centroids[j])
        expected = np.where(own[:, None], away, 0) / float(result.counts[j])
        np.testing.assert_allclose(influence[j].T, expected, atol=1e-14)


def test_unrolling_differentiates_the_start_and_the_others_do_not():
    def value(c, mode):
        result = dk.fit(X, c, optimizer=optax.sgd(2e-3), max_steps=7, derivative=mode)
        return scalar(result.centroids)

    direction = jnp.cos(C)
    unrolled = jax.jit(partial(value, mode="unrolled"))
    slope = jnp.sum(jax.grad(unrolled)(C) * direction)
    close(slope, central(unrolled, C, direction), 1e-7)
    for mode in ("implicit", "none"):
        np.testing.assert_array_equal(jax.grad(partial(value, mode=mode))(C), 0)


def test_unrolling_differentiates_what_the_optimizer_closes_over():
    def value(rate):
        optimizer = optax.sgd(rate, momentum=0.5)
        options = {"max_steps": 5, "derivative": "unrolled", "temperature": 0.5}
        return scalar(dk.fit(X, C, optimizer=optimizer, **options).centroids)

    close(jax.grad(value)(3e-3), central(value, 3e-3, 1.0, 1e-7), 1e-6)


def test_the_derivative_of_a_row_set_by_a_policy_is_zero():
    far = C.at[3].add(50.0)

    def fitted(x, mode, steps):
        options = {"empty": "farthest", "derivative": mode, "max_steps": steps}
        return dk.fit(x, far, **options)

    moved = jax.jit(jax.jacfwd(lambda x: fitted(x, "unrolled", 1).centroids))(X)
    np.testing.assert_array_equal(moved[3], 0)
    assert jnp.abs(moved[:3]).max() > 0
    assert status(fitted(X, "implicit", 60)) == dk.Status.CONVERGED
    unrolled, implicit = (
        jax.jit(jax.grad(lambda x, m=m: scalar(fitted(x, m, 60).centroids)))(X)
        for m in ("unrolled", "implicit")
    )
    close(unrolled, implicit, 1e-12)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_centroid_of_an_empty_cluster_has_derivative_zero(temperature):
    far = C.at[3].add(500.0)

    def f(x, w):
        return dk.fit(x, far, weights=w, temperature=temperature, tol=0.0)

    assert dk.Status.EMPTY_CLUSTER in status(f(X, W))
    jacobians = jax.jacrev(lambda x, w: f(x, w).centroids, argnums=(0, 1))(X, W)
    for jacobian in jacobians:
        np.testing.assert_array_equal(jacobian[3], 0)
        assert jnp.isfinite(jacobian).all()
        assert jnp.abs(jacobian[:3]).max() > 1e-3


def test_arrays_that_a_distance_closes_over_are_differentiated():
    def value(precision):
        def distance(x, y):
            return jnp.sqrt(jnp.sum(((x - y) @ precision) * (x - y), axis=-1) + 0.01)

        result = dk.fit(X, C, distance=distance, optimizer=SGD, tol=0.0, max_steps=8000)
        return scalar(result.centroids), result.status

    p, v = jnp.diag(jnp.array([1.0, 0.7, 1.2])), jnp.ones((3, 3)) + jnp.eye(3)
    (_, flags), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(p)
    assert int(flags) == dk.Status.CONVERGED
    expected = central(jax.jit(lambda p: value(p)[0]), p, v)
    close(jnp.sum(gradient * v), expected, 1e-6)


def test_cosine_is_right_in_all_that_its_loss_can_see():
    def value(x):
        result = dk.fit(
            x,
            C,
            distance=dk.cosine,
            optimizer=optax.sgd(3e-2),
            tol=0.0,
            max_steps=20_000,
        )
        c = result.centroids
        c /= jnp.linalg.norm(c, axis=1, keepdims=True)
        return scalar(c), result.status

    (_, flags), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(X)
    assert int(flags) == dk.Status.CONVERGED
    direction = jnp.cos(2 * X)
    expected = central(jax.jit(lambda x: value(x)[0]), X, direction)
    close(jnp.sum(gradient * direction), expected, 1e-6)


def flags_and_gradient(x, c, **options):
    def value(x):
        result = dk.fit(x, c, **options)
        return jnp.sum(jnp.cos(result.centroids)), result.status

    (_, flags), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(x)
    return dk.Status(int(flags)), gradient


def test_manhattan_has_no_hessian_and_is_flagged_with_finite_numbers():
    options = {"distance": dk.manhattan, "optimizer": SGD, "max_steps": 50}
    flags, gradient = flags_and_gradient(X, C, **options)
    assert dk.Status.LINEAR_SOLVE in flags
    assert jnp.isfinite(gradient).all()
    assert dk.Status.LINEAR_SOLVE not in status(dk.fit(X, C, **options))


def test_a_saddle_is_flagged_with_finite_numbers():
    merged = jnp.tile(X.mean(0), (4, 1))
    cold = 0.5 * 2 * float(jnp.linalg.eigvalsh(jnp.cov(X.T, ddof=0))[-1])
    flags, gradient = flags_and_gradient(X, merged, temperature=cold)
    assert flags == dk.Status.CONVERGED | dk.Status.LINEAR_SOLVE
    assert jnp.isfinite(gradient).all()
    flags, _ = flags_and_gradient(X, merged, temperature=2.2 * cold)
    assert flags == dk.Status.CONVERGED


def test_only_the_lane_that_cannot_be_solved_is_flagged():
    merged = jnp.tile(X.mean(0), (4, 1))
    cold = float(jnp.linalg.eigvalsh(jnp.cov(X.T, ddof=0))[-1])

    def value(x, c):
        result = dk.fit(x, c, temperature=cold, max_steps=2000)
        return scalar(result.centroids), result.status

    batch = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))
    (_, flags), gradient = batch(jnp.stack([X, X]), jnp.stack([merged, C]))
    assert flags.tolist() == [
        dk.Status.CONVERGED | dk.Status.LINEAR_SOLVE,
        dk.Status.CONVERGED,
    ]
    assert jnp.isfinite(gradient).all()


def test_weights_that_are_all_zero_have_finite_derivatives():
    for temperature in (None, 0.5):
        result = jax.jacrev(
            lambda w, t=temperature: dk.fit(X, C, weights=w, temperature=t).centroids
        )(jnp.zeros(60))
        assert jnp.isfinite(result).all()


@pytest.mark.parametrize(
    ("dtype", "temperature"), [(jnp.bfloat16, None), (jnp.float32, 0.5)]
)
def test_narrow_points_have_gradients_of_their_dtype_near_the_wide_one(
    dtype, temperature
):
    def gradient(x, c):
        options = {"temperature": temperature, "tol": 1e-9, "max_steps": 1000}
        return jax.jit(
            jax.grad(lambda x: jnp.sum(dk.fit(x, c, **options).state.centroids ** 2))
        )(x)

    x, c = X.astype(dtype), C.astype(dtype)
    narrow, wide = gradient(x, c), gradient(x.astype(float), c.astype(float))
    assert narrow.dtype == dtype
    close(narrow.astype(float), wide, 0.05 if dtype == jnp.bfloat16 else 1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 0.5, "derivative": "unrolled", "max_steps": 30},
        {"distance": smooth, "optimizer": SGD},
    ],
    ids=["hard", "soft", "unrolled", "smooth"],
)
def test_inside_shard_map_the_gradient_is_that_of_one_device(options):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def fitted(x, w, axis_name=None):
        return dk.fit(x, C, weights=w, axis_name=axis_name, **options).centroids

    on_mesh = jax.shard_map(
        partial(fitted, axis_name="data"),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=whole,
    )
    both = [
        jax.jit(jax.grad(lambda x, w, f=f: scalar(f(x, w)), argnums=(0, 1)))(X, W)
        for f in (fitted, on_mesh)
    ]
    for alone, sharded in zip(*both, strict=True):
        close(sharded, alone, 1e-9)


@pytest.mark.parametrize(
    ("mode", "temperature"), [("implicit", 0.5), ("one_step", None), ("unrolled", None)]
)
def test_restarts_have_the_gradient_of_the_fit_that_was_chosen(mode, temperature):
    key = jax.random.key(0)
    options = {"derivative": mode, "temperature": temperature, "max_steps": 200}

    def best(x):
        return scalar(dk.fit_restarts(key, x, 4, num_restarts=3, **options).centroids)

    starts = [dk.kmeans_plus_plus(k, X, 4) for k in jax.random.split(key, 3)]
    losses = [dk.fit(X, c, **options).loss for c in starts]
    chosen = jax.random.split(key, 3)[int(np.argmin(losses))]

    def alone(x):
        c = dk.kmeans_plus_plus(chosen, x, 4)
        return scalar(dk.fit(x, c, **options).centroids)

    close(jax.jit(jax.grad(best))(X), jax.jit(jax.grad(alone))(X), 1e-12)


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_going_on_from_a_state_has_the_derivative_of_the_whole(name):
    options = {"tol": 0.0, "max_steps": 2000} | CASES[name]

    def whole(x):
        return scalar(dk.fit(x, C, **options).centroids)

    def in_two(x):
        first = dk.fit(x, C, **options | {"max_steps": 5})
        return scalar(dk.fit(x, first.state, **options).centroids)

    close(jax.jit(jax.grad(in_two))(X), jax.jit(jax.grad(whole))(X), 1e-9)


def test_unknown_modes_and_a_step_to_no_mean_are_refused():
    with pytest.raises(ValueError, match="'unrolled' or 'none', got 'exact'"):
        dk.fit(X, C, derivative="exact")
    with pytest.raises(ValueError, match=r"one_step.*manhattan"):
        dk.fit(X, C, distance=dk.manhattan, optimizer=SGD, derivative="one_step")
    with pytest.raises(ValueError, match="got 'exact'"):
        dk.fit_restarts(jax.random.key(0), X, 3, derivative="exact")
