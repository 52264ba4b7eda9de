"""Clusters below a running count, set anew: by reassign, by update, by a codebook."""

from functools import partial
from math import ceil, log

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits
from torch.testing import assert_close as close
from twins import exact

import diffkm_jax as dk
import diffkm_torch as dt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
# Of eight clusters the last four are nowhere near.
C = np.concatenate([X[:4] + 0.1, X[4:8] + 50])
W = RNG.uniform(0.5, 2, size=40)
W[::5] = 0
ORDER = RNG.permutation(40)
MIN = 1.5
MODULES = pytest.mark.parametrize("module", [dk, dt], ids=["jax", "torch"])
OPTIMIZERS = pytest.mark.parametrize("kind", ["ema", "macqueen"])
ARRAYS = {dk: jnp.asarray, dt: torch.as_tensor}


def expected(points, state, index, min_count, half, active=None):
    """Centroids and counts as a loop sets them, of a state after its step."""
    held = state.centroids, state.opt_state.counts
    centroids, counts = (np.asarray(a).copy() for a in held)
    exists = np.ones(len(counts), bool) if active is None else active
    low = np.flatnonzero((counts < min_count) & exists)
    lowest = sorted(low, key=lambda j: counts[j])[:half]
    for i, j in zip(index, sorted(lowest), strict=False):
        centroids[j], counts[j] = points[i], 2 * min_count
    return centroids, counts


def after(module, kind, points, centroids=C, **options):
    """The state after an update of a fresh one."""
    array, optimizer = ARRAYS[module], getattr(module, kind)()
    options = {
        key: array(a) if isinstance(a, np.ndarray) else a for key, a in options.items()
    }
    state = module.init(array(centroids), optimizer=optimizer)
    return module.update(array(points), state, optimizer=optimizer, **options)[0]


@MODULES
@OPTIMIZERS
@pytest.mark.parametrize("active", [None, np.arange(8) != 6], ids=["all", "some"])
@pytest.mark.parametrize("min_count", [0.0, MIN, 7.0, 1000.0])
def test_an_update_sets_clusters_below_a_count_to_rows(module, kind, active, min_count):
    options = {} if active is None else {"active": active}
    plain = after(module, kind, X, **options)
    found = after(module, kind, X, min_count=min_count, index=ORDER, **options)
    centroids, counts = expected(X, plain, ORDER, min_count, 20, active)
    np.testing.assert_array_equal(found.centroids, centroids)
    np.testing.assert_array_equal(found.opt_state.counts, counts)
    changed = (np.asarray(found.centroids) != np.asarray(plain.centroids)).any(1)
    number = {0.0: 0, 1000.0: 8}.get(min_count, int(changed.sum()))
    assert changed.sum() == number - (active is not None and number == 8)
    assert int(found.step) == 1


@MODULES
def test_a_reassignment_by_a_count_is_that_of_the_update(module):
    array, optimizer = ARRAYS[module], module.macqueen()
    plain = after(module, "macqueen", X)
    found = module.reassign(array(X), plain, array(ORDER), min_count=MIN, ratio=9.0)
    again = after(module, "macqueen", X, min_count=MIN, index=ORDER)
    np.testing.assert_array_equal(found.centroids, again.centroids)
    np.testing.assert_array_equal(found.opt_state.counts, again.opt_state.counts)
    # The rule of the ratio is the other one, and as it was.
    other = module.reassign(array(X), plain, array(ORDER), ratio=0.01)
    low = np.asarray(plain.opt_state.counts) == 0
    least = np.asarray(plain.opt_state.counts)[~low].min()
    np.testing.assert_array_equal(np.asarray(other.opt_state.counts)[low], least)
    assert optimizer is module.macqueen()


