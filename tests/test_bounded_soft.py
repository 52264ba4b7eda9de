"""Soft fits with bounds on sizes: columns, limits, derivatives of every argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sizes
from problems import DIGITS, start, status
from scipy.optimize import minimize

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
C = X[:4] + 0.01
W = RNG.uniform(0.2, 2, 40)
BOUNDS = {
    "given": {"min_size": np.full(4, 10.0), "max_size": np.full(4, 10.0)},
    "least": {"min_size": np.array([14.0, 2.0, 6.0, 1.0])},
    "largest": {"max_size": np.array([8.0, 9.0, 40.0, 15.0])},
    "both": {
        "min_size": np.array([3.0, 11.5, 0.5, 1.0]),
        "max_size": np.array([7.0, 12.0, 30.0, 11.0]),
    },
}


def excess(columns, min_size=0.0, max_size=np.inf):
    """How far columns are out of bounds, relative to these."""
    low, high = np.broadcast_to(min_size, 4), np.broadcast_to(max_size, 4)
    below = (low - columns) / np.where(low > 0, low, 1)
    above = columns / np.where(np.isfinite(high), high, 1e300) - 1
    return max(below.max(), above.max())


@pytest.mark.parametrize("temperature", [0.001, 0.003, 0.01])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_weighted_sizes_are_met_at_low_temperatures_as_well(temperature, dtype):
    """There few points are shared, and Newton's step from prices nearby is too long."""
    missed, eps = [], float(np.finfo(dtype).eps)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, w = rng.normal(size=(15, 2)), rng.uniform(0.2, 2, 15)
        x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
        size = jnp.sum(w) / 3
        for limits in (
            {"min_size": size, "max_size": size},
            {"min_size": 0.6 * size, "max_size": 1.2 * size},
        ):
            plan = dk.soft_assign_bounded(
                x, x[:3], temperature=temperature, weights=w, **limits
            )
            columns = jnp.sum(w[:, None] * plan, axis=0) / size
            low, high = (float(s / size) for s in limits.values())
            off = jnp.maximum(columns - high, low - columns).max()
            # Prices here are below 20.
            bound = (1e-10 if dtype == "float64" else 4e-6) + 80 * eps / temperature
            missed.append(not bool(off <= bound))
    assert sum(missed) == 0


