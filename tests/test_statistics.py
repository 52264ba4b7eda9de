"""The blocked pass: values against dense formulas, every derivative, memory, meshes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import diffkm_jax as dk

RNG = np.random.default_rng(0)
N, K, D = 53, 6, 4
X = jnp.asarray(RNG.normal(size=(N, D)))
C = jnp.asarray(RNG.normal(size=(K, D)))
W = jnp.asarray(RNG.uniform(0.2, 2, N))
T = jnp.asarray(0.8)


@jax.jit
def dense(x, c, w, t=None):
    """The formulas of the docstring, with [n, k] arrays and plain autodiff."""
    squared = jnp.sum((x[:, None] - c[None]) ** 2, axis=-1)
    if t is None:
        r = jax.nn.one_hot(jnp.argmin(squared, 1), len(c), dtype=x.dtype)
        loss = jnp.sum(w * jnp.sum(r * squared, axis=1))
    else:
        r = jax.nn.softmax(-squared / t, axis=1)
        loss = -t * jnp.sum(w * jax.nn.logsumexp(-squared / t, axis=1))
    wr = w[:, None] * r
    shifts = jnp.einsum("nk,nkd->kd", wr, x[:, None] - c[None])
    return dk.Statistics(loss, wr.sum(0), shifts)


def ours(x, c, w, t=None, **options):
    return dk.statistics(x, c, weights=w, temperature=t, **options)


LAWS = {"hard": (X, C, W), "soft": (X, C, W, T)}


def close(a, b, atol=1e-11):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("block_size", [None, 1, 7, 53, 100])
@pytest.mark.parametrize("law", LAWS)
def test_values_are_the_formulas_for_every_block_size(law, block_size):
    close(ours(*LAWS[law], block_size=block_size), dense(*LAWS[law]))


@pytest.mark.parametrize("law", LAWS)
def test_unweighted_is_weight_one(law):
    x, c, w, *t = LAWS[law]
    close(ours(x, c, None, *t, block_size=8), dense(x, c, jnp.ones_like(w), *t))


@pytest.mark.parametrize("k", [1, 33, 53])
@pytest.mark.parametrize("law", LAWS)
def test_one_many_and_as_many_clusters_as_points(law, k):
    x, _, w, *t = LAWS[law]
    c = x[:k] + 0.01
    close(ours(x, c, w, *t, block_size=8), dense(x, c, w, *t))
    labels = jnp.argmin(dk.pairwise(x, c), axis=1)
    np.testing.assert_array_equal(dk.assign(x, c, block_size=8), labels)


@pytest.mark.parametrize("k", [1, 2, 20, 21, 22, 48, 49])
def test_however_labels_are_found_a_tie_goes_to_the_lowest_index(k):
    rng = np.random.default_rng(k)
    x = rng.integers(0, 4, (300, 2)).astype(np.float64)
    c = rng.integers(0, 4, (k, 2)).astype(np.float64)
    on = rng.random(k) < 0.7
    on[k // 2] = True
    for active in (None, on):
        costs = ((x[:, None] - c) ** 2).sum(-1)
        costs = costs if active is None else np.where(active, costs, np.inf)
        labels = dk.assign(x, c, active=active, block_size=64)
        np.testing.assert_array_equal(labels, costs.argmin(1))


@pytest.mark.parametrize("law", LAWS)
def test_one_point_is_enough(law):
    x, c, w, *t = LAWS[law]
    close(ours(x[:1], c, w[:1], *t), dense(x[:1], c, w[:1], *t))


def test_statistics_of_parts_add():
    parts = [ours(X[i::3], C, W[i::3], T) for i in range(3)]
    close(jax.tree.map(lambda *leaves: sum(leaves), *parts), ours(X, C, W, T))


def test_the_shifts_give_lloyds_step():
    stats = dk.statistics(X, C)
    labels = np.asarray(dk.assign(X, C))
    means = [np.asarray(X)[labels == j].mean(0) for j in range(K)]
    close(C + stats.shifts / stats.counts[:, None], np.stack(means))


# Every derivative, in every argument of every output, at first and second order.


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd], ids=["reverse", "forward"])
@pytest.mark.parametrize("law", LAWS)
def test_jacobians_of_every_output_in_every_argument(law, mode):
    args = LAWS[law]
    every = tuple(range(len(args)))
    close(
        jax.jit(mode(partial(ours, block_size=8), argnums=every))(*args),
        jax.jit(jax.jacrev(dense, argnums=every))(*args),
    )


@pytest.mark.parametrize(
    "mode",
    [
        lambda f, i: jax.jacfwd(jax.jacrev(f, i), i),
        lambda f, i: jax.jacrev(jax.jacrev(f, i), i),
    ],
    ids=["forward over reverse", "reverse over reverse"],
)
@pytest.mark.parametrize("law", LAWS)
def test_second_derivatives_of_every_output_in_every_pair_of_arguments(law, mode):
    x, c, w, *t = LAWS[law]
    args = x[:11], c[:3], w[:11], *t
    every = tuple(range(len(args)))
    close(
        jax.jit(mode(partial(ours, block_size=4), every))(*args),
        jax.jit(jax.jacrev(jax.jacrev(dense, every), every))(*args),
        atol=1e-9,
    )


@pytest.mark.parametrize("law", LAWS)
def test_third_derivatives(law):
    x, c, w, *t = LAWS[law]

    def third(f):
        def along(s):
            return f(x, c + s * jnp.cos(c), w, *t).loss

        return jax.jit(jax.grad(jax.grad(jax.grad(along))))(0.3)

    close(third(partial(ours, block_size=8)), third(dense), atol=1e-8)


def test_the_hessian_of_the_hard_loss_is_twice_the_counts():
    hessian = jax.hessian(lambda c: ours(X, c, W).loss)(C).reshape(K * D, K * D)
    counts = jnp.repeat(2 * ours(X, C, W).counts, D)
    np.testing.assert_allclose(hessian, jnp.diag(counts), atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_numerical_derivatives(law):
    f = jax.jit(lambda *args: ours(*args, block_size=8).loss)
    jax.test_util.check_grads(f, LAWS[law], order=2, modes=("fwd", "rev"), eps=1e-5)


@pytest.mark.parametrize("law", LAWS)
def test_vmap_equals_the_loop_over_every_argument(law):
    args = LAWS[law]
    stacked = [jnp.stack([a, 1.1 * a]) for a in args]
    mapped = jax.vmap(jax.value_and_grad(lambda *a: ours(*a, block_size=8).loss))
    loop = [
        jax.value_and_grad(lambda *a: ours(*a, block_size=8).loss)(
            *(a[i] for a in stacked)
        )
        for i in range(2)
    ]
    close(mapped(*stacked), jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop))


# Weights, active clusters, ties, what is not finite.


@pytest.mark.parametrize("law", LAWS)
def test_zero_weights_are_rows_removed_even_of_nan(law):
    x, c, w, *t = LAWS[law]
    w = w.at[::5].set(0)
    keep = np.asarray(w) > 0
    bad = x.at[::10].set(jnp.nan).at[5].set(jnp.inf)
    close(ours(bad, c, w, *t, block_size=8), dense(x[keep], c, w[keep], *t))
    gradient = jax.grad(lambda x, c: ours(x, c, w, *t).loss, argnums=(0, 1))
    in_x, in_c = gradient(bad, c)
    np.testing.assert_array_equal(in_x[~keep], jnp.zeros((11, D)))
    close(in_c, jax.grad(lambda c: dense(x[keep], c, w[keep], *t).loss)(c))


@pytest.mark.parametrize("law", LAWS)
def test_the_derivative_in_a_weight_of_zero_is_the_formulas(law):
    x, c, w, *t = LAWS[law]
    w = w.at[::5].set(0)

    def penalty(f):
        def g(w):
            in_c = jax.grad(lambda c: f(x, c, w, *t).loss)(c)
            return jnp.sum(in_c**2) + f(x, c, w, *t).loss

        return jax.jit(lambda w: (jax.value_and_grad(g)(w), jax.hessian(g)(w)))(w)

    close(penalty(partial(ours, block_size=8)), penalty(dense), atol=1e-9)


@pytest.mark.parametrize("fill", [0.0, jnp.nan, 1e30])
@pytest.mark.parametrize("law", LAWS)
def test_inactive_clusters_are_rows_removed_whatever_they_hold(law, fill):
    x, c, w, *t = LAWS[law]
    active = jnp.arange(K) % 2 == 0
    c = c.at[1::2].set(fill)
    f = partial(ours, active=active, block_size=8)
    stats, few = f(x, c, w, *t), dense(x, c[::2], w, *t)
    close(jax.tree.map(lambda a: a[::2], stats[1:]), few[1:])
    close(stats.loss, few.loss)
    assert (stats.counts[1::2] == 0).all()
    every = tuple(range(len(LAWS[law])))
    gradients = jax.grad(lambda *a: f(*a).loss, every)(x, c, w, *t)
    expected = jax.grad(lambda *a: dense(*a).loss, every)(x, c[::2], w, *t)
    np.testing.assert_array_equal(gradients[1][1::2], jnp.zeros((3, D)))
    close((gradients[0], gradients[1][::2], *gradients[2:]), expected)
    assert (dk.assign(x, c, active=active) % 2 == 0).all()


def test_no_active_cluster_is_nan_and_not_a_number_that_looks_right():
    assert jnp.isnan(dk.kmeans_loss(X, C, active=jnp.zeros(K, bool)))


@pytest.mark.parametrize("k", [5, 40])
def test_ties_go_to_the_lowest_index_at_any_offset(k):
    rng = np.random.default_rng(3)
    for offset in (0, 1000):
        x = rng.integers(-2, 3, (200, 2)) + offset
        c = rng.integers(-2, 3, (k, 2)) + offset
        squared = ((x[:, None] - c[None]) ** 2).sum(-1)
        assert ((squared == squared.min(1, keepdims=True)).sum(1) > 1).any()
        for dtype in (jnp.float32, jnp.float64):
            labels = dk.assign(jnp.asarray(x, dtype), jnp.asarray(c, dtype))
            np.testing.assert_array_equal(labels, squared.argmin(1))


@pytest.mark.parametrize("k", [5, 40])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_reaches_the_loss_and_labels_stay_in_range(k, bad):
    c = jnp.asarray(np.random.default_rng(1).normal(size=(k, D)))
    x = X.at[3, 1].set(bad)
    assert not jnp.isfinite(dk.statistics(x, c).loss)
    assert not jnp.isfinite(dk.statistics(x, c, temperature=0.5).loss)
    labels = np.asarray(dk.assign(x, c))
    assert labels.min() >= 0
    assert labels.max() < k
    assert dk.statistics(x, c).counts.sum() == N


# Numbers.


def test_float32_at_an_offset_of_ten_thousand_deviations_has_the_labels_of_float64():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50_000, 16)) + 1e4).astype(np.float32)
    c = x[rng.choice(50_000, 64, replace=False)]
    same = dk.assign(x, c) == dk.assign(x.astype(np.float64), c.astype(np.float64))
    assert same.mean() >= 0.9999


def test_float32_shifts_do_not_cancel_at_an_offset():
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(20_000, 4)) + 1e4).astype(np.float32)
    c = x[:8]
    narrow, wide = dk.statistics(x, c), dk.statistics(*map(np.float64, (x, c)))
    steps = [s.shifts / s.counts[:, None] for s in (narrow, wide)]
    np.testing.assert_allclose(*steps, atol=1e-5)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_accumulates_in_float32_with_gradients_of_its_own(law, dtype):
    x, c, w, *t = LAWS[law]
    x, c, w = (a.astype(dtype) for a in (x, c, w))
    stats = ours(x, c, w, *t)
    assert all(leaf.dtype == jnp.float32 for leaf in stats)
    wide = [a.astype(jnp.float64) for a in (x, c, w)]
    for a, b in zip(stats, dense(*wide, *t), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    gradients = jax.grad(lambda *a: ours(*a, *t).loss, (0, 1, 2))(x, c, w)
    assert all(g.dtype == dtype for g in gradients)


def test_unweighted_counts_are_exact_past_the_integers_of_float32():
    # The count is a float32 number. Its blocks are odd: a float32 sum would lose 8.
    n = 2**24 + 8 * 4097
    points, centroids = jnp.zeros((n, 1), jnp.bfloat16), jnp.zeros((1, 1), jnp.float32)
    stats = dk.statistics(points, centroids, block_size=4097)
    assert stats.counts.dtype == jnp.float32
    assert int(stats.counts[0]) == n


def test_counts_in_bfloat16_are_exact():
    x = jnp.zeros((33_135, 1), jnp.bfloat16)
    assert dk.statistics(x, x[:1]).counts[0] == 33_135


def test_mixed_dtypes_accumulate_in_the_widest():
    stats = dk.statistics(X.astype(jnp.float32), C, weights=W.astype(jnp.bfloat16))
    assert stats.loss.dtype == jnp.float64


# Meshes.


def sharded(f, *specs, out=None):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, all_of_it = PartitionSpec("data"), PartitionSpec()
    specs = tuple(rows if s == "rows" else all_of_it for s in specs)
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out or all_of_it)


@pytest.mark.parametrize("block_size", [4, 100])
@pytest.mark.parametrize("law", LAWS)
def test_statistics_and_gradients_are_the_same_on_four_devices(law, block_size):
    x, c, w, *t = LAWS[law]
    x, w = x[:52], w[:52]

    def f(x, c, w, *t):
        return ours(x, c, w, *t, axis_name="data", block_size=block_size)

    specs = ("rows", "all", "rows", *("all" for _ in t))
    on_mesh = sharded(f, *specs)
    close(jax.jit(on_mesh)(x, c, w, *t), dense(x, c, w, *t))
    every = tuple(range(3 + len(t)))
    expected = jax.grad(lambda *a: dense(*a).loss, every)(x, c, w, *t)
    outside = jax.grad(lambda *a: on_mesh(*a).loss, every)
    close(jax.jit(outside)(x, c, w, *t), expected)
    inside = sharded(jax.grad(lambda *a: f(*a).loss, 1), *specs)
    close(jax.jit(inside)(x, c, w, *t), expected[1])


def test_other_distances_are_the_same_on_four_devices():
    def f(x, c):
        return dk.kmeans_loss(x, c, distance=dk.manhattan, axis_name="data")

    on_mesh = sharded(f, "rows", "all")
    expected = jax.value_and_grad(
        lambda c: dk.kmeans_loss(X[:52], c, distance=dk.manhattan)
    )(C)
    close(jax.value_and_grad(lambda c: on_mesh(X[:52], c))(C), expected)
    inside = sharded(jax.grad(f, 1), "rows", "all")
    close(inside(X[:52], C), expected[1])


# Programs.


@pytest.mark.parametrize("law", LAWS)
def test_jit_equals_eager(law):
    with jax.disable_jit():
        eager = ours(*LAWS[law], block_size=16)
    close(eager, ours(*LAWS[law], block_size=16))


def test_an_eager_call_compiles_once_for_all_temperatures():
    from diffkm_jax._pass import sums

    before = sums._cache_size()
    for temperature in (0.11, 0.12, jnp.asarray(0.13), np.float32(0.14)):
        dk.statistics(X[:51], C, temperature=temperature)
    assert sums._cache_size() == before + 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_soft_statistics_are_right_at_the_smallest_and_largest_temperatures(dtype):
    x, c = 1000 * X.astype(dtype), 1000 * C.astype(dtype)
    hard = dk.statistics(x, c)

    def loss(c, t):
        return dk.statistics(x, c, temperature=t).loss

    derivatives = jax.jit(lambda c, t: (jax.grad(loss)(c, t), jax.hessian(loss)(c, t)))
    for t in (1e-3, 1e-10, 1e-30):
        for a, b in zip(dk.statistics(x, c, temperature=t), hard, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)
        assert all(jnp.isfinite(found).all() for found in derivatives(c, t))
    hot = dk.statistics(x, c, temperature=1e30)
    np.testing.assert_allclose(hot.counts, N / K, rtol=1e-5)