@MODULES
@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_at_most_half_of_the_rows_and_those_of_an_index_are_taken(module, rows):
    x, index = X[:rows], ORDER[rows > ORDER]
    plain = after(module, "ema", x)
    found = after(module, "ema", x, min_count=MIN, index=index)
    centroids, _ = expected(x, plain, index, MIN, rows // 2)
    np.testing.assert_array_equal(found.centroids, centroids)
    one = after(module, "ema", X, min_count=MIN, index=ORDER[:1])
    centroids, _ = expected(X, after(module, "ema", X), ORDER[:1], MIN, 20)
    np.testing.assert_array_equal(one.centroids, centroids)


@MODULES
@OPTIMIZERS
def test_rows_of_weight_zero_are_as_if_they_were_not_there(module, kind):
    x = X.copy()
    x[::10], x[5] = np.nan, np.inf
    keep = np.flatnonzero(W > 0)
    place = {i: j for j, i in enumerate(keep)}
    index = np.array([place[i] for i in ORDER if i in place])
    for min_count in (MIN, 1000.0):
        options = {"min_count": min_count, "weights": W, "index": ORDER}
        found = after(module, kind, x, **options)
        options |= {"weights": W[keep], "index": index}
        fewer = after(module, kind, x[keep], **options)
        assert np.isfinite(np.asarray(found.centroids)).all()
        np.testing.assert_allclose(found.centroids, fewer.centroids, rtol=1e-12)
        np.testing.assert_allclose(found.opt_state.counts, fewer.opt_state.counts)
    # Of five rows four without weight: no half of one row.
    few, zeros = X[:5], np.array([0.0, 0, 3, 0, 0])
    plain = after(module, kind, few, weights=zeros)
    found = after(
        module, kind, few, weights=zeros, min_count=9.0, index=np.arange(5)[::-1].copy()
    )
    np.testing.assert_array_equal(found.centroids, plain.centroids)


@MODULES
@pytest.mark.parametrize("unit", [2.0**-900, 2.0**900])
def test_a_count_is_in_the_unit_of_the_weights(module, unit):
    w = W + 0.25
    for kind in ("ema", "macqueen"):
        plain = after(module, kind, X, weights=w, min_count=MIN, index=ORDER)
        options = {"weights": unit * w, "min_count": unit * MIN, "index": ORDER}
        found = after(module, kind, X, **options)
        np.testing.assert_allclose(found.centroids, plain.centroids, rtol=1e-12)
        counts = np.asarray(found.opt_state.counts) / unit
        np.testing.assert_allclose(counts, plain.opt_state.counts, rtol=1e-12)


@MODULES
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_sets_nothing(module, bad):
    x = X.copy()
    x[3, 1] = bad
    found = after(module, "ema", x, min_count=MIN, index=ORDER)
    np.testing.assert_array_equal(found.centroids, C)
    np.testing.assert_array_equal(found.opt_state.counts, 0)


@MODULES
def test_a_cluster_set_anew_without_points_stays_for_a_while(module):
    """log 2 / (1 − γ) steps: rounded up, 7 at 0.9."""
    array, optimizer = ARRAYS[module], module.ema(0.9)
    # The second row is taken; what comes after is near the first.
    x, later = array(np.array([[0.0], [9.0]])), array(np.zeros((2, 1)))
    state = module.init(array(np.array([[0.0], [99.0]])), optimizer=optimizer)
    options = {"optimizer": optimizer, "min_count": 0.5}
    state, _ = module.update(x[:1], state, **options, index=array(np.array([0])))
    state, _ = module.update(x, state, **options, index=array(np.array([1, 0])))
    places = [float(state.centroids[1, 0])]
    for _ in range(9):
        state, _ = module.update(later, state, **options, index=array(np.arange(2)))
        places.append(float(state.centroids[1, 0]))
    assert places[0] == 9.0
    assert places.index(0.0) == ceil(log(2) / -log(0.9)) == 7


@MODULES
def test_a_spherical_codebook_stays_one_of_unit_rows(module):
    x = np.abs(X) + 0.1
    distance = {"distance": module.cosine}
    start = np.concatenate([x[:4], -x[:4]])
    found = after(module, "ema", x, start, min_count=MIN, index=ORDER, **distance)
    rows = np.linalg.norm(found.centroids, axis=1)
    np.testing.assert_allclose(rows, 1, rtol=1e-12)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    low = np.asarray(found.opt_state.counts) == 2 * MIN
    taken = unit[ORDER[: low.sum()]]
    assert low.sum() >= 4
    np.testing.assert_allclose(np.asarray(found.centroids)[low], taken, rtol=1e-12)


def test_the_gradient_is_zero_in_rows_that_were_set_and_else_that_of_the_step():
    optimizer = dk.ema()

    def end(x, c, w, **options):
        state = dk.init(c, optimizer=optimizer)
        state, _ = dk.update(x, state, optimizer=optimizer, weights=w, **options)
        return state.centroids

    options = {"min_count": MIN, "index": ORDER}
    plain, pullback = jax.vjp(end, X, jnp.asarray(C), W)
    found, pull = jax.vjp(partial(end, **options), X, jnp.asarray(C), W)
    is_set = np.asarray(found != plain).any(1)
    assert 4 <= is_set.sum() < 8
    cotangent = jnp.asarray(RNG.normal(size=(8, 3)))
    kept = jnp.where(is_set[:, None], 0, cotangent)
    for a, b in zip(pull(cotangent), pullback(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(pull(cotangent)[1][is_set], 0)


def test_it_is_one_program_with_donated_state_and_a_traced_count():
    optimizer = dk.ema()

    @partial(jax.jit, donate_argnums=0)
    def step(state, x, index, min_count):
        options = {"min_count": min_count, "index": index}
        return dk.update(x, state, optimizer=optimizer, **options)[0]

    state = dk.init(jnp.asarray(C) + 0, optimizer=optimizer)
    alone = dk.init(C, optimizer=optimizer)
    for t in range(4):
        x, index = jnp.asarray(X + 0.1 * t), jnp.asarray(np.roll(ORDER, t))
        state = step(state, x, index, MIN + t)
        options = {"min_count": MIN + t, "index": index}
        alone, _ = dk.update(x, alone, optimizer=optimizer, **options)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), state, alone)
    assert step._cache_size() == 1


def test_vmap_equals_a_loop():
    optimizer = dk.macqueen()
    xs = jnp.stack([X, X[::-1] + 1])
    orders = jnp.stack([ORDER, ORDER[::-1]])

    def f(x, index, min_count):
        state = dk.init(C, optimizer=optimizer)
        options = {"min_count": min_count, "index": index}
        return dk.update(x, state, optimizer=optimizer, **options)[0]

    together = jax.vmap(f)(xs, orders, jnp.array([MIN, 0.0]))
    for i, min_count in enumerate((MIN, 0.0)):
        one = f(xs[i], orders[i], min_count)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-12),
            together,
            one,
        )