@pytest.mark.parametrize("temperature", [0.01, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("name", BOUNDS)
def test_rows_sum_to_one_and_columns_are_within_bounds(name, temperature):
    for dtype, tol in (("float64", 1e-10), ("float32", 4e-6)):
        plan = dk.soft_assign_bounded(
            jnp.asarray(X, dtype),
            jnp.asarray(C, dtype),
            temperature=temperature,
            **BOUNDS[name],
        )
        assert plan.dtype == dtype
        np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-6)
        columns = np.asarray(plan, np.float64).sum(0)
        assert excess(columns, **BOUNDS[name]) <= tol


@pytest.mark.parametrize("name", BOUNDS)
def test_the_plan_is_a_softmax_with_prices_whose_signs_are_those_of_the_bounds(name):
    plan = np.asarray(dk.soft_assign_bounded(X, C, temperature=0.4, **BOUNDS[name]))
    scores = np.log(plan) + sizes.squares(X, C) / 0.4
    prices = -(scores - scores[:, :1])
    np.testing.assert_allclose(prices, prices[:1].repeat(40, 0), atol=1e-9)
    # Up to a shift, which is the price of a cluster whose bounds do not hold.
    columns = plan.sum(0)
    low = np.broadcast_to(BOUNDS[name].get("min_size", 0.0), 4)
    high = np.broadcast_to(BOUNDS[name].get("max_size", np.inf), 4)
    free = (columns > low * (1 + 1e-6)) & (columns < high * (1 - 1e-6))
    prices = prices[0] - prices[0][free].mean() if free.any() else prices[0]
    spread = prices[free] if free.any() else np.zeros(1)
    np.testing.assert_allclose(spread, 0, atol=1e-8)
    at_low = np.isclose(columns, low) & (low < high)
    at_high = np.isclose(columns, high) & (low < high)
    assert at_low.any() + at_high.any() + (low == high).all() > 0
    assert (prices[at_low] < 0).all()
    assert (prices[at_high] > 0).all()


def test_the_value_is_the_least_by_a_general_optimizer():
    x, bounds, t = X[:6], {"min_size": 1.2, "max_size": 2.0}, 0.7
    costs = sizes.squares(x, C[:3])
    plan = np.asarray(dk.soft_assign_bounded(x, C[:3], temperature=t, **bounds))

    def objective(flat):
        p = flat.reshape(6, 3)
        return (p * (costs + t * np.log(p))).sum()

    found = minimize(
        objective,
        np.full(18, 1 / 3),
        bounds=[(1e-9, 1)] * 18,
        constraints=[
            {"type": "eq", "fun": lambda f: f.reshape(6, 3).sum(1) - 1},
            {"type": "ineq", "fun": lambda f: f.reshape(6, 3).sum(0) - 1.2},
            {"type": "ineq", "fun": lambda f: 2.0 - f.reshape(6, 3).sum(0)},
        ],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    np.testing.assert_allclose(plan, found.x.reshape(6, 3), atol=1e-4)
    result = dk.fit_bounded(x, C[:3], temperature=t, max_steps=0, **bounds)
    np.testing.assert_allclose(result.loss, objective(plan.ravel()), rtol=1e-12)
    assert result.loss <= found.fun + 1e-9


def test_cold_it_is_the_hard_assignment():
    for seed in (1, 3, 5, 7):
        x, c, low, high = sizes.problem(seed % 2 * 12 + seed % 4)
        low, high = np.floor(low), np.ceil(high)
        costs = sizes.squares(x, c)
        plan = dk.soft_assign_bounded(
            x, c, temperature=1e-4, min_size=low, max_size=high
        )
        total = (np.asarray(plan) * costs).sum()
        best = sizes.optimum(costs, low, high)
        np.testing.assert_allclose(total, best, atol=1e-4 * len(x) * 3)


@pytest.mark.parametrize("bounds", [{}, {"min_size": 0.5, "max_size": 39.0}])
def test_without_a_bound_that_holds_it_is_the_soft_fit(bounds):
    for weights in (None, W / W.sum() * 40):
        options = {"temperature": 0.5, "weights": weights, "tol": 1e-8}
        ours, plain = dk.fit_bounded(X, C, **options, **bounds), dk.fit(X, C, **options)
        assert int(ours.num_steps) == int(plain.num_steps)
        for name in ("centroids", "loss", "counts", "history"):
            a, b = getattr(ours, name), getattr(plain, name)
            np.testing.assert_allclose(a, b, rtol=1e-10)
        zero = dk.fit_bounded(X, C, **options, **bounds, max_steps=0).loss
        del options["tol"]
        np.testing.assert_allclose(zero, dk.soft_kmeans_loss(X, C, **options))

    def centroids(function):
        return lambda x, t: function(x, C, temperature=t, tol=0.0).centroids

    x, t = jnp.asarray(X), jnp.asarray(0.5)
    ours, theirs = (
        jax.jacrev(centroids(f), (0, 1))(x, t) for f in (dk.fit_bounded, dk.fit)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_loss_never_rises_and_it_converges(name):
    result = dk.fit_bounded(X, C, temperature=0.4, tol=1e-9, **BOUNDS[name])
    assert status(result) == dk.Status.CONVERGED
    assert (np.diff(result.history) <= 1e-11).all()
    assert excess(np.asarray(result.counts), **BOUNDS[name]) <= 1e-10


def differences(function, arguments, h=1e-5):
    """Derivatives along one direction in each argument, exact and by differences."""
    for i, a in enumerate(arguments):
        direction = np.asarray(RNG.normal(size=np.shape(a)))
        if i >= 4:  # Sizes that are all given change with sum zero.
            direction = direction - direction.mean()
        moved = [
            function(
                *(b + s * direction if j == i else b for j, b in enumerate(arguments))
            )
            for s in (h, -h)
        ]
        tangents = [
            jnp.asarray(direction if j == i else np.zeros(np.shape(b)))
            for j, b in enumerate(arguments)
        ]
        primals = tuple(jnp.asarray(b) for b in arguments)
        _, slope = jax.jvp(function, primals, tuple(tangents))
        yield i, slope, (moved[0] - moved[1]) / (2 * h)


def call(name, function):
    """A function of points, centroids, weights, temperature and sizes, and values."""
    weights = W / W.sum() * 40
    keys = list(BOUNDS[name])
    if name == "given":
        # One array for both, so that it stays feasible.
        def of_sizes(x, c, w, t, s):
            return function(x, c, weights=w, temperature=t, min_size=s, max_size=s)

        return of_sizes, (X, C, weights, 0.4, BOUNDS[name]["min_size"])

    def of_bounds(x, c, w, t, *s):
        given = dict(zip(keys, s, strict=True))
        return function(x, c, weights=w, temperature=t, **given)

    return of_bounds, (X, C, weights, 0.4, *BOUNDS[name].values())


@pytest.mark.parametrize("name", BOUNDS)
def test_derivatives_of_the_plan_are_those_of_differences(name):
    function, arguments = call(name, dk.soft_assign_bounded)
    for i, slope, difference in differences(function, arguments):
        if name == "given" and i == 2:
            continue  # Then the sizes could not be met.
        np.testing.assert_allclose(slope, difference, atol=2e-8)


@pytest.mark.parametrize("name", BOUNDS)
def test_derivatives_of_a_fit_are_those_of_differences(name):
    def fitted(*args, **kwargs):
        found = dk.fit_bounded(*args, tol=0.0, max_steps=2000, **kwargs)
        return jnp.concatenate(
            [found.centroids.ravel(), found.loss[None], found.counts]
        )

    function, arguments = call(name, fitted)
    for i, slope, difference in differences(function, arguments):
        if name == "given" and i == 2:
            continue
        if i == 1:
            difference = 0 * difference
        np.testing.assert_allclose(slope, difference, rtol=2e-5, atol=1e-5)


def test_the_gradient_of_a_fit_is_that_of_its_steps_unrolled():
    size = jnp.full(4, 10.0)

    def unrolled(x):
        def step(c, _):
            plan = dk.soft_assign_bounded(
                x, c, temperature=0.4, min_size=size, max_size=size
            )
            return (plan.T @ x) / plan.sum(0)[:, None], None

        c, _ = jax.lax.scan(step, jnp.asarray(C), length=250)
        return jnp.sum(jnp.sin(c))

    def implicit(x):
        found = dk.fit_bounded(
            x, C, temperature=0.4, min_size=size, max_size=size, tol=0.0
        )
        return jnp.sum(jnp.sin(found.centroids)), found.status

    x = jnp.asarray(X)
    gradient, flags = jax.grad(implicit, has_aux=True)(x)
    assert dk.Status(int(flags)) == dk.Status.CONVERGED
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(unrolled))(x), atol=1e-7)


def test_the_gradient_of_the_loss_is_by_the_envelope():
    bounds = BOUNDS["both"]
    plan = np.asarray(dk.soft_assign_bounded(X, C, temperature=0.4, **bounds))

    def loss(c, low, high):
        found = dk.fit_bounded(
            X, c, temperature=0.4, max_steps=0, min_size=low, max_size=high
        )
        return found.loss

    step = 1e-5
    low, high = map(jnp.asarray, (bounds["min_size"], bounds["max_size"]))
    expected = -2 * (plan[:, :, None] * (X[:, None] - C)).sum(0)
    moved = np.zeros((4, 3))
    for index in np.ndindex(4, 3):
        e = np.zeros((4, 3))
        e[index] = step
        moved[index] = (loss(C + e, low, high) - loss(C - e, low, high)) / (2 * step)
    np.testing.assert_allclose(moved, expected, atol=1e-7)
    of_high = jax.grad(loss, 2)(jnp.asarray(C), low, high)
    assert of_high[0] < 0  # More room costs less.
    np.testing.assert_array_equal(of_high[2], 0)


def test_second_derivatives_of_the_plan():
    def with_row(x):
        points = jnp.asarray(X).at[0].set(x)
        plan = dk.soft_assign_bounded(points, C, temperature=0.4, max_size=11.0)
        return jnp.sum(plan**3)

    x, h = jnp.asarray(X[0]), 1e-5
    hessian = jax.hessian(with_row)(x)
    both = jax.jacrev(jax.grad(with_row))(x)
    rows = [
        (jax.grad(with_row)(x + h * e) - jax.grad(with_row)(x - h * e)) / (2 * h)
        for e in np.eye(3)
    ]
    np.testing.assert_allclose(hessian, np.stack(rows), atol=1e-7)
    np.testing.assert_allclose(both, hessian, atol=1e-10)


DISTANCES = {
    "cosine": (dk.cosine, 0.2),
    "kl_divergence": (dk.kl_divergence, 0.5),
    "mahalanobis": (dk.mahalanobis(jnp.diag(jnp.array([1.0, 4.0, 0.5]))), 1.0),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_other_distances_converge_and_have_derivatives(name):
    distance, t = DISTANCES[name]
    x = np.exp(X)

    def outputs(x):
        found = dk.fit_bounded(
            x,
            np.exp(C),
            temperature=t,
            distance=distance,
            min_size=8.0,
            max_size=12.0,
            tol=0.0,
            max_steps=3000,
        )
        return found.centroids, found

    primal, direction = jnp.asarray(x), jnp.asarray(RNG.normal(size=x.shape))
    _, slope, found = jax.jvp(outputs, (primal,), (direction,), has_aux=True)
    assert status(found) == dk.Status.CONVERGED
    assert (np.diff(found.history) <= 1e-11).all()
    assert (found.counts > 8 - 1e-8).all()
    assert (found.counts < 12 + 1e-8).all()
    h = 1e-5
    ahead, behind = (outputs(x + s * np.asarray(direction))[0] for s in (h, -h))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), atol=2e-5)


