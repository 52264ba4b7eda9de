"""certificate: what it licenses holds, up to rounding, and not much more would."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import diffkm_jax as dk
from diffkm_jax.diagnostics._curvature import smallest_eigenvalue

RNG = np.random.default_rng(0)
N, K, D = 60, 4, 3
X = jnp.asarray(RNG.normal(size=(N, D)))
C = jnp.asarray(RNG.normal(size=(K, D)))
W = jnp.asarray(RNG.uniform(0.2, 2, N))
ONES = jnp.ones(N)
T = 0.8
BELOW, ABOVE = 1 - 1e-6, 1 + 1e-6
LAWS = pytest.mark.parametrize("temperature", [None, T], ids=["hard", "soft"])


def close(ours, theirs, **tolerance):
    tolerance = {"rtol": 1e-9, "atol": 1e-11} | tolerance
    for name, a, b in zip(dk.Certificate._fields, ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


def nearest_two(x, c):
    """Distances to the two nearest centroids, [2, n], and which these are."""
    x, c = (np.asarray(a, np.float64) for a in (x, c))
    distances = np.linalg.norm(x[:, None] - c[None], axis=-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :2]
    return np.take_along_axis(distances, order, axis=1).T, order.T


# Margins, and what they allow.


@pytest.mark.parametrize("block_size", [None, 7])
def test_margins_are_those_of_all_distances(block_size):
    (near, far), (first, _) = nearest_two(X, C)
    found = dk.certificate(X, C, weights=W, block_size=block_size)
    np.testing.assert_allclose(found.margin, far**2 - near**2, rtol=1e-12)
    assert (first == np.asarray(dk.assign(X, C))).all()
    np.testing.assert_allclose(found.label_radius, np.min(far - near) / 2, rtol=1e-6)
    assert found.num_undecided == 0


def test_margins_far_from_all_centroids_do_not_cancel():
    found = dk.certificate(X + 1e7, C, weights=W).margin
    x, c = (np.asarray(a, np.longdouble) for a in (X + 1e7, C))
    squared = np.sort(np.sum((x[:, None] - c[None]) ** 2, axis=-1), axis=1)
    expected = (squared[:, 1] - squared[:, 0]).astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def pushed(x, c, radius):
    """The centroids, moved by `radius` so as to change the label of some point.

    That of the point nearest to another label.
    """
    (near, far), labels = nearest_two(x, c)
    i = np.argmin(far - near)
    x, c, (a, b) = np.asarray(x, np.float64), np.array(c, np.float64), labels[:, i]
    c[a] += radius * (c[a] - x[i]) / near[i]
    c[b] += radius * (x[i] - c[b]) / far[i]
    return jnp.asarray(c)


def test_no_label_changes_below_the_label_radius_and_one_does_above():
    radius = float(dk.certificate(X, C, weights=W).label_radius)
    before = dk.assign(X, C)
    assert (dk.assign(X, pushed(X, C, BELOW * radius)) == before).all()
    assert (dk.assign(X, pushed(X, C, ABOVE * radius)) != before).sum() == 1
    moves = np.random.default_rng(1).normal(size=(50, K, D))
    moves *= BELOW * radius / np.linalg.norm(moves, axis=-1, keepdims=True)
    after = jax.vmap(lambda move: dk.assign(X, C + move))(jnp.asarray(moves))
    assert (after == before[None]).all()


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_label_radius_holds_for_labels_computed_in_float32(offset):
    rng = np.random.default_rng(2)
    x = jnp.asarray(offset + 10 * rng.normal(size=(2000, 6, 2)), jnp.float32)
    c = jnp.asarray(offset + 10 * rng.normal(size=(2000, 5, 2)), jnp.float32)
    radius = np.asarray(jax.vmap(dk.certificate)(x, c).label_radius, np.float64)
    args = zip(np.asarray(x), np.asarray(c), BELOW * radius, strict=True)
    moved = jnp.asarray(np.stack([pushed(*a) for a in args]), jnp.float32)
    lengths = np.linalg.norm(np.asarray(moved, float) - np.asarray(c, float), axis=-1)
    inside = lengths.max(axis=1) < radius
    assert inside.sum() > 400
    assign = jax.vmap(dk.assign)
    kept = (assign(x, moved) == assign(x, c)).all(axis=1)
    assert kept[inside].all()


def test_ties_are_undecided_and_leave_no_radius():
    x = jnp.asarray([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0], [-3.0, 0.0]])
    c = jnp.asarray([[-1.0, 0.0], [1.0, 0.0]])
    found = dk.certificate(x, c)
    assert (found.margin == jnp.asarray([0.0, 0.0, 4.0, 12.0])).all()
    assert found.num_undecided == 2
    assert found.label_radius == found.point_radius == 0
    assert not found.valid
    # Also where both distances are zero.
    same = dk.certificate(jnp.zeros((4, 2)), jnp.zeros((2, 2)))
    assert same.num_undecided == 4
    assert same.label_radius == 0


def test_what_float32_leaves_undecided_float64_decides():
    x = np.float64([[0, 0], [3, 0], [4, 0], [5, 0]])
    c = np.float64([[-1, 0], [1 + 2.0**-22, 0]])
    wide = dk.certificate(x, c)
    narrow = dk.certificate(np.float32(x), np.float32(c))
    assert (narrow.num_undecided, wide.num_undecided) == (1, 0)
    assert narrow.label_radius == 0 < wide.label_radius
    np.testing.assert_allclose(wide.label_radius, 2.0**-23, rtol=1e-6)


@LAWS
def test_one_cluster_has_no_second_and_data_that_are_not_finite_are_not_valid(
    temperature,
):
    certificate = partial(dk.certificate, weights=W, temperature=temperature)
    found = certificate(X, C[:1])
    assert np.isinf(found.margin).all()
    assert np.isinf(found.label_radius)
    assert found.valid
    np.testing.assert_allclose(found.smallest_eigenvalue, 2 * W.sum())
    assert not certificate(X.at[3, 1].set(jnp.nan), C[:1]).valid
    # A step of zero, but a loss that overflows.
    far = jnp.tile(jnp.asarray([[1e200], [-1e200]]), (N // 2, D))
    assert not certificate(far, 0 * C[:1], weights=ONES).valid


@LAWS
def test_inactive_clusters_are_as_if_removed(temperature):
    c = jnp.concatenate([C, jnp.full((2, D), jnp.nan)])[jnp.asarray([4, 0, 1, 5, 2, 3])]
    on = jnp.isfinite(c).all(axis=1)
    options = {"temperature": temperature, "weights": W}
    # Lanczos ends early: of the 18 steps it would take, 12 are possible.
    close(dk.certificate(X, c, active=on, **options), dk.certificate(X, C, **options))
    assert not dk.certificate(X, c, active=on & False, **options).valid
    one = dk.certificate(X, c, active=on & (jnp.cumsum(on) == 2), **options)
    assert np.isinf(one.label_radius)
    np.testing.assert_allclose(one.smallest_eigenvalue, 2 * W.sum())


@LAWS
def test_rows_of_weight_zero_do_not_count(temperature):
    w = W.at[-2:].set(0.0)
    bad = X.at[-2].set(jnp.nan).at[-1].set((C[0] + C[1]) / 2)
    found, expected = (
        dk.certificate(x, C, weights=w, temperature=temperature) for x in (bad, X)
    )
    margins = found.margin[:-2], expected.margin[:-2]
    close(found._replace(margin=margins[0]), expected._replace(margin=margins[1]))
    assert found.num_undecided == 0
    mass = dk.statistics(X[:-2], C, weights=W[:-2]).counts.sum()
    one = dk.certificate(bad, C[:1], weights=w, temperature=temperature)
    np.testing.assert_allclose(one.smallest_eigenvalue, 2 * mass)


# Curvature.


@jax.jit
def hessian(x, c, w, t):
    return jax.hessian(lambda c: dk.soft_kmeans_loss(x, c, weights=w, temperature=t))(c)


def eigenvalues(x, c, w, t):
    """Of the dense Hessian, in float64."""
    x, c, w = (jnp.asarray(a, jnp.float64) for a in (x, c, w))
    return np.linalg.eigvalsh(hessian(x, c, w, t).reshape(c.size, c.size))


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_the_smallest_eigenvalue_is_that_of_the_hessian(temperature):
    found = dk.certificate(X, C, weights=W, temperature=temperature)
    expected = eigenvalues(X, C, W, temperature)[0]
    assert abs(found.smallest_eigenvalue - expected) <= found.eigenvalue_error
    assert found.eigenvalue_error < 1e-12 * N


def test_an_unfinished_lanczos_is_near_some_eigenvalue_and_above_the_smallest():
    exact = eigenvalues(X, C, W, T)
    found = dk.certificate(X, C, weights=W, temperature=T, num_iterations=6)
    value, error = found.smallest_eigenvalue, found.eigenvalue_error
    assert np.abs(exact - value).min() <= error
    assert value > exact[0] + 1e-6
    assert error > 1e-3


def test_the_error_of_an_unfinished_lanczos_falls_as_it_converges():
    rng = np.random.default_rng(7)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    exact = np.array([-1.0, *rng.uniform(0, 1, 59)])
    matrix = basis @ np.diag(exact) @ basis.T
    start = jnp.asarray(rng.normal(size=(20, 3)))

    def product(v):
        return (jnp.asarray(matrix) @ v.reshape(-1)).reshape(v.shape)

    errors = []
    for steps in (8, 20):
        value, error = smallest_eigenvalue(product, start, steps)
        assert np.abs(exact - value).min() <= error + 1e-14
        errors.append(error)
    assert 1e-3 > errors[0] > 1e-6 > 1e-9 > errors[1]


def test_equal_eigenvalues_end_lanczos_early_at_the_right_one():
    # At low temperature the Hessian is 2 counts, each of them d times.
    x = jnp.repeat(C * 10, jnp.asarray([30, 5, 15, 10]), axis=0)
    found = dk.certificate(x, C * 10, weights=ONES, temperature=1e-2)
    np.testing.assert_allclose(found.smallest_eigenvalue, 10, rtol=1e-12)
    assert found.eigenvalue_error < 1e-7
    assert found.valid


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.5, 2.0, 20.0])
def test_the_error_of_an_eigenvalue_covers_float32(temperature):
    for seed, offset in enumerate([0.0, 0.0, 0.0, 1e3, 1e3, 1e3]):
        rng = np.random.default_rng(seed)
        x, c = (offset + rng.normal(size=a.shape) for a in (X, C))
        x, c, w = (jnp.asarray(a, jnp.float32) for a in (x, c, W))
        found = dk.certificate(x, c, weights=w, temperature=temperature)
        value, error = map(float, (found.smallest_eigenvalue, found.eigenvalue_error))
        assert abs(value - eigenvalues(x, c, w, temperature)[0]) <= error


def test_the_hard_eigenvalue_is_twice_the_smallest_count():
    found = dk.certificate(X, C, weights=W)
    assert found.smallest_eigenvalue == 2 * dk.statistics(X, C, weights=W).counts.min()
    assert found.eigenvalue_error == 0


@LAWS
def test_an_empty_cluster_is_left_out(temperature):
    options = {"weights": W, "temperature": temperature, "num_iterations": C.size}
    with_empty = dk.certificate(X, C.at[2].set(1e3), **options)
    without = dk.certificate(X, jnp.delete(C, 2, axis=0), **options)
    assert with_empty.valid == without.valid
    assert abs(without.smallest_eigenvalue) > 1e-3
    np.testing.assert_allclose(
        with_empty.smallest_eigenvalue, without.smallest_eigenvalue, rtol=1e-8
    )


@LAWS
@pytest.mark.parametrize("weights", [ONES, W], ids=["ones", "weights"])
def test_the_critical_temperature_is_that_of_the_covariance(temperature, weights):
    covariance = np.cov(X.T, aweights=weights, ddof=0)
    expected = 2 * np.linalg.eigvalsh(covariance)[-1]
    options = {"weights": weights, "temperature": temperature}
    found = dk.certificate(X + 1e6, C + 1e6, **options).critical_temperature
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_merged_centroids_are_a_minimum_above_the_critical_temperature_only():
    merged = jnp.tile(jnp.average(X, 0, W), (K, 1))
    certificate = partial(dk.certificate, X, merged, weights=W)
    critical = certificate(temperature=T).critical_temperature
    above = certificate(temperature=1.01 * critical)
    below = certificate(temperature=0.99 * critical)
    assert above.smallest_eigenvalue > above.eigenvalue_error
    assert above.valid
    assert below.smallest_eigenvalue < -below.eigenvalue_error
    assert not below.valid
    assert np.isinf(below.distance)


# Distance, and validity.


def rest(temperature):
    options = {"weights": W, "temperature": temperature, "max_steps": 3000}
    return dk.fit(X, C, tol=0.0, **options).centroids


@LAWS
def test_the_gradient_and_the_residual_are_those_of_the_statistics(temperature):
    c = rest(temperature) + 1e-2 * C
    found = dk.certificate(X, c, weights=W, temperature=temperature)
    stats = dk.statistics(X, c, weights=W, temperature=temperature)
    steps = stats.shifts / stats.counts[:, None]
    np.testing.assert_allclose(found.residual, jnp.sum(steps**2), rtol=1e-12)
    norm = jnp.linalg.norm(-2 * stats.shifts)
    np.testing.assert_allclose(found.gradient_norm, norm, rtol=1e-12)
    newton = jnp.linalg.norm(steps)
    expected = newton if temperature is None else norm / found.smallest_eigenvalue
    np.testing.assert_allclose(found.distance, expected, rtol=1e-12)


def test_the_distance_bounds_the_way_to_the_minimum_of_a_soft_loss():
    found = dk.certificate(X, rest(T), weights=W, temperature=T)
    assert found.valid
    move = 1e-4 * jnp.asarray(RNG.normal(size=(K, D)))
    distance = dk.certificate(X, rest(T) + move, weights=W, temperature=T).distance
    assert 0.99 * jnp.linalg.norm(move) < distance
    assert found.distance < 1e-6 * distance


def groups(weight=1.0):
    """Points about far centroids, their means, and four in between of some weight."""
    rng = np.random.default_rng(5)
    c = 10 * np.concatenate([np.eye(3), -np.eye(3)[:1]])
    x = np.concatenate([c + e for e in rng.normal(size=(14, 4, 3))])
    between = (c[0] + c[1]) / 2 + 0.05 * rng.normal(size=(4, 3))
    x = jnp.asarray(np.concatenate([x, between]))
    w = jnp.asarray([1.0] * 56 + [weight] * 4)
    return x, dk.fit(x, jnp.asarray(c), weights=w, tol=0.0).centroids, w


def test_a_fit_at_rest_is_valid_and_one_on_its_way_is_not():
    x, c, w = groups()
    found = dk.certificate(x, c, weights=w)
    assert found.valid
    assert not dk.certificate(x, c + 2 * found.label_radius, weights=w).valid
    on_its_way = dk.fit(X, C, weights=W, max_steps=1).centroids
    assert not dk.certificate(X, on_its_way, weights=W).valid
    assert dk.certificate(X, rest(None), weights=W).valid


def test_what_is_valid_keeps_its_labels_one_step_on():
    x, c, w = groups()
    rng = np.random.default_rng(3)
    moves = 10.0 ** rng.uniform(-4, 1, size=(200, 1, 1)) * rng.normal(size=(200, 4, 3))

    @jax.vmap
    def around(move):
        stats = dk.statistics(x, c + move)
        counts = jnp.where(stats.counts > 0, stats.counts, 1)
        after = c + move + stats.shifts / counts[:, None]
        kept = dk.assign(x, c + move) == dk.assign(x, after)
        return dk.certificate(x, c + move, weights=w).valid, kept.all()

    valid, kept = around(jnp.asarray(moves))
    assert 20 < valid.sum() < 180
    assert kept[valid].all()


@pytest.mark.parametrize("displaced", [0.0, 1e-3])
def test_points_that_move_below_the_point_radius_keep_their_labels(displaced):
    x, c, w = groups(weight=1e-3)
    c = c.at[:, 2].add(displaced)
    found = dk.certificate(x, c, weights=w)
    assert found.valid
    radius = float(found.point_radius)
    rng = np.random.default_rng(6)
    axis = np.tile(c[1] - c[0], (N, 1))
    # All along an axis, or those in between against the others, or anyhow.
    against = np.where(np.asarray(w) == 1, 1, -1)[:, None] * axis
    moves = np.stack([axis, -axis, against, -against, *rng.normal(size=(10, N, D))])
    moves *= BELOW * radius / np.linalg.norm(moves, axis=-1, keepdims=True)

    @jax.vmap
    def again(move):
        result = dk.fit(x + move, c, weights=w, tol=0.0)
        return result.labels, result.num_steps

    labels, steps = again(jnp.asarray(moves))
    assert (labels == dk.assign(x, c)[None]).all()
    assert (steps <= 3).all()


@pytest.mark.parametrize("displaced", [0.0, 0.1])
def test_the_point_radius_cannot_be_larger(displaced):
    x = jnp.asarray([[0.0, 0.0], [10.0, 0.0], [4.0, 0.0], [-1.0, 0.0]])
    w = jnp.asarray([1.0, 1.0, 1e-12, 0.0])
    # So displaced, the third point is farther from another label than at rest.
    c = x[:2] + jnp.asarray([[displaced, 0.0]])
    found = dk.certificate(x, c, weights=w)
    np.testing.assert_allclose(found.label_radius, 1 + displaced, rtol=1e-6)
    np.testing.assert_allclose(found.point_radius, 0.5, rtol=1e-6)
    apart = jnp.asarray([[-0.5, 0.0], [-0.5, 0.0], [0.5, 0.0], [0.0, 0.0]])
    below, above = (x + f * apart for f in (1 - 1e-5, 1 + 1e-5))
    assert dk.fit(below, c, weights=w, tol=0.0).labels[2] == 0
    assert dk.fit(above, c, weights=w, tol=0.0).labels[2] == 1


@LAWS
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_not_valid(temperature, bad):
    c = rest(temperature)
    certificate = partial(dk.certificate, temperature=temperature)
    assert certificate(X, c, weights=W).valid
    row = certificate(X.at[3, 1].set(bad), c, weights=W)
    assert row.label_radius == 0
    assert row.num_undecided == 1
    centroid = certificate(X, c.at[1, 0].set(bad), weights=W)
    weight = certificate(X, c, weights=W.at[2].set(bad))
    assert not any(found.valid for found in (row, centroid, weight))


@LAWS
def test_data_without_weight_are_not_valid(temperature):
    found = dk.certificate(X, C, weights=0 * W, temperature=temperature)
    assert not found.valid
    assert found.smallest_eigenvalue == 0
    assert found.num_undecided == 0


# Programs.


@LAWS
def test_jit_and_vmap_equal_an_eager_loop(temperature):
    starts = jnp.stack([C, 2 * C, jnp.tile(X.mean(0), (K, 1))])
    certificate = partial(dk.certificate, X, weights=W, temperature=temperature)
    batch = jax.jit(jax.vmap(certificate))(starts)
    for i, c in enumerate(starts):
        close([leaf[i] for leaf in batch], certificate(c))


@LAWS
def test_four_devices_equal_one(temperature):
    options = {"temperature": temperature, "axis_name": "data", "block_size": 8}
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    out = dk.Certificate(*(whole for _ in dk.Certificate._fields))
    on_mesh = jax.jit(
        jax.shard_map(
            lambda x, c, w: dk.certificate(x, c, weights=w, **options),
            mesh=mesh,
            in_specs=(rows, whole, rows),
            out_specs=out._replace(margin=rows),
        )
    )
    # Once more with two points on a tie, on different devices.
    c = C.at[1].set(-C[0])
    tied = X.at[jnp.asarray([1, 31])].set(0.0)
    for x in (X, tied):
        expected = dk.certificate(x, c, weights=W, temperature=temperature)
        close(on_mesh(x, c, W), expected)


def test_export_keeps_the_type_for_any_number_of_points():
    (n,) = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct(s, X.dtype) for s in ((n, D), (K, D))]
    exported = jax.export.export(jax.jit(dk.certificate))(*shapes)
    found = jax.export.deserialize(exported.serialize()).call(X, C)
    assert isinstance(found, dk.Certificate)
    close(found, dk.certificate(X, C, weights=ONES))


def test_derivatives_are_zero():
    def total(x, c, w, t):
        found = dk.certificate(x, c, weights=w, temperature=t)
        return sum(jnp.sum(leaf.astype(x.dtype)) for leaf in found)

    args = X, C, W, jnp.asarray(T)
    gradients = jax.jit(jax.grad(total, (0, 1, 2, 3)))(*args)
    hard = jax.jit(jax.grad(partial(total, t=None), (0, 1, 2)))(*args[:3])
    for leaf in (*gradients, *hard):
        assert (leaf == 0).all()
    tangent = jax.jit(lambda *args: jax.jvp(total, args, args)[1])(*args)
    assert tangent == 0


@LAWS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_everything_is_in_the_accumulation_dtype(temperature, dtype):
    x, c = (jax.ShapeDtypeStruct(a.shape, dtype) for a in (X, C))
    certificate = partial(dk.certificate, temperature=temperature)
    acc = jnp.float64 if dtype == jnp.float64 else jnp.float32
    other = {"num_undecided": jnp.int32, "valid": jnp.bool_}
    for name, leaf in jax.eval_shape(certificate, x, c)._asdict().items():
        assert leaf.dtype == other.get(name, acc), name


# Errors.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": np.ones((N, D), complex)}, TypeError, "points must be floating"),
        (
            {"centroids": np.ones((K, D), complex)},
            TypeError,
            "centroids must be floating",
        ),
        ({"weights": np.ones(N, complex)}, TypeError, "weights must be floating"),
        ({"active": np.ones(K)}, TypeError, "active must be bool"),
        ({"num_iterations": 2.0}, TypeError, "num_iterations must be a Python integer"),
        ({"block_size": 2.0}, TypeError, "block_size must be a Python integer"),
        ({"points": X[0]}, ValueError, r"points must be \[n, d\]"),
        ({"centroids": C[:, :2]}, ValueError, r"centroids must be \[k, d\]"),
        ({"weights": W[1:]}, ValueError, r"weights must be \[n\]"),
        ({"active": np.ones(K + 1, bool)}, ValueError, r"active must be \[k\]"),
        ({"temperature": np.ones(2)}, ValueError, "temperature must be a scalar"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and pos.*0.0"),
        (
            {"temperature": np.inf},
            ValueError,
            "temperature must be finite and pos.*inf",
        ),
        ({"centroids": dk.init(C)}, TypeError, "pass its .centroids"),
        ({"temperature": lambda step: 1.0}, TypeError, "pass result.temperature"),
        ({"num_iterations": 0}, ValueError, "num_iterations must be at least 1, got 0"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
    ],
)
def test_errors(change, error, message):
    arguments = {"points": X, "centroids": C} | change
    points, centroids = arguments.pop("points"), arguments.pop("centroids")
    with pytest.raises(error, match=message):
        dk.certificate(points, centroids, **arguments)