def test_inside_a_shard_map_rows_are_those_of_all_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    optimizer = dk.ema()
    options = {"optimizer": optimizer, "min_count": MIN}
    state = dk.init(C, optimizer=optimizer)

    def step(x, w, index):
        found, _ = dk.update(
            x, state, weights=w, index=index, axis_name="data", **options
        )
        return found

    run = jax.shard_map(
        step, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P()
    )
    found = jax.jit(run)(X, W, ORDER)
    alone, _ = dk.update(X, state, weights=W, index=ORDER, **options)
    assert (np.asarray(alone.opt_state.counts) == 2 * MIN).sum() >= 4
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), found, alone
    )


def test_an_optimizer_in_a_chain_has_its_counts_too():
    optimizer = optax.chain(dk.macqueen(), optax.scale(1.0))
    state, _ = dk.update(
        X,
        dk.init(C, optimizer=optimizer),
        optimizer=optimizer,
        min_count=MIN,
        index=ORDER,
    )
    alone = after(dk, "macqueen", X, min_count=MIN, index=ORDER)
    np.testing.assert_allclose(state.centroids, alone.centroids, rtol=1e-12)


@MODULES
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_count": 1.0}, ValueError, "^index must be given with min_count, got No"),
        ({"index": ORDER}, ValueError, "^min_count must be given with index, got None"),
        ({"min_count": -1.0, "index": ORDER}, ValueError, "^min_count must be finite"),
        ({"min_count": W, "index": ORDER}, ValueError, "^min_count must be a scalar"),
        ({"min_count": "1", "index": ORDER}, TypeError, "^min_count must be a number"),
        ({"min_count": 1.0, "index": W}, TypeError, r"^index must be integers \[j\]"),
        (
            {"min_count": 1.0, "index": ORDER[:, None]},
            TypeError,
            r"^index must be integers \[j\], got shape \(40, 1\)",
        ),
    ],
)
def test_what_cannot_be_is_said_by_name(module, options, error, message):
    with pytest.raises(error, match=message):
        after(module, "ema", X, **options)
    if len(options) == 2 and message.startswith("^min_count"):
        given = ARRAYS[module](X), after(module, "macqueen", X)
        option = options["min_count"]
        option = ARRAYS[module](option) if isinstance(option, np.ndarray) else option
        with pytest.raises(error, match=message):
            module.reassign(*given, ARRAYS[module](ORDER), min_count=option)