def test_float32_on_digits():
    x, c = np.float32(DIGITS), np.float32(start(0))
    size = 179.7
    result = dk.fit_bounded(x, c, temperature=50.0, min_size=size, max_size=size)
    assert status(result) == dk.Status.CONVERGED
    np.testing.assert_allclose(result.counts, size, rtol=1e-5)
    wide = dk.fit_bounded(
        DIGITS, start(0), temperature=50.0, min_size=size, max_size=size
    )
    np.testing.assert_allclose(result.loss, wide.loss, rtol=1e-5)


def test_zero_weights_are_rows_removed_even_of_nan():
    weights, x = W.copy(), X.copy()
    weights[[0, 5]] = 0
    x[5] = np.nan
    given = weights.sum() / 4

    def loss(x, weights):
        found = dk.fit_bounded(
            x, C, temperature=0.4, weights=weights, min_size=given, max_size=given
        )
        return found.loss, found

    (value, result), gradient = jax.value_and_grad(loss, has_aux=True)(
        jnp.asarray(x), jnp.asarray(weights)
    )
    fewer, other = loss(X[weights > 0], weights[weights > 0])
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    np.testing.assert_allclose(result.centroids, other.centroids, rtol=1e-10)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[np.array([0, 5])], 0)


def test_vmap_is_the_loop_and_temperatures_may_be_traced():
    x = jnp.asarray(RNG.normal(size=(3, 20, 2)))
    t, high = jnp.array([0.05, 0.5, 5.0]), jnp.array([7.0, 8.0, 20.0])

    def fit(x, t, high):
        return dk.fit_bounded(x, x[:3], temperature=t, max_size=high)

    many = jax.jit(jax.vmap(fit))(x, t, high)
    for i in range(3):
        one = fit(x[i], t[i], high[i])
        np.testing.assert_allclose(many.centroids[i], one.centroids, atol=1e-8)
        assert many.num_steps[i] == one.num_steps
        assert many.status[i] == one.status


