"""Fits under a distance that is not defined everywhere say so, in both packages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import PartitionSpec as P

import diffkm_jax as dk
import diffkm_torch as dt

X = np.random.default_rng(0).uniform(1, 2, (8, 2))
C = X[:2].copy()
NAMES = ["cosine", "kl_divergence", "itakura_saito"]
TORCH_DESCENT = dt.sgd(1e-3)
SHORT = {"optimizer": optax.sgd(1e-3), "max_steps": 3, "tol": 0.0, "derivative": "none"}


def jax_status(x, c, name, **options):
    # Of NumPy's arrays the numbers would be read, and refused.
    x, c = jnp.asarray(x), jnp.asarray(c)
    result = dk.fit(x, c, distance=getattr(dk, name), **SHORT, **options)
    return result.flags


def torch_status(x, c, name, **options):
    options = {key: torch.tensor(value) for key, value in options.items()}
    options |= {"optimizer": TORCH_DESCENT, "max_steps": 3, "tol": 0.0}
    x, c = torch.tensor(x), torch.tensor(c)
    return dk.Status(dt.fit(x, c, distance=getattr(dt, name), **options).flags)


BOTH = pytest.mark.parametrize("status", [jax_status, torch_status])


def set_at(array, index, value):
    array = array.copy()
    array[index] = value
    return array


OUTSIDE = {
    "a zero row": ("cosine", (3,), 0.0),
    "a subnormal row": ("cosine", (3,), 1e-310),
    "a negative number": ("kl_divergence", (3, 1), -1e-3),
    "a negative power": ("itakura_saito", (3, 1), -1e-3),
    "a power of zero": ("itakura_saito", (3, 1), 0.0),
}


@BOTH
@pytest.mark.parametrize("case", OUTSIDE)
def test_a_point_outside_is_flagged_and_one_of_weight_zero_is_not(status, case):
    name, index, value = OUTSIDE[case]
    x = set_at(X, index, value)
    assert dk.Status.DOMAIN in status(x, C, name)
    w = set_at(np.ones(8), 3, 0.0)
    assert dk.Status.DOMAIN not in status(x, C, name, weights=w)
    assert dk.Status.DOMAIN in status(x, C, name, weights=1e-30 * np.ones(8))


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [("cosine", 0.0), ("kl_divergence", -1e-3), ("itakura_saito", 0.0)],
)
def test_a_centroid_outside_is_flagged_and_an_inactive_one_is_not(status, name, value):
    c = set_at(C, 1, value)
    assert dk.Status.DOMAIN in status(X, c, name)
    active = np.array([True, False])
    assert dk.Status.DOMAIN not in status(X, c, name, active=active)


@BOTH
@pytest.mark.parametrize("name", NAMES)
def test_a_fit_inside_ends_as_before(status, name):
    x, c = X.astype("float16"), C.astype("float16")
    assert status(x, c, name) == dk.Status.MAX_STEPS
    x[3, 1] = 0  # Which a point may be, but for powers.
    outside = dk.Status.DOMAIN in status(x, c, name)
    assert outside == (name == "itakura_saito")
    assert status(-X, -C, "euclidean") == dk.Status.MAX_STEPS


@BOTH
def test_a_mean_of_zeros_is_inside_for_kl_divergence(status):
    x = set_at(X, (slice(0, 2), 1), 0.0)
    c = x[:2].copy()
    assert dk.Status.DOMAIN not in status(x, c, "kl_divergence")


@BOTH
def test_a_centroid_that_leaves_the_domain_is_flagged(status):
    # All points are 0 there, and so the gradient is the count.
    x = set_at(X, (slice(None), 1), 0.0)
    assert dk.Status.DOMAIN not in status(x, C, "kl_divergence")
    assert dk.Status.DOMAIN in status(x, set_at(C, (0, 1), 1e-6), "kl_divergence")


@BOTH
@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_finite_and_has_a_domain(status, name):
    x = set_at(X, (3, 1), np.nan)
    assert status(x, C, name) == dk.Status.NON_FINITE


def test_a_zero_centroid_that_never_moves_is_told_from_a_fit_that_converged():
    x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    start = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    result = dk.fit(x, start, distance=dk.cosine, optimizer=optax.sgd(0.1))
    np.testing.assert_array_equal(result.centroids[1], 0)
    ended = result.flags
    assert {dk.Status.CONVERGED, dk.Status.DOMAIN} <= set(ended)


def test_a_distance_of_ones_own_has_no_domain():
    result = dk.fit(X * 0, C * 0, distance=lambda x, y: dk.cosine(x, y), **SHORT)
    assert dk.Status.DOMAIN not in result.flags


def test_every_fit_of_a_batch_has_its_own_flag():
    x = jnp.stack([X, set_at(X, 3, 0.0)])
    found = jax.vmap(lambda x: dk.fit(x, C, distance=dk.cosine, **SHORT).status)(x)
    assert [dk.Status.DOMAIN in dk.Status(int(s)) for s in found] == [False, True]


def test_all_devices_know_of_a_point_outside():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("data"), out_specs=P())
    def status(x):
        return dk.fit(x, C, axis_name="data", distance=dk.cosine, **SHORT).status

    assert dk.Status.DOMAIN in dk.Status(int(status(set_at(X, 3, 0.0))))
    assert dk.Status.DOMAIN not in dk.Status(int(status(X)))


def test_restarts_flag_points_and_starts_outside():
    def status(x, initializer):
        options = {"distance": dk.kl_divergence, "initializer": initializer} | SHORT
        result = dk.fit_restarts(jax.random.key(0), x, 2, num_restarts=2, **options)
        return result.flags

    def first(key, points, k, *, weights):
        return points[:k]

    zero = set_at(X, (0, 0), 0.0)
    assert dk.Status.DOMAIN not in status(X, first)
    assert dk.Status.DOMAIN in status(set_at(X, (5, 0), -1.0), first)
    assert dk.Status.DOMAIN in status(zero, first)


@pytest.mark.parametrize("case", OUTSIDE)
def test_numbers_that_numpy_holds_are_refused(case):
    name, index, value = OUTSIDE[case]
    distance, bad = getattr(dk, name), set_at(X, index, value)
    for call in (dk.kmeans_loss, dk.fit, dk.statistics, dk.assign, dk.quantize):
        with pytest.raises(ValueError, match=rf"^points must .* under {name}, .*row 3"):
            call(bad, C, distance=distance)
    with pytest.raises(ValueError, match=rf"^centroids must .* under {name}"):
        dk.kmeans_loss(X, bad[3:], distance=distance)
    # What no weight has is nowhere; what JAX holds is not read.
    weights = set_at(np.ones(8), 3, 0.0)
    assert jnp.isfinite(dk.kmeans_loss(bad, C, weights=weights, distance=distance))
    dk.kmeans_loss(jnp.asarray(bad), C, distance=distance)
    dk.kmeans_loss(set_at(X, (3, 0), np.nan), C, distance=distance)


def entropy(v):
    return jnp.sum(v * jnp.log(v))


def concave(v):
    return -jnp.sum(v**2)


def test_where_phi_is_not_finite_is_refused_or_flagged():
    distance, bad = dk.bregman(entropy), set_at(X, (3, 1), -1.0)
    with pytest.raises(ValueError, match=r"^points must be where phi is finite under"):
        dk.kmeans_loss(bad, C, distance=distance)
    with pytest.raises(ValueError, match=r"^points must be where phi is finite under"):
        jax.jit(lambda c: dk.kmeans_loss(bad, c, distance=distance))(C)
    status = dk.fit(jnp.asarray(bad), C, distance=distance).status
    assert dk.Status.DOMAIN | dk.Status.NON_FINITE in dk.Status(int(status))
    assert not dk.fit(X, C, distance=distance).status & dk.Status.DOMAIN.value


@pytest.mark.parametrize("distance", [
    dk.bregman(concave), dk.mahalanobis(jnp.diag(jnp.array([1.0, -1.0])))
])  # fmt: skip
def test_a_negative_divergence_is_flagged(distance):
    result = dk.fit(X, C, distance=distance, max_steps=2)
    assert dk.Status.DOMAIN in result.flags


@pytest.mark.parametrize("soft", [False, True])
def test_zeros_are_inside_of_kullback_leibler_and_so_is_a_mean_of_zeros(soft):
    x = jnp.array([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [2.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    c = jnp.array([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    t = jnp.asarray(0.5) if soft else None
    stats = dk.statistics(x, c, distance=dk.kl_divergence, temperature=t)
    # x log(x/c) − x + c with 0 log 0 = 0, infinite where c = 0 < x.
    by_hand = np.array([
        [1.0, np.log(0.5) + 1], [3 * np.log(3) - 1, 3 * np.log(1.5) - 1],
        [2 * np.log(2) - 1, np.inf], [2 * np.log(2), 0.0],
    ])  # fmt: skip
    if soft:
        expected = -0.5 * np.log(np.exp(-by_hand / 0.5).sum(1)).sum()
    else:
        expected = by_hand.min(1).sum()
    np.testing.assert_allclose(stats.loss, expected, rtol=1e-12)

    def loss(x, c):
        if soft:
            return dk.soft_kmeans_loss(x, c, temperature=t, distance=dk.kl_divergence)
        return dk.kmeans_loss(x, c, distance=dk.kl_divergence)

    for_x, for_c = jax.grad(loss, (0, 1))(x, c)
    # By convention 0 in x = 0; and 1 for every point in c = 0 = x.
    np.testing.assert_array_equal(for_x[:, 2], 0)
    np.testing.assert_allclose(for_c[:, 2], stats.counts)
    assert jnp.isfinite(for_x).all()
    assert jnp.isfinite(for_c).all()
    result = dk.fit(x, c, distance=dk.kl_divergence, temperature=t, tol=0.0)
    assert result.flags == dk.Status.CONVERGED
    assert jnp.isfinite(result.centroids).all()
    means = jax.grad(lambda x: dk.fit(x, c, distance=dk.kl_divergence).centroids.sum())
    np.testing.assert_allclose(means(x).sum(), 6.0)


SPARSE = np.array([[0, 1], [0, 2], [0, 1], [3, 1], [4, 2]], np.float32)
NEAR_ZERO = np.array([[0.1, 1], [3, 1]], np.float32)
UPDATES = ["newton", "macqueen", "ema"]


@pytest.mark.parametrize("optimizer", UPDATES)
@pytest.mark.parametrize("temperature", [None, 0.01])
def test_rounding_takes_no_mean_of_zeros_below_zero(optimizer, temperature):
    # 0.1 − (0.1 + 0.1 + 0.1) / 3 is −7e-9 in float32.
    options = {"max_steps": 30, "temperature": temperature}
    options |= {"tol": 0.0 if optimizer == "ema" else 1e-4}
    found = dk.fit(
        *map(jnp.asarray, (SPARSE, NEAR_ZERO)),
        distance=dk.kl_divergence,
        optimizer=getattr(dk, optimizer)(),
        **options,
    )
    twin = dt.fit(
        *map(torch.tensor, (SPARSE, NEAR_ZERO)),
        distance=dt.kl_divergence,
        optimizer=getattr(dt, optimizer)(),
        **options,
    )
    for result in (found, twin):
        assert not {"NON_FINITE", "DOMAIN"} & {*str(result.flags).split("|")}
        assert float(result.centroids.min()) >= 0
    assert float(found.centroids[0, 0]) < 0.1
    np.testing.assert_allclose(found.centroids, twin.centroids.numpy(), atol=1e-6)


def test_sparse_counts_converge_from_every_start():
    def fit(key):
        x = jax.random.poisson(key, 0.5, (400, 8)).astype(jnp.float32)
        return dk.fit(x, x[:4] + jnp.float32(0.1), distance=dk.kl_divergence)

    keys = jax.random.split(jax.random.key(0), 40)
    assert jax.jit(jax.vmap(fit))(keys).converged.all()


@pytest.mark.parametrize("derivative", ["implicit", "unrolled", "one_step"])
def test_a_mean_that_rounding_would_take_below_zero_has_the_slope_of_a_mean(derivative):
    def mean(x):
        options = {"distance": dk.kl_divergence, "derivative": derivative}
        return dk.fit(x, jnp.asarray(NEAR_ZERO), **options).centroids[0, 0]

    slope = jax.grad(mean)(jnp.asarray(SPARSE))
    np.testing.assert_allclose(slope[:, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0], rtol=1e-6)


def test_a_step_far_below_zero_is_still_flagged():
    descent = {"optimizer": optax.sgd(1.0), "max_steps": 1, "derivative": "none"}
    x, c = map(jnp.asarray, (SPARSE, NEAR_ZERO))
    found = dk.fit(x, c, distance=dk.kl_divergence, **descent)
    assert dk.Status.DOMAIN in found.flags