@MODULES
def test_an_optimizer_without_counts_is_refused(module):
    for kind in ("newton", "macqueen"):
        state = after(module, kind, X)
        options = {"min_count": 1.0, "index": ARRAYS[module](ORDER)}
        options["optimizer"] = getattr(module, kind)()
        if kind == "macqueen":
            module.update(ARRAYS[module](X), state, **options)
            continue
        with pytest.raises(ValueError, match=r"^optimizer must keep running counts"):
            module.update(ARRAYS[module](X), state, **options)


# The layer of torch.

XT, CT = torch.tensor(X, dtype=torch.float32), torch.tensor(C, dtype=torch.float32)


@pytest.mark.parametrize("weights", [None, torch.tensor(W, dtype=torch.float32)])
@pytest.mark.parametrize("distance", [dt.squared_euclidean, dt.cosine])
def test_a_codebook_is_set_anew_as_by_update(weights, distance):
    layer = dt.VectorQuantizer(CT, decay=0.8, min_count=1.0, distance=distance)
    optimizer = dt.ema(0.8)
    state = dt.init(layer.centroids.clone(), optimizer=optimizer)
    options = {"optimizer": optimizer, "distance": distance, "min_count": 1.0}
    for step in range(6):
        torch.manual_seed(step)
        batch = XT.roll(step, 0)[:30].reshape(5, 6, 3)
        mass = None if weights is None else weights.roll(step)[:30].reshape(5, 6)
        layer(batch, weights=mass)
        torch.manual_seed(step)
        index = torch.rand(30).argsort()
        mass = None if mass is None else mass.reshape(-1)
        state, _ = dt.update(
            batch.reshape(30, 3), state, weights=mass, index=index, **options
        )
        state = state._replace(remainder=None)
        close(layer.centroids, state.centroids)
        close(layer.counts, state.opt_state.counts)
    assert layer.counts.min() >= 1
    assert layer.centroids.abs().max() < 10


def test_codes_are_set_anew_in_training_mode_only_and_nothing_is_drawn_else():
    layer = dt.VectorQuantizer(CT, decay=0.8, min_count=1.0).eval()
    other = dt.VectorQuantizer(CT, decay=0.8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    layer(XT)
    other(XT)
    exact(layer.centroids, CT)
    exact(torch.get_rng_state(), before)
    layer.train()(XT)
    assert not torch.equal(torch.get_rng_state(), before)
    # Those of few points, and those that had none, became rows of the batch.
    is_row = (layer.centroids[:, None] == XT).all(2).any(1)
    exact(is_row, layer.counts == 2.0)
    assert is_row[4:].all()


LAYERS = {
    "decay": {"decay": 0.8},
    "min_count": {"decay": 0.8, "min_count": 1.0},
    "nsvq": {"decay": 0.8, "min_count": 1.0, "method": dt.nsvq},
    "drawn": {"decay": 0.8, "min_count": 1.0, "sample_temperature": 0.5},
    "cosine": {"decay": 0.8, "min_count": 1.0, "distance": dt.cosine},
    "parameter": {},
    "drawn parameter": {"sample_temperature": 0.5},
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "trained"])
def test_a_batch_of_nan_changes_nothing_and_is_seen_in_what_is_returned(name, fresh):
    layer = dt.VectorQuantizer(CT, **LAYERS[name])
    if not fresh:
        layer(XT)
    before = {key: a.clone() for key, a in layer.state_dict().items()}
    nothing = layer(torch.full_like(XT, torch.nan))
    heavy = layer(XT, weights=torch.full((40,), torch.inf))
    exact(dict(layer.state_dict()), before)
    for out in (nothing, heavy):
        assert not out.codebook_loss.isfinite()
        assert not out.commitment_loss.isfinite()
        exact(out.counts, torch.zeros(8))
        exact(out.usage, torch.tensor(0.0))
        assert out.perplexity.isnan()
        assert ((out.labels >= 0) & (out.labels < 8)).all()
    assert nothing.values.isfinite().all() == (name != "nsvq")