def test_one_cluster_and_a_cluster_that_may_have_nothing():
    one = dk.soft_assign_bounded(X, C[:1], temperature=1.0, min_size=40, max_size=40)
    np.testing.assert_allclose(one, 1)
    high = np.array([20.0, 0.0, 20.0, 40.0])
    plan = dk.soft_assign_bounded(X, C, temperature=1.0, max_size=high)
    np.testing.assert_array_equal(plan[:, 1], 0)
    others = np.array([0, 2, 3])
    fewer = dk.soft_assign_bounded(X, C[others], temperature=1.0, max_size=high[others])
    np.testing.assert_allclose(plan[:, others], fewer, rtol=1e-8)
    closed = dk.fit_bounded(X, C, temperature=1.0, max_size=high)
    assert status(closed) == dk.Status.CONVERGED | dk.Status.EMPTY_CLUSTER


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_size": 11},
        {"max_size": 9},
        {"min_size": 5, "max_size": 4},
        {"min_size": -1},
    ],
)
def test_traced_sizes_that_cannot_be_met_are_never_a_result(bounds):
    traced = {key: jnp.asarray(value) for key, value in bounds.items()}
    result = dk.fit_bounded(X, C, temperature=1.0, **traced)
    assert dk.Status.NON_FINITE in status(result)
    assert dk.Status.CONVERGED not in status(result)
    assert np.isnan(result.loss)
    plan = dk.soft_assign_bounded(X, C, temperature=1.0, **traced)
    assert np.isnan(plan).all()


@pytest.mark.parametrize("temperature", [-1.0, 0.0, np.nan, np.inf])
def test_traced_temperatures_that_are_none_never_converge(temperature):
    result = dk.fit_bounded(X, C, temperature=jnp.asarray(temperature), max_size=11)
    assert dk.Status.NON_FINITE in status(result)
    assert dk.Status.CONVERGED not in status(result)
