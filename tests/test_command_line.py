"""The command line: what it fits, assigns, prints and refuses, and its exit status."""

import json
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from _shell import (
    POINTS,
    ROOT,
    assert_refused,
    finished,
    fit,
    fitted,
    read,
    run,
    standard,
)

import diffkm_jax as dk
from diffkm_jax._command_line import fits, parser, progress, reading, table

ARRAYS = {"centroids", "labels", "loss", "counts", "residual", "history", "num_steps"}
ARRAYS |= {"status", "distance"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_fit(monkeypatch):
    """What is refused is refused before the fit."""
    monkeypatch.setattr(dk, "fit", None)


def fields(arrays):
    """The arrays that are not of the state to go on from."""
    return {name for name in arrays if name != "diffkm" and "state." not in name}


# The table.


@pytest.fixture(scope="module")
def cells():
    return cells_of()


def cells_of(*arguments):
    """The cells of every row of the table, by the name of the optimizer."""
    status, out, err = finished("-m", "diffkm_jax", *arguments, cwd=ROOT)
    assert (status, err) == (0, "")
    body = out.split("\n\n")[1].splitlines()
    names = [line[:18].strip() for line in body]
    return dict(zip(names, [line[18:].split() for line in body], strict=True))


def test_table_has_a_row_for_every_optimizer(cells):
    header = ["loss", "ratio", "steps", "residual", "status", "ms"]
    assert cells["optimizer"] == header
    assert list(cells)[1:] == [
        "newton (Lloyd)",
        "gradient descent",
        "momentum",
        "adam",
        "lbfgs",
        "soft, annealed",
        "online (macqueen)",
        "scikit-learn",
    ]


def test_table_newton_walks_the_path_of_scikit_learn(cells):
    ours, theirs = cells["newton (Lloyd)"], cells["scikit-learn"]
    np.testing.assert_allclose(float(ours[0]), float(theirs[0]), rtol=1e-6)
    assert ours[2] == theirs[2]
    assert int(ours[2]) > 5


def test_table_optimizers_reach_the_result_of_scikit_learn():
    # A start from which all end in minima as low; from others they need not.
    cells = cells_of("table", "--seed", "0")
    theirs = float(cells["scikit-learn"][0])
    ratios = [float(row[0]) / theirs for row in list(cells.values())[1:]]
    printed = [float(row[1]) for row in list(cells.values())[1:]]
    np.testing.assert_allclose(ratios, 1, atol=0.01)
    np.testing.assert_allclose(printed, ratios, atol=1e-5)


def test_table_full_batch_rows_converge(cells):
    full_batch = list(cells.values())[1:7]
    assert [row[4] for row in full_batch] == ["CONVERGED"] * 6


def test_table_without_scikit_learn_is_relative_to_newton(monkeypatch):
    rows = [
        ("newton (Lloyd)", 8.0, 3, "0", "CONVERGED", 1.0),
        ("adam", 10.0, 4, "0", "CONVERGED", 1.0),
    ]
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    monkeypatch.setattr(table, "our_rows", lambda *_: rows)
    status, out, err = run()
    assert (status, err) == (0, "")
    assert 'pip install "diffkm[sklearn]"' in out
    assert [out.count(ratio) for ratio in ("1.00000", "1.25000")] == [1, 1]
    assert "loss / newton's" in out
    assert "\nscikit-learn" not in out


# A fit.


def test_fit_in_a_fresh_process_is_float64_and_whole():
    points = POINTS.astype(np.float32)
    np.save("x.npy", points)
    command = "-m", "diffkm_jax", "fit", "x.npy", "-k", "3", "--out", "c.npz"
    status, out, err = finished(*command)
    assert (status, err) == (0, "")
    saved = read("c.npz")
    assert fields(saved) == ARRAYS
    assert saved["centroids"].dtype == np.float64
    assert saved["history"].shape == (saved["num_steps"] + 1,)
    assert saved["history"][-1] == saved["loss"]
    assert saved["status"] == dk.Status.CONVERGED
    rest = points.astype(np.float64) - saved["centroids"][saved["labels"]]
    np.testing.assert_allclose(np.sum(rest**2), saved["loss"], rtol=1e-12)
    assert f"{saved['loss']:.10g}" in out
    assert "n, d, k         60, 3, 3" in out
    assert {p.name for p in Path().iterdir()} == {"c.npz", "x.npy"}


def test_error_in_a_fresh_process_is_one_line_without_traceback():
    outcome = finished("-m", "diffkm_jax", "fit", "none.npy", "-k", "3")
    assert outcome == (2, "", "diffkm: error: none.npy: no such file\n")


def test_main_leaves_the_precision_of_the_process():
    before = jax.config.jax_enable_x64
    run("fit", "none.npy", "-k", 3)
    assert jax.config.jax_enable_x64 == before


def test_fit_is_the_library_call():
    saved = fitted("--seed", 4, "--restarts", 3)
    key = jax.random.key(4)
    expected = standard(dk.fit_restarts, key, POINTS, 3, num_restarts=3)
    np.testing.assert_allclose(saved["centroids"], expected.centroids, rtol=1e-13)
    np.testing.assert_array_equal(saved["labels"], expected.labels)
    np.testing.assert_array_equal(saved["counts"], expected.counts)
    assert saved["num_steps"] == expected.num_steps


def test_a_fit_in_pieces_takes_the_steps_of_one(monkeypatch):
    options = "--optimizer", "adam", "--tol", 1e-9
    whole = fitted(*options)
    monkeypatch.setattr(fits, "PIECE", 0)
    pieces = fitted(*options)
    assert whole["num_steps"] > 20
    for name in ("centroids", "history", "num_steps", "status", "state.step"):
        np.testing.assert_allclose(pieces[name], whole[name], rtol=1e-12, err_msg=name)


def test_the_library_goes_on_from_the_file_of_a_fit():
    fit("--optimizer", "adam", "--max-steps", 7, "--out", "c.npz")
    result = dk.load("c.npz")
    optimizer = optax.adam(0.1)
    after = standard(dk.fit, POINTS, result.state, optimizer=optimizer, max_steps=2)
    assert int(result.num_steps) == 7
    assert int(after.state.step) == 9


@pytest.mark.parametrize("optimizer", ["newton", "macqueen", "sgd", "adam", "lbfgs"])
def test_every_optimizer_reaches_the_loss_of_newton(optimizer):
    saved = fitted("--optimizer", optimizer, "--max-steps", 500)
    np.testing.assert_allclose(saved["loss"], fitted()["loss"], rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["rmsprop", "lion", "adagrad"])
def test_any_optimizer_of_optax_takes_its_steps(optimizer):
    options = "--optimizer", optimizer, "--learning-rate", 0.01, "--max-steps", 2
    fit(*options, "--out", "c.npz")
    fit("--max-steps", 0, "--out", "start.npz")
    made = getattr(optax, optimizer)(0.01)
    start = read("start.npz")["centroids"]
    expected = standard(dk.fit, POINTS, start, optimizer=made, max_steps=2)
    found = read("c.npz")["centroids"]
    np.testing.assert_allclose(found, expected.centroids, rtol=1e-12)


def test_ema_takes_a_hundredth_of_the_step_of_newton():
    options = "--max-steps", 1, "--out"
    fit("--max-steps", 0, "--out", "start.npz")
    fit("--optimizer", "ema", *options, "ema.npz")
    fit(*options, "newton.npz")
    names = "start", "ema", "newton"
    start, ema, newton = (read(f"{name}.npz")["centroids"] for name in names)
    np.testing.assert_allclose(ema, start + 0.01 * (newton - start), rtol=1e-9)


@pytest.mark.usefixtures("no_fit")
def test_an_unknown_optimizer_is_told_what_there_is():
    outcome = fit("--optimizer", "adman")
    assert_refused(outcome, "--optimizer", "'adman'", "adam,", "lbfgs,", "newton,")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_default_learning_rate_does_not_depend_on_the_unit(optimizer):
    one = fitted("--optimizer", optimizer)
    scaled = fitted("--optimizer", optimizer, points=1000 * POINTS)
    assert scaled["num_steps"] == one["num_steps"]
    centroids = scaled["centroids"] / 1000
    np.testing.assert_allclose(centroids, one["centroids"], rtol=1e-4)


def test_default_learning_rate_of_sgd_does_not_depend_on_the_unit_of_weights():
    np.save("w.npy", np.full(60, 1e6))
    one = fitted("--optimizer", "sgd")
    scaled = fitted("--optimizer", "sgd", "--weights", "w.npy")
    np.testing.assert_allclose(scaled["centroids"], one["centroids"], rtol=1e-9)


def test_learning_rate_scales_the_step():
    options = "--max-steps", 1, "--learning-rate", 0.001, "--out"
    fit("--max-steps", 0, "--out", "a.npz")
    fit("--optimizer", "sgd", *options, "sgd.npz")
    fit("--optimizer", "adam", *options, "adam.npz")
    start, sgd, adam = (read(f"{n}.npz")["centroids"] for n in ("a", "sgd", "adam"))
    shifts = np.asarray(dk.statistics(POINTS, start).shifts)
    np.testing.assert_allclose(sgd, start + 0.002 * shifts, rtol=1e-12)
    np.testing.assert_allclose(adam, start + 0.001 * np.sign(shifts), rtol=1e-6)


def test_temperature_makes_the_fit_soft():
    status, out, _ = fit("--temperature", 0.5, "--out", "c.npz")
    saved = read("c.npz")
    assert status == 0
    assert "(free energy)" in out
    assert fields(saved) == ARRAYS | {"temperature"}
    assert saved["temperature"] == 0.5
    energy = dk.soft_kmeans_loss(POINTS, saved["centroids"], temperature=0.5)
    np.testing.assert_allclose(saved["loss"], energy, rtol=1e-12)


@pytest.mark.parametrize("distance", parser.DISTANCES)
def test_every_distance_gives_the_loss_and_the_labels_of_the_library(distance):
    points = np.abs(POINTS) + 0.1
    _, _, err = fit("--distance", distance, "--out", "c.npz", points=points)
    saved, named = read("c.npz"), getattr(dk, distance)
    loss = dk.kmeans_loss(points, saved["centroids"], distance=named)
    np.testing.assert_allclose(saved["loss"], loss, rtol=1e-12)
    np.testing.assert_array_equal(
        saved["labels"], dk.assign(points, saved["centroids"], distance=named)
    )
    assert saved["history"][-1] < saved["history"][0]
    assert saved["distance"] == distance
    assert ("MAX_STEPS" in err) == (saved["status"] == dk.Status.MAX_STEPS)


def test_float32_is_float32_throughout():
    saved = fitted("--dtype", "float32")
    assert {saved[name].dtype for name in ("centroids", "loss")} == {np.dtype("f4")}
    np.testing.assert_allclose(saved["loss"], fitted()["loss"], rtol=1e-6)


def test_tol_and_max_steps_end_the_fit():
    strict = fitted("--optimizer", "sgd", "--tol", 1e-12)
    loose = fitted("--optimizer", "sgd", "--tol", 1e-1)
    assert loose["num_steps"] < strict["num_steps"]
    assert loose["residual"] > strict["residual"]
    fit("--max-steps", 1, "--out", "c.npz")
    assert read("c.npz")["num_steps"] == 1


@pytest.mark.parametrize("name", parser.INITIALIZERS)
def test_init_chooses_the_start(name):
    fit("--init", name, "--max-steps", 0, "--out", "c.npz")
    key = jax.random.split(jax.random.key(0), 1)[0]
    initializer = getattr(dk, parser.INITIALIZERS[name])
    start = standard(initializer, key, POINTS, 3)
    np.testing.assert_array_equal(read("c.npz")["centroids"], start)


def test_init_may_be_a_file_of_starts():
    starts = np.round(POINTS[[0, 1, 2]], 3)
    np.savetxt("starts.csv", starts, delimiter=",")
    fit("--init", "starts.csv", "--max-steps", 0, "--out", "c.npz")
    np.testing.assert_array_equal(read("c.npz")["centroids"], starts)
    assert_refused(fit("--init", "none.csv"), "none.csv: no such file")
    np.savetxt("starts.csv", starts[:2], delimiter=",")
    assert_refused(fit("--init", "starts.csv"), "starts.csv", "3 starts of 3", "(2, 3)")
    whole = fitted()
    fit("--init", "fitted.npz", "--max-steps", 0, "--out", "c.npz")
    np.testing.assert_array_equal(read("c.npz")["centroids"], whole["centroids"])


def test_max_steps_is_warned_of():
    status, out, err = fit("--max-steps", 0, "--out", "c.npz")
    assert status == 0
    assert "MAX_STEPS" in out
    assert err.startswith("diffkm: warning: ")
    assert "--max-steps" in err
    assert Path("c.npz").exists()


def test_empty_clusters_are_warned_of_and_can_be_moved():
    # Where the start draws two of the equal points, one of their clusters is empty.
    points = np.array([[0.0], [0.0], [0.0], [0.0], [9.0], [9.1], [9.2], [20.0]])
    options = "--init", "random", "--seed"
    outcomes = [fit(*options, s, points=points) for s in range(8)]
    warned = [s for s, (_, _, err) in enumerate(outcomes) if "EMPTY_CLUSTER" in err]
    assert warned
    assert [outcomes[s][0] for s in warned] == [0] * len(warned)
    assert outcomes[warned[0]][2].startswith("diffkm: warning: empty clusters: 1 of 3")
    status, out, err = fit(*options, warned[0], "--empty", "farthest", points=points)
    assert (status, err) == (0, "")
    assert "empty clusters  0" in out


def test_a_fit_that_does_not_rest_is_told():
    points = np.array([[-1.0], [-1.05], [2.06], [4.1], [4.1]])
    np.save("x.npy", points)
    np.save("starts.npy", np.array([[0.0], [4.2]]))
    options = "-k", 2, "--tol", 0.01, "--init", "starts.npy"
    status, out, err = run("fit", "x.npy", *options)
    assert status == 0
    assert "status          NOT_AT_REST" in out
    assert "(NOT_AT_REST): see --tol" in err


def test_non_finite_fit_writes_nothing_and_says_so():
    Path("c.npz").write_text("old")
    status, out, err = fit("--out", "c.npz", points=POINTS * 1e200)
    assert status == 3
    assert "NON_FINITE" in out
    assert "diffkm: error: " in err
    assert "nothing is written" in err
    assert Path("c.npz").read_text() == "old"
    assert len(list(Path().iterdir())) == 2


# By batches.

BATCHES = "--batch-size", 20


def test_batches_end_near_the_fit_of_all_points():
    expected = fitted()
    saved = fitted(*BATCHES)
    assert saved["num_steps"] == 100
    np.testing.assert_allclose(saved["loss"], expected["loss"], rtol=0.05)
    found = dk.kmeans_loss(POINTS, saved["centroids"])
    np.testing.assert_allclose(saved["loss"], found, rtol=1e-12)
    labels = dk.assign(POINTS, saved["centroids"])
    np.testing.assert_array_equal(saved["labels"], labels)
    np.testing.assert_array_equal(saved["counts"], np.bincount(labels))
    assert saved["centroids"].dtype == np.float64
    assert dk.load("fitted.npz").flags == dk.Status.MAX_STEPS


def test_losses_of_batches_estimate_that_of_all_points():
    saved = fitted(*BATCHES, "--batches", 200)
    assert saved["history"].shape == (201,)
    np.testing.assert_allclose(saved["history"][100:].mean(), saved["loss"], rtol=0.1)


def test_epochs_count_the_points():
    assert fitted(*BATCHES, "--epochs", 2.5)["num_steps"] == 8
    assert fitted(*BATCHES, "--batches", 5)["num_steps"] == 5


def test_points_of_weight_zero_are_not_in_batches():
    weights = np.zeros(60)
    weights[::3] = 2.0
    np.save("w.npy", weights)
    points = np.where(weights[:, None] > 0, POINTS, 1e3)
    options = "--weights", "w.npy", "--optimizer", "adam"
    saved = fitted(*BATCHES, *options, points=points)
    assert saved["counts"].sum() == 40
    assert np.abs(saved["centroids"]).max() < 10
    expected = dk.kmeans_loss(points, saved["centroids"], weights=weights)
    np.testing.assert_allclose(saved["loss"], expected, rtol=1e-12)


def test_restarts_of_batches_keep_the_best():
    losses = [fitted(*BATCHES, "--restarts", n)["loss"] for n in (1, 4)]
    assert losses[1] <= losses[0]


def test_a_file_is_never_read_whole_by_batches(monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 2**16)
    points = np.random.default_rng(0).normal(size=(400_000, 8))
    np.save("x.npy", points)
    tracemalloc.start()
    try:
        command = "fit", "x.npy", "-k", 3, "--batch-size", 100, "--batches", 5
        status, _, _ = run(*command, "--out", "c.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert status == 0
    # Its labels, twice, and a block; the points are 26 MB.
    assert peak < 8e6
    np.testing.assert_allclose(read("c.npz")["counts"].sum(), 400_000)


# What it says.


def test_json_is_one_object():
    status, out, err = fit("--json", "--out", "c.npz")
    assert (status, err) == (0, "")
    found, saved = json.loads(out), read("c.npz")
    assert found.pop("seconds") > 0
    assert found == {
        "n": 60,
        "d": 3,
        "k": 3,
        "loss": float(saved["loss"]),
        "temperature": None,
        "steps": int(saved["num_steps"]),
        "residual": float(saved["residual"]),
        "status": ["CONVERGED"],
        "sizes": saved["counts"].tolist(),
        "out": "c.npz",
        "plot": None,
    }


def test_json_has_null_for_what_is_not_finite():
    status, out, _ = fit("--json", "--out", "c.npz", points=POINTS * 1e200)
    found = json.loads(out, parse_constant=pytest.fail)
    assert status == 3
    assert (found["loss"], found["out"]) == (None, None)
    assert "NON_FINITE" in found["status"]


@pytest.fixture
def slow(monkeypatch):
    """As if every piece took long."""
    monkeypatch.setattr(fits, "PIECE", 0)
    monkeypatch.setattr(progress, "INTERVAL", 0)


@pytest.mark.usefixtures("slow")
def test_progress_is_lines_with_loss_and_residual():
    options = "--optimizer", "adam", "--tol", 1e-9, "--restarts", 2, "--progress"
    status, _, err = fit(*options, "--out", "c.npz")
    lines = err.splitlines()
    assert status == 0
    assert len(lines) > 2
    assert lines[0].startswith("diffkm: fit 1 of 2: step 10 of at most 300, loss ")
    assert lines[-1].startswith("diffkm: fit 2 of 2: step ")
    assert "residual" in lines[0]
    assert fit(*options[:-1])[2] == ""
    assert "step 1 of at most 100, loss" in fit(*BATCHES, "--progress")[2]


@pytest.mark.usefixtures("slow")
def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    seen = []

    class Bar:
        def __init__(self, **options):
            self.n = 0
            seen.append(options["total"])

        def set_postfix(self, **numbers):
            seen.append(sorted(numbers))

        def update(self, steps):
            self.n += steps

        def close(self):
            seen.append(self.n)

    monkeypatch.setattr(progress, "_tqdm", lambda: Bar)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    assert fit("--optimizer", "adam", "--tol", 1e-9)[0] == 0
    assert seen[:2] == [300, ["loss", "residual"]]
    assert seen[-1] % 10 == 0
    assert seen[-1] > 0