@pytest.mark.parametrize("name", [n for n, o in LAYERS.items() if "min_count" in o])
@pytest.mark.parametrize("kind", ["nan", "inf", "weight", "heavy", "far"])
def test_rows_that_are_not_finite_never_become_codes(name, kind):
    layer = dt.VectorQuantizer(CT, **LAYERS[name])
    good = torch.arange(40) % 4 == 0
    bad = {"nan": torch.nan, "inf": -torch.inf, "far": 1e39}.get(kind, 77.0)
    x = torch.where(good[:, None], XT.double(), bad)
    x = x if kind == "far" else x.float()
    w = torch.where(good, 1.0, {"weight": 0.0, "heavy": torch.inf}.get(kind, 1.0))
    for step in range(5):
        torch.manual_seed(step)
        out = layer(x, weights=w)
        assert layer.centroids.isfinite().all()
        assert layer.counts.isfinite().all()
        finite = kind == "weight"
        assert bool(out.codebook_loss.isfinite()) == (finite or kind == "far")
    # Of finite rows whose sum is not there is no step, and so none is taken.
    dead = layer.centroids.abs().amax(1) > 10
    assert dead.any() == (kind == "far" and name != "cosine")
    assert out.counts.sum() == (40 if kind == "far" else 10)


def test_one_row_of_nan_among_others_is_as_if_it_were_not_there():
    x = torch.cat([XT[:7], torch.full((1, 3), torch.nan), XT[7:]])
    layers = [dt.VectorQuantizer(CT[:4], decay=0.8, min_count=0.1) for _ in range(2)]
    out = layers[0](x)
    alone = layers[1](XT)
    close(dict(layers[0].state_dict()), dict(layers[1].state_dict()))
    assert out.codebook_loss.isnan()
    exact(out.counts, alone.counts)
    assert out.counts.sum() == 40
    exact(torch.cat([out.labels[:7], out.labels[8:]]), alone.labels)


def test_drawn_codes_are_drawn_in_training_and_train_the_codebook():
    layer = dt.VectorQuantizer(CT[:4], decay=0.8, sample_temperature=2.0)
    noise = -torch.empty(2, 20, 4).exponential_().log()
    batch = XT.reshape(2, 20, 3)
    expected = dt.quantize(batch, CT[:4], temperature=2.0, noise=noise)
    nearest = dt.quantize(batch, CT[:4])
    assert (expected.labels != nearest.labels).any()
    exact(tuple(layer.eval()(batch)), tuple(nearest))
    exact(tuple(layer(batch, noise=noise)), tuple(expected))
    exact(layer.centroids, CT[:4])
    out = layer.train()(batch, noise=noise)
    exact(out.labels, expected.labels)
    # The first step is from no count: by the sums of the points that were drawn.
    one_hot = torch.nn.functional.one_hot(out.labels.reshape(-1), 4).float()
    means = one_hot.T @ XT / one_hot.sum(0)[:, None]
    close(layer.centroids, CT[:4] + 0.2 * (means - CT[:4]))
    close(layer.counts, one_hot.sum(0))
    drawn = [layer.train()(batch).labels for _ in range(2)]
    assert not torch.equal(*drawn)
    layer.sample_temperature = 1e-20
    labels = dt.assign(XT, layer.centroids)
    exact(layer(batch).labels, labels.reshape(2, 20))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "^min_count must be None without decay, got 1.0", {}),
        (ValueError, "^min_count must be finite and not neg", {"decay": 0.9, "m": -1}),
        (TypeError, "^min_count must be a number", {"decay": 0.9, "m": "1"}),
        (ValueError, "^sample_temperature must be finite and p", {"t": 0.0}),
        (ValueError, "^sample_temperature must be None for nsvq, got 1.0",
         {"t": 1.0, "method": dt.nsvq}),
    ],
)  # fmt: skip
def test_what_a_layer_cannot_be_is_said_by_name(error, message, options):
    short = {"m": "min_count", "t": "sample_temperature"}
    options = {short.get(key, key): value for key, value in options.items()}
    options = options or {"min_count": 1.0}
    with pytest.raises(error, match=message):
        dt.VectorQuantizer(CT, **options)


