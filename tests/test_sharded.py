"""Arrays sharded over rows give what they give on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
W = RNG.uniform(0.5, 2, size=40)
W[::7] = 0
C = jnp.asarray(X[:4] + 0.1)
KEY = jax.random.key(0)
KINDS = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
KERNEL = jnp.array([1.0, 2.0, 3.0])


def make_mesh(kind, shape=(4,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * len(shape))


def put(mesh, array, spec=None):
    return jax.device_put(
        array, NamedSharding(mesh, P("data") if spec is None else spec)
    )


def assert_same(found, expected, atol=1e-12):
    def same(a, b):
        if jnp.issubdtype(jnp.asarray(b).dtype, jnp.integer):
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=atol)

    jax.tree.map(same, found, expected)


def scaled(x, y):
    """A distance that closes over an array, and has no means."""
    return ((x - y) ** 2) @ KERNEL


@jax.tree_util.Partial
def quartic(v):
    return jnp.sum(v**2 + v**4)


def gradients(loss, **options):
    def both(x, w):
        f = lambda x, c: loss(x, c, weights=w, **options)  # noqa: E731
        return jax.grad(f, argnums=(0, 1))(x, C)

    return both


def of_fit(**options):
    def gradient(x, w):
        def f(x):
            return dk.fit(x, C, weights=w, **options).centroids.sum()

        return jax.grad(f)(x)

    return gradient


FAR = C.at[0].set(50.0)
EMA = dk.ema(0.9)
COUNTED = dk.init(FAR, optimizer=EMA)
# Those without weight first, which become no centroid.
ORDER = np.argsort(np.arange(40) % 7, kind="stable")
GUMBEL = RNG.gumbel(size=(40, 4))
FUNCTIONS = {
    "statistics": lambda x, w: dk.statistics(x, C, weights=w),
    "no weights": lambda x, w: dk.statistics(x, C),
    "soft": lambda x, w: dk.statistics(x, C, weights=w, temperature=0.5),
    "no means": lambda x, w: dk.kmeans_loss(x, C, weights=w, distance=scaled),
    "assigned": lambda x, w: dk.assigned_loss(x, C, dk.softmax, weights=w),
    "assign": lambda x, w: dk.assign(x, C),
    "quantize": lambda x, w: dk.quantize(x, C, weights=w),
    "quantize drawn": lambda x, w: dk.quantize(
        x, C, weights=w, temperature=0.5, noise=GUMBEL
    ),
    "quantize more axes": lambda x, w: dk.quantize(
        x.reshape(8, 5, 3), C, weights=w.reshape(8, 5)
    ),
    "update restarting": lambda x, w: dk.update(
        x, COUNTED, optimizer=EMA, weights=w, min_count=1.0, index=ORDER
    ),
    "nsvq": lambda x, w: dk.nsvq(x, C, X[::-1].copy(), weights=w),
    "random_points": lambda x, w: dk.random_points(KEY, x, 4, weights=w),
    "random_points alike": lambda x, w: dk.random_points(KEY, x, 4),
    "plus_plus": lambda x, w: dk.kmeans_plus_plus(KEY, x, 4, weights=w),
    "parallel": lambda x, w: dk.kmeans_parallel(KEY, x, 4, weights=w),
    "update": lambda x, w: dk.update(x, dk.init(C), weights=w),
    "fit": lambda x, w: dk.fit(x, C, weights=w),
    "fit soft": lambda x, w: dk.fit(x, C, weights=w, temperature=0.5),
    "fit farthest": lambda x, w: dk.fit(x, FAR, weights=w, empty="farthest"),
    "restarts": lambda x, w: dk.fit_restarts(KEY, x, 3, weights=w, num_restarts=2),
    "certificate": lambda x, w: dk.certificate(x, C, weights=w),
    "certificate soft": lambda x, w: dk.certificate(
        x, C, weights=w, temperature=0.5, num_iterations=20
    ),
}
# Under jax.jit on an Explicit mesh; a gradient is not to be had else without set_mesh.
GRADIENTS = {
    "hard": gradients(dk.kmeans_loss),
    "soft": gradients(dk.soft_kmeans_loss, temperature=0.5),
    "spherical": gradients(dk.kmeans_loss, distance=dk.cosine),
    "no means": gradients(dk.kmeans_loss, distance=scaled),
    "bregman": gradients(
        dk.soft_kmeans_loss, temperature=1.0, distance=dk.bregman(quartic)
    ),
    "fit": of_fit(tol=0.0),
    "fit soft": of_fit(tol=0.0, temperature=0.3),
    "fit unrolled": of_fit(derivative="unrolled", max_steps=3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_eager_and_jitted_are_those_of_one_device(kind, name):
    f, mesh = FUNCTIONS[name], make_mesh(kind)
    expected, given = f(X, W), (put(mesh, X), put(mesh, W))
    assert_same(f(*given), expected)
    assert_same(jax.jit(f)(*given), expected)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_device_and_sharded_as_the_points(kind, name):
    f, mesh = GRADIENTS[name], make_mesh(kind)
    with jax.set_mesh(mesh):
        found = jax.jit(f)(put(mesh, X), put(mesh, W))
        assert_same(found, f(X, W), atol=1e-9)
        assert_same(f(put(mesh, X), put(mesh, W)), found, atol=1e-9)
    of_points = jax.tree.leaves(found)[0]
    if kind == "explicit":
        assert of_points.sharding.spec[0] == "data"


def test_arrays_that_distances_close_over_have_their_gradient():
    x = put(make_mesh("explicit"), X)

    def loss(a, x):
        phi = dk.bregman(lambda v: jnp.sum(a * v**4 + v**2))
        own = dk.kmeans_loss(x, C, distance=lambda p, q: ((p - q) ** 2) @ a)
        matrix = dk.mahalanobis(jnp.diag(a))
        return (
            dk.kmeans_loss(x, C, distance=phi)
            + own
            + dk.kmeans_loss(x, C, distance=matrix)
        )

    assert_same(jax.jit(jax.grad(loss))(KERNEL, x), jax.grad(loss)(KERNEL, X), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "spec"),
    [((2, 2), P("data")), ((2, 2), P(("data", "model"))), ((2, 2), P("data", None))],
)
def test_a_mesh_of_two_axes(kind, shape, spec):
    x = put(make_mesh(kind, shape, ("data", "model")), X, spec)
    assert_same(jax.jit(dk.fit)(x, C), dk.fit(X, C))
    found = dk.kmeans_plus_plus(KEY, x, 4)
    assert_same(found, dk.kmeans_plus_plus(KEY, X, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_of_one_device(kind):
    x = put(make_mesh(kind, (1,)), X)
    for f in (dk.statistics, jax.jit(dk.fit), jax.jit(jax.grad(dk.kmeans_loss))):
        assert_same(f(x, C), f(X, C), atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_else_is_on_the_mesh(kind):
    """Weights on all devices or alone sharded, sharded centroids, batches of fits."""
    mesh = make_mesh(kind)
    x, w, everywhere = put(mesh, X), put(mesh, W), put(mesh, X, P())
    expected = dk.fit(X, C, weights=W)
    assert_same(dk.fit(x, C, weights=put(mesh, W, P())), expected)
    assert_same(dk.fit(everywhere, C, weights=w), expected)
    assert_same(jax.jit(dk.fit)(everywhere, put(mesh, C, P())), dk.fit(X, C))
    starts = put(mesh, X[:4] + 0.1)
    assert_same(jax.jit(dk.fit)(x, starts), dk.fit(X, C))
    assert_same(dk.assign(X, starts), dk.assign(X, C))
    several = jnp.stack([C, C + 1])
    batch = jax.vmap(dk.fit, (None, 0))
    assert_same(jax.jit(batch)(x, several), batch(X, several))
    many = put(mesh, np.stack([X, X + 1]), P(None, "data"))
    batch = jax.vmap(dk.fit, (0, None))
    assert_same(jax.jit(batch)(many, C), batch(np.asarray(many), C))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_goes_on_from_its_state(kind):
    x, optimizer = put(make_mesh(kind), X), dk.macqueen()
    options = {"optimizer": optimizer, "tol": 0.0}
    half = dk.fit(x, C, max_steps=2, **options)
    found = dk.fit(x, half.state, max_steps=3, **options)
    whole = dk.fit(x, C, max_steps=5, **options)
    np.testing.assert_array_equal(found.centroids, whole.centroids)
    assert_same(dk.assign(x, whole.centroids), whole.labels)
    expected = NamedSharding(make_mesh(kind), P("data"))
    assert whole.labels.sharding.is_equivalent_to(expected, 1)


@pytest.mark.parametrize("sampling", ["replacement", "shuffled", "sequential"])
def test_batches_are_of_the_rows_of_each_device(sampling):
    """As one device would take them that had the parts of these batches as its own."""
    x, w = (put(make_mesh("explicit"), a) for a in (X, W))
    optimizer, options = dk.macqueen(), {"num_steps": 7, "batch_size": 12}
    options |= {"optimizer": optimizer, "sampling": sampling}
    found = dk.fit_minibatch(KEY, x, C, weights=w, **options)
    state, orders = dk.init(C, optimizer=optimizer), {}
    for t in range(7):
        index = []
        for device in range(4):
            key = jax.random.fold_in(KEY, device)
            start = min(t % 4 * 3, 10 - 3)
            if sampling == "replacement":
                part = jax.random.randint(jax.random.fold_in(key, t), (3,), 0, 10)
            elif sampling == "shuffled":
                key = jax.random.fold_in(key, t // 3)
                part = jax.random.permutation(key, 10)[t % 3 * 3 :][:3]
            else:
                part = np.arange(start, start + 3)
            index.append(np.asarray(part) + 10 * device)
        i = np.concatenate(index)
        state, _ = dk.update(X[i], state, optimizer=optimizer, weights=W[i])
        orders.update(dict.fromkeys(i.tolist()))
    assert_same(found.centroids, state.centroids)
    assert_same(found.loss, dk.kmeans_loss(X, state.centroids, weights=W))
    assert len(orders) > 30


def test_fit_sharded_takes_any_number_of_points():
    points, weights = X[:39], W[:39]
    for kind in KINDS:
        mesh = make_mesh(kind, (2, 2), ("data", "model"))
        for w in (None, weights):
            expected = dk.fit(points, C, weights=w)
            fit = partial(dk.fit_sharded, mesh=mesh, weights=w)
            assert_same(fit(points, C), expected)
            assert_same(jax.jit(fit)(jnp.asarray(points), C), expected)
        assert_same(dk.fit_sharded(X, C, mesh=mesh, axis="data"), dk.fit(X, C))
        found = jax.jit(jax.grad(lambda x, f=fit: f(x, C).centroids.sum()))(points)
        assert_same(found, of_fit()(points, weights))


def test_a_sharding_says_what_no_type_does():
    """An Auto mesh under jit: `axis_name` takes the sharding."""
    mesh = make_mesh("auto")
    where = NamedSharding(mesh, P("data"))

    def loss(x, c, **options):
        return dk.kmeans_loss(x, c, **options)

    found = jax.jit(jax.grad(partial(loss, axis_name=where), argnums=(0, 1)))(X, C)
    assert_same(found, jax.grad(loss, argnums=(0, 1))(X, C))
    assert found[0].sharding.is_equivalent_to(where, 2)


def in_shard_map(f, *shared, out=None):
    specs = (P("data"), P("data"), *(P() for _ in shared))
    mesh, out = make_mesh("auto"), P() if out is None else out
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out))(
        X, W, *shared
    )


AXIS = {"axis_name": "data"}


@pytest.mark.parametrize(
    "start", [dk.random_points, dk.kmeans_plus_plus, dk.kmeans_parallel]
)
def test_starts_inside_a_shard_map(start):
    found = in_shard_map(lambda x, w, key: start(key, x, 4, weights=w, **AXIS), KEY)
    assert_same(found, start(KEY, X, 4, weights=W))


def test_fits_inside_a_shard_map_and_their_specs():
    def restarts(x, w, key):
        return dk.fit_restarts(key, x, 3, weights=w, num_restarts=2, **AXIS)

    found = in_shard_map(restarts, KEY, out=dk.fit_specs())
    assert_same(found, dk.fit_restarts(KEY, X, 3, weights=W, num_restarts=2))

    def batches(x, w, key, c):
        options = {"num_steps": 3, "batch_size": 8, "optimizer": dk.macqueen()}
        return dk.fit_minibatch(key, x, c, weights=w, **options, **AXIS)

    found = in_shard_map(batches, KEY, C, out=dk.fit_specs("data"))
    x, w = (put(make_mesh("auto"), a) for a in (X, W))
    options = {"num_steps": 3, "batch_size": 8, "optimizer": dk.macqueen()}
    assert_same(found, dk.fit_minibatch(KEY, x, C, weights=w, **options))


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("call", [dk.kmeans_loss, dk.statistics, dk.fit])
def test_points_that_are_the_same_on_every_device_do_not_count_many_times(kind, call):
    mesh = make_mesh(kind)

    def on_device(x, c):
        return jax.tree.leaves(call(x, c, axis_name="data"))[0]

    run = jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P()), out_specs=P())
    with pytest.raises(ValueError, match=r"^axis_name must be .* device of 'data': in"):
        run(X, C)
    unchecked = jax.shard_map(
        on_device, mesh=mesh, in_specs=(P("data"), P()), out_specs=P(), check_vma=False
    )
    found = unchecked(put(mesh, X), C)
    expected = jax.tree.leaves(call(X, C))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_what_cannot_be_meant_is_said():
    mesh = make_mesh("explicit", (2, 2), ("data", "model"))
    rows = r"^points must be sharded over rows only, as by NamedSharding\(mesh, P\('"
    wide = np.tile(X, (1, 2))
    for spec in (P(None, "model"), P("data", "model")):
        with pytest.raises(ValueError, match=rows):
            dk.fit(put(mesh, wide, spec), wide[:3])
    with pytest.raises(TypeError, match=r"^mesh must be a jax\.sharding\.Mesh, got 4"):
        dk.fit_sharded(X, C, mesh=4)
    for axis in ("rows", ("data", "rows"), 3, ()):
        with pytest.raises(ValueError, match=r"^axis must be of the mesh, .*got "):
            dk.fit_sharded(X, C, mesh=mesh, axis=axis)
    with pytest.raises(ValueError, match=r"^centroids must be at most n = 3 .*k = 4"):
        dk.fit_sharded(X[:3], C, mesh=mesh)
    with pytest.raises(ValueError, match=r"^points must be \[n, d\], got shape \(3,\)"):
        dk.fit_sharded(X[0], C, mesh=mesh)
    x = put(mesh, X)
    with pytest.raises(ValueError, match=r"^batch_size must be a multiple of 2, "):
        dk.fit_minibatch(KEY, x, C, num_steps=1, batch_size=7)
    with pytest.raises(ValueError, match=r"^centroids must be at most n = 40 .*k = 41"):
        dk.fit(x, np.tile(X, (2, 1))[:41])
    with pytest.raises(ValueError, match=r"^k must be .*at most 40"):
        dk.kmeans_plus_plus(KEY, x, 41)

    where = NamedSharding(mesh, P(None, "model"))
    with pytest.raises(ValueError, match=r"^axis_name must be sharded over rows "):
        dk.kmeans_loss(X, C, axis_name=where)
    for axis in (None, 3, mesh, ()):
        with pytest.raises(TypeError, match=r"^axis must be the name of a mesh axis, "):
            dk.fit_specs(axis)

    def first(key, points, k, *, weights):
        return points[:k]

    with pytest.raises(TypeError, match=r"^initializer must take axis_name, .*first$"):
        dk.fit_restarts(KEY, x, 3, initializer=first)


def test_optimizers_of_any_kind_step_alike_on_a_mesh():
    x = put(make_mesh("explicit"), X)
    for optimizer in (dk.ema(0.5), optax.sgd(1e-3, momentum=0.9)):
        options = {"optimizer": optimizer, "max_steps": 4}
        assert_same(dk.fit(x, C, **options), dk.fit(X, C, **options))
