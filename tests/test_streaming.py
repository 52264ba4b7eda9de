"""Fits to batches are those of all points, or loops of updates; and nothing is lost."""

import io
import signal
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import diffkm_jax as dk

RNG = np.random.default_rng(0)
X = RNG.normal(size=(103, 3))
W = RNG.uniform(0.5, 2, size=103)
C = X[:4] + 0.1
FAR = np.concatenate([C[:3], [[50.0, 0.0, 0.0]]])
POSITIVE = np.abs(X) + 0.1


def pieces(*arrays, size=20):
    """Batches of rows, the last one smaller; pairs, if there are two arrays."""
    starts = range(0, len(arrays[0]), size)
    parts = [tuple(a[i : i + size] for a in arrays) for i in starts]
    return parts if len(arrays) > 1 else [part[0] for part in parts]


def assert_same_fit(found, expected, tolerance=1e-12):
    for name in ("centroids", "loss", "counts", "residual"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    steps = int(expected.num_steps)
    assert (found.num_steps, found.status) == (steps, int(expected.status))
    history = expected.history[: steps + 1]
    np.testing.assert_allclose(found.history, history, rtol=tolerance)
    assert int(found.state.step) == int(expected.state.step)


def sphere(v):
    return jnp.sum(v**4 + v**2)


SGD = optax.sgd(1e-3)
SCHEDULE = lambda step: jnp.maximum(1.0 - 0.2 * step.astype(float), 0.2)  # noqa: E731
PASSES = {
    "hard": {},
    "to rounding": {"tol": 0.0},
    "soft": {"temperature": 0.4},
    "schedule": {"temperature": SCHEDULE},
    "cosine": {"distance": dk.cosine},
    "bregman": {"distance": dk.bregman(sphere)},
    "gradient descent": {"optimizer": SGD},
    "averages": {"optimizer": dk.ema(0.5)},
    "no means": {"optimizer": SGD, "distance": dk.manhattan},
    "farthest": {"empty": "farthest", "start": FAR},
    "policy": {"empty": lambda c, n, rows, _: jnp.where(n[:, None] > 0, c, rows)},
    "active": {"active": np.array([True, True, False, True])},
    "divergence": {"distance": dk.kl_divergence, "points": POSITIVE},
    "none": {"max_steps": 0},
    "few": {"max_steps": 2},
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_are_the_fit_in_memory(name):
    options = dict(PASSES[name])
    points, start = options.pop("points", X), options.pop("start", C)
    start = points[:4] if points is POSITIVE else start
    steps = options.pop("max_steps", 40)
    expected = dk.fit(points, start, max_steps=steps, **options)
    found = dk.fit_stream(pieces(points), start, passes=steps, **options)
    assert_same_fit(found, expected)


def test_passes_of_weighted_batches_are_the_weighted_fit():
    weights = W.copy()
    weights[::7] = 0
    points = X.copy()
    points[7] = np.nan
    found = dk.fit_stream(pieces(points, weights), C, passes=40, weighted=True)
    assert_same_fit(found, dk.fit(points, C, weights=weights))


def test_a_step_by_every_batch_is_the_loop_of_updates():
    for optimizer in (None, dk.ema(0.9), SGD):
        used = optimizer or dk.macqueen()
        state, losses = dk.init(C, optimizer=used), []
        for batch in pieces(X):
            state, stats = dk.update(batch, state, optimizer=used)
            losses.append(stats.loss)
        found = dk.fit_stream(pieces(X), C, optimizer=optimizer)
        np.testing.assert_allclose(found.centroids, state.centroids, rtol=1e-12)
        np.testing.assert_allclose(found.history, losses, rtol=1e-12)
        np.testing.assert_allclose(found.loss, sum(losses), rtol=1e-12)
        assert (found.num_steps, found.counts.sum()) == (6, 103)
        assert found.status == dk.Status.MAX_STEPS


def in_files(folder):
    paths = []
    for i, part in enumerate(np.split(X, [40, 41, 90])):
        paths.append(folder / f"{i}.npy")
        np.save(paths[-1], part)
    return paths


def as_memmap(folder):
    np.save(folder / "all.npy", X)
    return np.load(folder / "all.npy", mmap_mode="r")


def loader(_):
    points = torch.utils.data.TensorDataset(torch.tensor(X))
    return torch.utils.data.DataLoader(points, batch_size=20)


def reused(_):
    """A function of a generator that has one buffer for all batches."""

    def batches():
        buffer = np.empty((20, 3))
        for part in pieces(X):
            buffer[: len(part)] = part
            yield buffer[: len(part)]
            buffer[:] = np.nan

    return batches


SOURCES = {
    "array": lambda _: X,
    "JAX array": lambda _: jnp.asarray(X),
    "memory map": as_memmap,
    "a part of a map": lambda folder: as_memmap(folder)[0:103],
    "files": in_files,
    "names": lambda folder: [str(path) for path in in_files(folder)],
    "list": lambda _: pieces(X),
    "tensors": lambda _: [torch.tensor(part) for part in pieces(X)],
    "loader": loader,
    "function": reused,
    "other bytes": lambda _: [part.astype(">f8") for part in pieces(X)],
}


@pytest.mark.parametrize("name", SOURCES)
def test_whatever_batches_are_in_they_are_the_same(name, tmp_path):
    source = SOURCES[name](tmp_path)
    found = dk.fit_stream(source, C, batch_size=20)
    expected = dk.fit_stream(pieces(X), C)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    whole = dk.fit_stream(source, C, batch_size=20, passes=3)
    np.testing.assert_allclose(whole.loss, dk.fit(X, C, max_steps=3).loss, rtol=1e-12)


def test_a_generator_is_read_once_and_from_the_middle_of_an_array():
    found = dk.fit_stream((part for part in pieces(X[3:])), C)
    expected = dk.fit_stream(X[3:], C, batch_size=20)
    np.testing.assert_array_equal(found.centroids, expected.centroids)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
def test_dtypes_are_those_of_a_fit(dtype):
    points, start = (X * 10).astype(dtype), (C * 10).astype("float32")
    found = dk.fit_stream(pieces(points), start, passes=3)
    expected = dk.fit(jnp.asarray(points), start, max_steps=3)
    assert found.centroids.dtype == expected.centroids.dtype
    assert found.loss.dtype == expected.loss.dtype
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize("passes", [None, 4])
def test_it_goes_on_from_its_state_as_if_it_had_not_stopped(passes):
    batches, options = pieces(X), {"passes": passes, "tol": 0.0}
    if passes is None:
        whole = dk.fit_stream(batches, C, **options)
        half = dk.fit_stream(batches[:2], C, **options)
        found = dk.fit_stream(batches[2:], half.state, **options)
    else:
        whole = dk.fit_stream(batches, C, **options)
        half = dk.fit_stream(batches, C, **options | {"passes": 1})
        found = dk.fit_stream(batches, half.state, **options | {"passes": 3})
    jax.tree.map(np.testing.assert_array_equal, found.state, whole.state)
    assert half.num_steps + found.num_steps == whole.num_steps


def test_batches_go_to_the_devices_of_a_sharding():
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        where = NamedSharding(mesh, P("data"))
        for options in ({"empty": "farthest"}, {"distance": dk.kl_divergence}):
            points = POSITIVE if "distance" in options else X
            start = points[:4] if "distance" in options else FAR
            fit = partial(dk.fit_stream, pieces(points), start, sharding=where)
            expected = dk.fit(points, start, max_steps=40, **options)
            assert_same_fit(fit(passes=40, **options), expected)
            alone = dk.fit_stream(pieces(points), start, **options)
            found = fit(**options)
            np.testing.assert_allclose(found.centroids, alone.centroids, rtol=1e-12)


@pytest.mark.parametrize("passes", [None, 9])
def test_a_function_sees_every_step_and_may_end_it(passes):
    seen = []

    def callback(state, stats):
        seen.append((int(state.step), float(stats.loss)))
        return len(seen) == 3

    found = dk.fit_stream(pieces(X), C, passes=passes, tol=0.0, callback=callback)
    assert [step for step, _ in seen] == [1, 2, 3]
    np.testing.assert_allclose(found.history[:3], [loss for _, loss in seen])
    assert (found.num_steps, found.status) == (3, dk.Status.INTERRUPTED)
    expected = dk.fit_stream(pieces(X)[:3], C).state
    if passes is not None:
        expected = dk.fit(X, C, max_steps=3, tol=0.0).state
        np.testing.assert_allclose(found.loss, dk.kmeans_loss(X, found.centroids))
    np.testing.assert_allclose(found.state.centroids, expected.centroids, rtol=1e-12)


@pytest.mark.parametrize("passes", [None, 9])
@pytest.mark.parametrize("answer", [np.True_, jnp.array(True), 1])
def test_whatever_is_true_ends_it(passes, answer):
    found = dk.fit_stream(
        pieces(X), C, passes=passes, tol=0.0, callback=lambda *_: answer
    )
    assert (found.num_steps, found.status) == (1, dk.Status.INTERRUPTED)


def test_a_state_goes_on_with_few_rows_and_with_none():
    first, last = X[:100], X[100:]
    state = dk.fit_stream([first], C).state
    whole = dk.fit_stream([first, last], C)
    found = dk.fit_stream([last], state)
    np.testing.assert_array_equal(found.centroids, whole.centroids)
    none = dk.fit_stream([], state)
    np.testing.assert_array_equal(none.centroids, state.centroids)
    assert (none.num_steps, none.status) == (0, dk.Status.MAX_STEPS)


@pytest.mark.parametrize("passes", [None, 9])
def test_ctrl_c_returns_where_it_is(passes):
    def interrupt(state, _):
        if int(state.step) == 3:
            signal.raise_signal(signal.SIGINT)

    options = {"passes": passes, "tol": 0.0}
    found = dk.fit_stream(pieces(X), C, callback=interrupt, **options)
    assert dk.Status.INTERRUPTED in found.status
    assert found.num_steps == int(found.state.step) == 3
    np.testing.assert_array_equal(found.centroids, found.state.centroids)
    whole = dk.fit_stream(pieces(X), C, **options)
    np.testing.assert_array_equal(found.history[:3], whole.history[:3])


@pytest.mark.parametrize("passes", [None, 9])
def test_ctrl_c_before_the_first_batch_is_not_caught(passes):
    def batches():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        yield X

    with pytest.raises(KeyboardInterrupt):
        dk.fit_stream(batches, C, passes=passes)


@pytest.mark.parametrize("passes", [None, 3])
def test_a_batch_that_is_not_finite_is_named_and_the_state_before_it_kept(passes):
    batches = pieces(X.copy())
    batches[3][5, 1] = np.nan
    with pytest.warns(
        RuntimeWarning, match=r"^row 5 of batch 3 is not finite: the fit"
    ):
        found = dk.fit_stream(batches, C, passes=passes)
    assert found.status == dk.Status.NON_FINITE
    steps = 3 if passes is None else 0
    assert found.num_steps == int(found.state.step) == steps
    expected = dk.fit_stream(batches[:3], C).centroids if steps else C
    np.testing.assert_array_equal(found.centroids, expected)


def test_weights_that_are_not_finite_are_named_too():
    weights = W.copy()
    weights[25] = np.inf
    with pytest.warns(RuntimeWarning, match="^row 5 of batch 1 is not finite"):
        dk.fit_stream(pieces(X, weights), C, weighted=True)


@pytest.mark.parametrize("passes", [None, 3])
def test_an_error_in_reading_has_what_was_found_so_far(passes):
    def batches():
        yield from pieces(X)
        if calls.pop():
            raise OSError("no such disk")

    calls = [True] if passes is None else [True, False]
    with pytest.raises(OSError, match="no such disk") as error:
        dk.fit_stream(batches, C, passes=passes)
    steps = 6 if passes is None else 1
    assert error.value.result.num_steps == steps
    assert error.value.result.status == dk.Status.INTERRUPTED
    assert error.value.__notes__ == [
        f"fit_stream had taken {steps} steps: see error.result"
    ]


def test_points_outside_a_domain_are_said():
    points = POSITIVE.copy()
    points[50, 0] = -1
    for passes in (None, 2):
        options = {"passes": passes, "distance": dk.kl_divergence}
        found = dk.fit_stream(pieces(points), POSITIVE[:4], **options)
        assert dk.Status.DOMAIN in found.status


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


def test_a_bar_shows_steps_on_a_terminal_only(capsys, monkeypatch):
    dk.fit_stream(pieces(X), C, progress=True)
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    dk.fit_stream(pieces(X), C, progress=True)
    assert "6step" in terminal.getvalue()
    assert "loss=" in terminal.getvalue()
    before = terminal.getvalue()
    dk.fit_stream(pieces(X), C, passes=2)
    assert terminal.getvalue() == before


def test_a_cluster_that_does_not_exist_is_not_empty():
    active = np.array([True, True, False, True])
    for passes in (None, 40):
        found = dk.fit_stream(pieces(X), C, passes=passes, active=active)
        assert dk.Status.EMPTY_CLUSTER not in found.status
        assert found.counts[2] == 0
    far = dk.fit_stream(pieces(X), FAR)
    assert dk.Status.EMPTY_CLUSTER in far.status


def test_without_tqdm_a_bar_is_refused_at_once(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"^progress needs tqdm: pip install 'diffkm"):
        dk.fit_stream(pieces(X), C, progress=True)


def searched(gradient, state, params, *, value_fn, **_):
    return -value_fn(params) * gradient, state


SEARCH = optax.GradientTransformationExtraArgs(lambda _: (), searched)


def a_file(folder, array, name="a"):
    np.save(folder / f"{name}.npy", array)
    return folder / f"{name}.npy"


def truncated(folder):
    path = a_file(folder, X)
    path.write_bytes(path.read_bytes()[:500])
    return [path]


BATCHES = r"^batches must "
WRONG = {
    "nothing": (lambda _: [], {}, BATCHES + "have rows, got none"),
    "no rows": (lambda _: [X[:0]], {}, BATCHES + "have rows, got none"),
    "no pass": (lambda _: [], {"passes": 2}, BATCHES + "have rows, the same on every"),
    "width": (
        lambda _: [X, X[:, :2]],
        {},
        BATCHES + r"be \[m, 3\] as centroids \[k, 3\], got shape \(103, 2\) in batch 1",
    ),
    "one row": (lambda _: [X[0]], {}, BATCHES + r"be \[m, 3\].*got shape \(3,\)"),
    "small": (
        lambda _: [X[:3]],
        {},
        r"at most n = 3 \(of the first batch\), got k = 4",
    ),
    "few": (lambda _: [X[:3]], {"passes": 1}, r"at most n = 3 \(the points\), got k"),
    "once": (
        lambda _: iter(pieces(X)),
        {"passes": 2},
        BATCHES + "be there to be read again for passes, got an iterator: pass a list",
    ),
    "other": (
        lambda _: partial(next, iter([pieces(X), [X[:5]]])),
        {"passes": 2, "tol": 0.0},
        BATCHES + "have rows, the same on every pass, got 103 in the first and 5 in",
    ),
    "pairs": (
        lambda _: pieces(X, W),
        {},
        BATCHES + "be arrays, got 2 arrays in batch 0 .weighted=True takes such pairs",
    ),
    "no pairs": (
        lambda _: pieces(X),
        {"weighted": True},
        BATCHES + "be pairs of points and weights, got an array .* in batch 0",
    ),
    "weights": (
        lambda _: [(X, W[:5])],
        {"weighted": True},
        BATCHES + r"have weights \[103\] with points \(103, 3\), got shape \(5,\)",
    ),
    "a number": (lambda _: 3, {}, BATCHES + r"be an array \[n, d\], paths of .npy"),
    "a mask": (
        lambda _: [np.ma.masked_greater(X, 5)],
        {},
        BATCHES + "be arrays without a mask, got an array .* in batch 0: fill it",
    ),
    "made of nothing": (
        lambda _: lambda: None,
        {},
        BATCHES + r"be a function that returns .* of arrays \[m, d\], got None",
    ),
    "made of an array": (
        lambda _: lambda: X,
        {},
        BATCHES + r"be a function that .* \[m, d\], not one array, got an array",
    ),
    "made of a path": (
        lambda _: lambda: "a.npy",
        {},
        BATCHES + "be a function that returns an iterable .*, got 'a.npy'",
    ),
    "files of other widths": (
        lambda folder: [a_file(folder, X), a_file(folder, X[:, :2], "b")],
        {"batch_size": 200},
        BATCHES + r"be \.npy files .*b\.npy: it has rows of 2, centroids of 3$",
    ),
    "words": (lambda _: [np.array([["a"]])], {}, BATCHES + "be real, got dtype <U1"),
    "missing": (
        lambda folder: folder / "b.npy",
        {},
        BATCHES + r"be \.npy files of whole arrays \[n, d\], got .*b\.npy: .*No such",
    ),
    "truncated": (
        truncated,
        {},
        BATCHES + r"be \.npy files of whole arrays .*a\.npy: ",
    ),
    "rank": (
        lambda f: [a_file(f, X[0])],
        {},
        r"a\.npy: it holds an array of shape \(3,\), dtype float64$",
    ),
    "batch_size": (lambda _: X, {"batch_size": 0}, "^batch_size must be at least 1"),
    "no sharding": (
        lambda _: X,
        {"sharding": "data"},
        "^sharding must be a NamedSharding, got 'data'",
    ),
    "columns": (
        lambda _: X,
        {"sharding": NamedSharding(jax.make_mesh((2,), ("i",)), P(None, "i"))},
        "^sharding must be sharded over rows only, as by NamedSharding",
    ),
    "passes": (lambda _: X, {"passes": -1}, "^passes must be at least 0"),
    "callback": (lambda _: X, {"callback": 3}, "^callback must be a function, got 3"),
    "search": (
        lambda _: X,
        {"passes": 1, "optimizer": SEARCH},
        "^optimizer must not search along a line",
    ),
    "tol": (lambda _: X, {"tol": -1.0}, "^tol must be finite and not negative"),
    "one centroid": (lambda _: X, {"start": C[0]}, r"^centroids must be \[k, d\]"),
    "a number of them": (
        lambda _: X,
        {"start": 4},
        r"^centroids must be \[k, d\], got",
    ),
    "a result": (
        lambda _: X,
        {"start": dk.fit_stream([X], C)},
        "^centroids must be an array or a State: pass result.state",
    ),
    "outside": (
        lambda _: X,
        {"distance": dk.kl_divergence},
        "^centroids must have no number below 0",
    ),
    "no answer": (
        lambda _: X,
        {"callback": lambda state, _: state.centroids},
        "^callback must return whether to stop, or None, got an array",
    ),
    "state": (
        lambda _: X,
        {"start": dk.init(C), "optimizer": dk.ema()},
        "^state must be of the optimizer given",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_said(name, tmp_path):
    source, options, message = WRONG[name]
    options = dict(options)
    start = options.pop("start", C)
    with pytest.raises((ValueError, TypeError), match=message):
        dk.fit_stream(source(tmp_path), start, **options)


@pytest.mark.parametrize("x64", [True, False])
def test_the_thread_that_reads_has_the_precision_of_the_caller(x64):
    # Not that of the process, which a context may change for one thread.
    x = np.random.default_rng(0).normal(size=(60, 3))
    with jax.enable_x64(x64):
        result = dk.fit_stream(lambda: [x[:30], x[30:]], x[:3], passes=3)
        expected = dk.fit(x, x[:3], max_steps=3)
    assert result.loss.dtype == expected.loss.dtype
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-14 if x64 else 1e-6)