def test_the_noise_of_a_layer_has_the_shape_of_its_kind():
    layer = dt.VectorQuantizer(CT, sample_temperature=1.0)
    with pytest.raises(ValueError, match=r"^noise must be \[\.\.\., k\] as points"):
        layer(XT, noise=XT)
    with pytest.raises(TypeError, match=r"^noise must be floating"):
        layer(XT, noise=torch.ones(40, 8, dtype=torch.int))
    with pytest.raises(ValueError, match=r"^noise must be None for method straight"):
        dt.VectorQuantizer(CT)(XT, noise=torch.ones(40, 8))
    text = "VectorQuantizer(k=8, d=3, method=straight_through_vector, decay=0.9, "
    layer = dt.VectorQuantizer(CT, decay=0.9, min_count=2.0, sample_temperature=0.5)
    assert repr(layer) == text + "min_count=2.0, sample_temperature=0.5)"


def trained_on_digits(k, **options):
    """Usage, perplexity and mean loss of the digits, from all codes in one place."""
    points = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    start = points[:1] + 0.01 * torch.randn(k, 64, generator=generator)
    layer = dt.VectorQuantizer(start, decay=0.9, **options)
    for _ in range(200):
        layer(points[torch.randint(len(points), (256,), generator=generator)])
    out = layer.eval()(points)
    return [a.item() for a in (out.usage, out.perplexity, out.codebook_loss / 1797)]


@pytest.mark.parametrize("k", [64, 256])
def test_restarts_fill_a_codebook_of_the_digits(k):
    usage, perplexity, loss = trained_on_digits(k)
    assert usage < 0.5
    assert perplexity < 0.3 * k
    filled = trained_on_digits(k, min_count=0.25)
    assert filled[0] > 0.98
    assert filled[1] > 0.8 * k
    assert filled[2] < 0.7 * loss


@MODULES
def test_rows_that_are_not_finite_never_become_centroids(module):
    x = ARRAYS[module](X.copy())
    optimizer = module.ema(0.9)
    state = module.init(ARRAYS[module](C), optimizer=optimizer)
    state, _ = module.update(x, state, optimizer=optimizer)
    spoiled = X.copy()
    spoiled[ORDER[0]], spoiled[ORDER[1], 1] = np.nan, np.inf
    found = module.reassign(
        ARRAYS[module](spoiled),
        state,
        ARRAYS[module](ORDER),
        optimizer=optimizer,
        min_count=MIN,
    )
    clean = module.reassign(
        x, state, ARRAYS[module](ORDER[2:]), optimizer=optimizer, min_count=MIN
    )
    np.testing.assert_array_equal(found.centroids, clean.centroids)
    none = module.reassign(
        ARRAYS[module](np.full_like(X, np.nan)),
        state,
        ARRAYS[module](ORDER),
        optimizer=optimizer,
        min_count=MIN,
    )
    np.testing.assert_array_equal(none.centroids, state.centroids)
