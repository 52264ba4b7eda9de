"""The command line: what it prints, writes and refuses, and its exit status."""

import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

import diffkm_jax as dk
from diffkm_jax import __main__ as command_line
from diffkm_jax import _writing

ROOT = Path(__file__).parents[1]
POINTS = np.random.default_rng(0).normal(size=(60, 3)) + 5.0 * np.eye(3)[[0, 1, 2] * 20]
RESULT = {"centroids", "labels", "loss", "counts", "residual", "history", "num_steps"}
RESULT |= {"status"}


def standard(function, *arguments, **options):
    """Calls where dtypes may be promoted, as optax does."""
    with jax.numpy_dtype_promotion("standard"):
        return function(*arguments, **options)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the command line in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            status = standard(command_line.main, [str(a) for a in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def fit(run):
    """Saves points as x.npy and fits them with k = 3."""

    def fit(*arguments, points=POINTS):
        np.save("x.npy", points)
        return run("fit", "x.npy", "-k", 3, *arguments)

    return fit


def assert_refused(outcome, status, *fragments):
    """One error line with every fragment, nothing on stdout, nothing left behind."""
    assert outcome[:2] == (status, "")
    message = outcome[2].splitlines()[-1]
    assert message.startswith("diffkm: error: ")
    assert outcome[2].count("error") == 1
    assert [f for f in fragments if f not in message] == []
    assert list(Path().rglob(".*")) == []


def command(*arguments):
    line = [sys.executable, "-m", "diffkm_jax", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


# The table.


@pytest.fixture(scope="module")
def table():
    return cells()


def cells(*arguments):
    """The cells of every row of the table, by the name of the optimizer."""
    done = command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    body = done.stdout.split("\n\n")[1].splitlines()
    names = [line[:18].strip() for line in body]
    return dict(zip(names, [line[18:].split() for line in body], strict=True))


def test_table_has_a_row_for_every_optimizer(table):
    header = ["loss", "ratio", "steps", "residual", "status", "ms"]
    assert table["optimizer"] == header
    assert list(table)[1:] == [
        "newton (Lloyd)",
        "gradient descent",
        "momentum",
        "adam",
        "lbfgs",
        "soft, annealed",
        "online (macqueen)",
        "scikit-learn",
    ]


def test_table_newton_walks_the_path_of_scikit_learn(table):
    ours, theirs = table["newton (Lloyd)"], table["scikit-learn"]
    np.testing.assert_allclose(float(ours[0]), float(theirs[0]), rtol=1e-6)
    assert ours[2] == theirs[2]
    assert int(ours[2]) > 5


def test_table_optimizers_reach_the_result_of_scikit_learn():
    # A start from which all end in minima as low; from others they need not.
    table = cells("table", "--seed", "0")
    theirs = float(table["scikit-learn"][0])
    ratios = [float(cells[0]) / theirs for cells in list(table.values())[1:]]
    printed = [float(cells[1]) for cells in list(table.values())[1:]]
    np.testing.assert_allclose(ratios, 1, atol=0.01)
    np.testing.assert_allclose(printed, ratios, atol=1e-5)


def test_table_full_batch_rows_converge(table):
    full_batch = list(table.values())[1:7]
    assert [cells[4] for cells in full_batch] == ["CONVERGED"] * 6


def test_table_without_scikit_learn_is_relative_to_newton(run, monkeypatch):
    rows = [
        ("newton (Lloyd)", 8.0, 3, "0", "CONVERGED", 1.0),
        ("adam", 10.0, 4, "0", "CONVERGED", 1.0),
    ]
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    monkeypatch.setattr(command_line, "our_rows", lambda *_: rows)
    status, out, err = run()
    assert (status, err) == (0, "")
    assert 'pip install "diffkm[sklearn]"' in out
    assert [out.count(ratio) for ratio in ("1.00000", "1.25000")] == [1, 1]
    assert "loss / newton's" in out
    assert "\nscikit-learn" not in out


# A fit.


def test_fit_in_a_fresh_process_is_float64_and_whole(tmp_path):
    np.save(tmp_path / "x.npy", POINTS.astype(np.float32))
    out = tmp_path / "c.npz"
    done = command("fit", tmp_path / "x.npy", "-k", 3, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(out) as saved:
        assert set(saved) == RESULT
        assert saved["centroids"].dtype == np.float64
        loss, labels = float(saved["loss"]), saved["labels"]
        assert saved["history"].shape == (saved["num_steps"] + 1,)
        assert saved["history"][-1] == loss
        assert saved["status"] == dk.Status.CONVERGED
        rest = POINTS.astype(np.float32) - saved["centroids"][labels]
    np.testing.assert_allclose(np.sum(rest.astype(np.float64) ** 2), loss, rtol=1e-12)
    assert f"{loss:.10g}" in done.stdout
    assert "n, d, k         60, 3, 3" in done.stdout
    assert set(tmp_path.iterdir()) == {out, tmp_path / "x.npy"}


def test_error_in_a_fresh_process_is_one_line_without_traceback(tmp_path):
    done = command("fit", tmp_path / "none.npy", "-k", 3)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"diffkm: error: {tmp_path}/none.npy: no such file\n"


def test_main_leaves_the_precision_of_the_process(run):
    before = jax.config.jax_enable_x64
    run("fit", "none.npy", "-k", 3)
    assert jax.config.jax_enable_x64 == before


def test_fit_is_the_library_call(fit):
    assert fit("--out", "c.npz", "--seed", 4, "--restarts", 3)[0] == 0
    key = jax.random.key(4)
    expected = standard(dk.fit_restarts, key, POINTS, 3, num_restarts=3)
    saved = np.load("c.npz")
    np.testing.assert_array_equal(saved["centroids"], expected.centroids)
    np.testing.assert_array_equal(saved["labels"], expected.labels)
    np.testing.assert_array_equal(saved["counts"], expected.counts)
    assert saved["residual"] == expected.residual


OPTIMIZERS = ["newton", "macqueen", "sgd", "adam", "lbfgs"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_reaches_the_loss_of_newton(fit, optimizer):
    key = jax.random.key(0)
    expected = standard(dk.fit_restarts, key, POINTS, 3, num_restarts=1).loss
    assert fit("--optimizer", optimizer, "--out", "c.npz", "--max-steps", 500)[0] == 0
    np.testing.assert_allclose(np.load("c.npz")["loss"], expected, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_default_learning_rate_does_not_depend_on_the_unit(fit, optimizer):
    fit("--optimizer", optimizer, "--out", "a.npz")
    fit("--optimizer", optimizer, "--out", "b.npz", points=1000 * POINTS)
    one, scaled = np.load("a.npz"), np.load("b.npz")
    assert scaled["num_steps"] == one["num_steps"]
    centroids = scaled["centroids"] / 1000
    np.testing.assert_allclose(centroids, one["centroids"], rtol=1e-4)


def test_learning_rate_scales_the_step(fit):
    fit("--max-steps", 0, "--out", "a.npz")
    options = "--max-steps", 1, "--learning-rate", 0.001
    fit("--optimizer", "sgd", *options, "--out", "sgd.npz")
    fit("--optimizer", "adam", *options, "--out", "adam.npz")
    start, sgd, adam = (np.load(f"{n}.npz")["centroids"] for n in ("a", "sgd", "adam"))
    shifts = np.asarray(dk.statistics(POINTS, start).shifts)
    np.testing.assert_allclose(sgd, start + 0.002 * shifts, rtol=1e-12)
    np.testing.assert_allclose(adam, start + 0.001 * np.sign(shifts), rtol=1e-6)


def test_temperature_makes_the_fit_soft(fit):
    status, out, _ = fit("--temperature", 0.5, "--out", "c.npz")
    saved = np.load("c.npz")
    assert status == 0
    assert "(free energy)" in out
    assert set(saved) == RESULT | {"temperature"}
    assert saved["temperature"] == 0.5
    energy = dk.soft_kmeans_loss(POINTS, saved["centroids"], temperature=0.5)
    np.testing.assert_allclose(saved["loss"], energy, rtol=1e-12)


def test_tol_and_max_steps_end_the_fit(fit):
    fit("--optimizer", "sgd", "--tol", 1e-12, "--out", "a.npz")
    fit("--optimizer", "sgd", "--tol", 1e-1, "--out", "b.npz")
    strict, loose = np.load("a.npz"), np.load("b.npz")
    assert loose["num_steps"] < strict["num_steps"]
    assert loose["residual"] > strict["residual"]
    fit("--max-steps", 1, "--out", "c.npz")
    assert np.load("c.npz")["num_steps"] == 1


def test_init_chooses_the_start(fit):
    for name, initializer in command_line.INITIALIZERS.items():
        fit("--init", name, "--max-steps", 0, "--out", f"{name}.npz")
        key = jax.random.split(jax.random.key(0), 1)[0]
        start = standard(initializer, key, POINTS, 3)
        np.testing.assert_array_equal(np.load(f"{name}.npz")["centroids"], start)


def test_max_steps_is_warned_of(fit):
    status, out, err = fit("--max-steps", 0, "--out", "c.npz")
    assert status == 0
    assert "MAX_STEPS" in out
    assert err.startswith("diffkm: warning: ")
    assert "--max-steps" in err
    assert Path("c.npz").exists()


def test_empty_clusters_are_warned_of_and_can_be_moved(fit):
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


def test_non_finite_fit_writes_nothing_and_says_so(fit):
    Path("c.npz").write_text("old")
    status, out, err = fit("--out", "c.npz", points=POINTS * 1e200)
    assert status == 3
    assert "NON_FINITE" in out
    assert "diffkm: error: " in err
    assert "nothing is written" in err
    assert Path("c.npz").read_text() == "old"
    assert len(list(Path().iterdir())) == 2


# The output.


def fail_midway(error):
    def savez(file, **_):
        file.write(b"half")
        raise error

    return savez


def test_failed_write_leaves_no_file(fit, monkeypatch):
    monkeypatch.setattr(np, "savez", fail_midway(OSError(28, "No space left")))
    status, _, err = fit("--out", "c.npz")
    assert status == 1
    assert err.startswith("diffkm: error: ")
    assert "c.npz: cannot be written" in err
    assert "No space left" in err
    assert [p.name for p in Path().iterdir()] == ["x.npy"]


def test_interrupted_write_leaves_the_old_file(fit, monkeypatch):
    Path("c.npz").write_text("old")
    monkeypatch.setattr(np, "savez", fail_midway(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit("--out", "c.npz")
    assert Path("c.npz").read_text() == "old"
    assert sorted(p.name for p in Path().iterdir()) == ["c.npz", "x.npy"]


def test_output_replaces_a_file_and_keeps_a_link(fit):
    Path("real.npz").write_text("old")
    Path("link.npz").symlink_to("real.npz")
    assert fit("--out", "link.npz")[0] == 0
    assert Path("link.npz").is_symlink()
    assert np.load("real.npz")["centroids"].shape == (3, 3)


def test_output_has_the_permissions_of_a_new_file(fit):
    fit("--out", "c.npz")
    assert Path("c.npz").stat().st_mode == Path("x.npy").stat().st_mode


@pytest.fixture
def no_fit(monkeypatch):
    """What is refused is refused before the fit."""
    monkeypatch.setattr(dk, "fit_restarts", None)


@pytest.mark.usefixtures("no_fit")
def test_output_folder_must_exist(fit):
    assert_refused(fit("--out", "none/c.npz"), 1, "none/c.npz", "folder")


@pytest.mark.usefixtures("no_fit")
def test_output_folder_must_be_writable(fit, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert_refused(fit("--out", "c.npz"), 1, "c.npz", "Permission denied")


@pytest.mark.usefixtures("no_fit")
def test_output_must_not_be_a_folder(fit):
    Path("c.npz").mkdir()
    assert_refused(fit("--out", "c.npz"), 1, "c.npz", "directory")


@pytest.mark.usefixtures("no_fit")
def test_output_must_not_be_the_input(run):
    np.savez("x.npz", POINTS)
    outcome = run("fit", "x.npz", "-k", 3, "--out", "./x.npz")
    assert_refused(outcome, 1, "x.npz", "input")


# What can be read.


def centroid_of(run, file, *options):
    """The mean of a file's points, as the one centroid of a fit."""
    assert run("fit", file, "-k", 1, "--out", "mean.npz", *options)[0] == 0
    saved = np.load("mean.npz")
    assert saved["centroids"].dtype == np.float64
    return saved["centroids"][0], int(saved["counts"][0])


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", ">f4", "f8"])
def test_numbers_of_any_kind_are_read(run, dtype):
    points = np.abs(POINTS).astype(dtype)
    np.save("x.npy", np.asfortranarray(points))
    mean, n = centroid_of(run, "x.npy")
    np.testing.assert_allclose(mean, points.astype(np.float64).mean(0), rtol=1e-12)
    assert n == 60


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        ({"any": POINTS}, (), POINTS),
        ({"points": POINTS, "other": -POINTS}, (), POINTS),
        ({"points": POINTS, "other": -POINTS}, ("--key", "other"), -POINTS),
    ],
    ids=["single", "points", "key"],
)
def test_npz_array_is_the_only_one_or_points_or_the_key(run, arrays, options, expected):
    np.savez("x.npz", **arrays)
    mean, _ = centroid_of(run, "x.npz", *options)
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-12)


CSV = {
    "plain": ("1,2\n3,4\n", (), [2, 3], 2),
    "header": ("a,b\n1,2\n3,4\n", (), [2, 3], 2),
    "byte-order mark": ("\ufeff1,2\n3,4", (), [2, 3], 2),
    "carriage returns": ("a,b\r\n1,2\r\n3,4\r\n", (), [2, 3], 2),
    "quotes and spaces": ('"1", 2\n 3 ,"4"\n', (), [2, 3], 2),
    "empty lines at the end": ("1,2\n3,4\n\n\n", (), [2, 3], 2),
    "one column": ("x\n1\n3\n", (), [2], 2),
    "numbers above": ("0,1\n2,3\n", (), [1, 2], 2),
    "numbers as header": ("0,1\n2,3\n", ("--header",), [2, 3], 1),
}


@pytest.mark.parametrize(("text", "options", "mean", "n"), CSV.values(), ids=CSV)
def test_csv_is_read(run, text, options, mean, n):
    Path("x.csv").write_text(text, encoding="utf-8", newline="")
    found = centroid_of(run, "x.csv", *options)
    np.testing.assert_allclose(found[0], mean, rtol=1e-12)
    assert found[1] == n


# What cannot.


def with_one(value):
    points = POINTS.copy()
    points[3, 1] = value
    return points


ARRAYS = {
    "complex": (POINTS + 1j, "complex128"),
    "text": (POINTS.astype(str), "real numbers"),
    "dates": (POINTS.astype("M8[s]"), "datetime64"),
    "objects": (POINTS.astype(object), "Object arrays"),
    "rank 0": (np.array(1.0), "[n, d], got shape ()"),
    "rank 1": (POINTS[0], "[n, d], got shape (3,)"),
    "rank 3": (POINTS[None], "[n, d], got shape (1, 60, 3)"),
    "no rows": (POINTS[:0], "got shape (0, 3)"),
    "no columns": (POINTS[:, :0], "got shape (60, 0)"),
    "nan": (with_one(np.nan), "row 3, column 1 (the first is 0) is nan"),
    "inf": (with_one(-np.inf), "row 3, column 1 (the first is 0) is -inf"),
    "k above n": (POINTS[:2], "n = 2 points, too few for -k 3"),
}


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize(("points", "fragment"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_array_is_refused(run, points, fragment, suffix):
    file = f"x{suffix}"
    {".npy": np.save, ".npz": np.savez}[suffix](file, points)
    outcome = run("fit", file, "-k", 3, "--out", "c.npz")
    assert_refused(outcome, 1, file, fragment)
    assert not Path("c.npz").exists()


TEXTS = {
    "word": ("1,2\n3,x\n", "row 1 (the first is 0; line 2), column 1", "'x'"),
    "word below a header": ("a,b\n1,2\n3,x\n", "row 1", "line 3), column 1"),
    "word in the first line": ("1,x\n1,2\n", "row 0", "column 1", "'x'"),
    "missing": ("1,2\n,4\n", "row 1", "column 0 is empty"),
    "missing in the first line": (",,\n1,2,3\n", "row 0", "column 0 is empty"),
    "too few fields": ("1,2\n3\n", "row 1", "2 fields", "got 1"),
    "too many fields": ("a,b\n1,2,3\n", "row 0", "2 fields", "got 3"),
    "empty line": ("1,2\n\n3,4\n", "row 1", "2 fields", "got 0"),
    "empty line in one column": ("1\n\n3\n", "row 1", "1 fields", "got 0"),
    "empty line at the top": ("\n1,2\n", "line 2", "0 fields", "got 2"),
    "semicolons": ("1;2\n3;4\n", "row 0", "'3;4'"),
    "not a number": ("a,b\n1,2\n3,nan\n", "row 1, column 1", "nan"),
    "infinity": ("1,2\n-inf,4\n", "row 1, column 0", "-inf"),
    "header only": ("a,b\n", "no points"),
    "nothing": ("", "no points"),
    "empty lines only": ("\n \n", "no points"),
}


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("case", TEXTS.values(), ids=TEXTS)
def test_csv_is_refused(run, case):
    text, *fragments = case
    Path("x.csv").write_text(text)
    assert_refused(run("fit", "x.csv", "-k", 2), 1, "x.csv", *fragments)


@pytest.mark.usefixtures("no_fit")
def test_npz_without_the_array_lists_its_names(run):
    np.savez("x.npz", one=POINTS, two=POINTS)
    assert_refused(run("fit", "x.npz", "-k", 3), 1, "x.npz", "'points'", "one, two")
    outcome = run("fit", "x.npz", "-k", 3, "--key", "three")
    assert_refused(outcome, 1, "x.npz", "'three'", "one, two")


def spoiled(save):
    """A file whose array has one wrong byte, or that ends early."""
    save("whole", POINTS)
    (whole,) = Path().glob("whole*")
    content = bytearray(whole.read_bytes())
    whole.unlink()
    return content


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_damaged_file_is_refused(run, suffix):
    file = Path(f"x{suffix}")
    npz = spoiled(np.savez)
    npz[900] ^= 255
    contents = {
        ".npy": [b"", b"no array", spoiled(np.save)[:500], pickle.dumps(POINTS)],
        ".npz": [b"", b"no archive", spoiled(np.savez)[:500], npz],
        ".csv": [b"\xff\xfe1,2", b"1,2\n\x80,3\n"],
    }
    for content in contents[suffix]:
        file.write_bytes(content)
        outcome = run("fit", file, "-k", 3)
        assert_refused(outcome, 1, file.name, f"cannot be read as {suffix}")


@pytest.mark.usefixtures("no_fit")
def test_file_must_exist_and_be_a_file_of_a_known_kind(run):
    Path("folder.npy").mkdir()
    Path("x.txt").write_text("1,2")
    assert_refused(run("fit", "none.npy", "-k", 3), 1, "none.npy: no such file")
    assert_refused(run("fit", "folder.npy", "-k", 3), 1, "folder.npy is a directory")
    assert_refused(run("fit", "x.txt", "-k", 3), 1, "x.txt", ".npy, .npz or .csv")
    assert_refused(run("fit", "x" * 300 + ".npy", "-k", 3), 1, "xxx.npy", "too long")


@pytest.mark.usefixtures("no_fit")
def test_unreadable_file_is_refused(fit, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert_refused(fit(), 1, "x.npy", "Permission denied")


USAGES = {
    "k 0": ("-k", "0"),
    "k not an integer": ("-k", "2.5"),
    "temperature 0": ("--temperature", "0"),
    "temperature nan": ("--temperature", "nan"),
    "temperature subnormal": ("--temperature", "1e-320"),
    "temperature infinite": ("--temperature", "inf"),
    "tol negative": ("--tol", "-1"),
    "tol nan": ("--tol", "nan"),
    "learning rate negative": ("--learning-rate", "-1", "--optimizer", "sgd"),
    "learning rate subnormal": ("--learning-rate", "1e-320", "--optimizer", "sgd"),
    "learning rate 0": ("--learning-rate", "0", "--optimizer", "adam"),
    "learning rate no number": ("--learning-rate", "x", "--optimizer", "adam"),
    "rate of newton": ("--learning-rate", "1"),
    "rate of macqueen": ("--learning-rate", "1", "--optimizer", "macqueen"),
    "rate of lbfgs": ("--learning-rate", "1", "--optimizer", "lbfgs"),
    "seed negative": ("--seed", "-1"),
    "seed too large": ("--seed", str(2**63)),
    "steps negative": ("--max-steps", "-1"),
    "restarts 0": ("--restarts", "0"),
    "optimizer": ("--optimizer", "none"),
    "init": ("--init", "none"),
    "empty": ("--empty", "none"),
    "output": ("--out", "c.npy"),
    "key of a .npy": ("--key", "points"),
    "header of a .npy": ("--header",),
}


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("arguments", USAGES.values(), ids=USAGES)
def test_wrong_usage_is_refused(fit, arguments):
    assert_refused(fit(*arguments), 2, f"argument {arguments[0]}: ")


def test_file_and_k_are_required(run):
    assert_refused(run("fit", "x.npy"), 2, "-k")
    assert_refused(run("fit", "-k", 3), 2, "FILE")
    assert_refused(run("cluster"), 2, "cluster")
    assert_refused(run("--"), 2, "command")


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_extreme_seeds_are_fine(fit, seed):
    assert fit("--seed", seed)[0] == 0


def test_help_documents_every_default(run):
    status, out, _ = run("fit", "--help")
    assert status == 0
    for text in ("0.75 / n", "0.05 times", "300", "0.0001", "exit status"):
        assert text in out


# What ends a process early, or its output.

SLOW_WRITE = """
import sys, time, numpy as np
def savez(file, **arrays):
    file.write(b"half"); file.flush()
    print("writing", flush=True)
    time.sleep(60)
np.savez = savez
from diffkm_jax.__main__ import main
sys.exit(main(["fit", "x.npy", "-k", "3", "--out", "c.npz", "--max-steps", "0"]))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a process beside x.npy, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", POINTS)

    def start(*arguments, **options):
        path = {"PYTHONPATH": str(ROOT)}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        command, env = [sys.executable, *arguments], os.environ | path
        env.pop("PYTHONUNBUFFERED", None)
        return subprocess.Popen(command, env=env, text=True, **options)

    return start


def test_a_terminated_write_leaves_the_old_file_alone(start):
    Path("c.npz").write_text("old")
    process = start("-c", SLOW_WRITE)
    lines = iter(process.stdout.readline, "")
    assert "writing\n" in lines
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    process.communicate()
    assert Path("c.npz").read_text() == "old"
    assert sorted(p.name for p in Path().iterdir()) == ["c.npz", "x.npy"]


def test_handlers_of_signals_are_put_back(fit):
    before = signal.getsignal(signal.SIGTERM)
    assert fit("--out", "c.npz")[0] == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(fit, monkeypatch, mode):
    Path("real.npz").write_text("old")
    Path("real.npz").chmod(mode)
    Path("link.npz").symlink_to("real.npz")
    seen = []

    def savez(file, **arrays):
        part = Path(file.name)
        seen.append(stat.S_IMODE(part.parent.stat().st_mode))
        save(file, **arrays)

    save = np.savez
    monkeypatch.setattr(np, "savez", savez)
    assert fit("--out", "link.npz")[0] == 0
    assert stat.S_IMODE(Path("real.npz").stat().st_mode) == mode
    assert Path("link.npz").is_symlink()
    # Until it has them it is where nobody else can get at it.
    assert seen == [0o700]


def test_permissions_of_a_group_are_not_given_to_another(fit, monkeypatch):
    def chown(*_):
        raise PermissionError

    class Other:
        """The status of a file of a group that cannot be had."""

        st_gid, st_mode = 12345, stat.S_IFREG | 0o660

    new = Path("new.npz")
    new.write_text("new")
    monkeypatch.setattr(os, "chown", chown)
    old = type("Old", (), {"stat": lambda self: Other})()
    _writing.copy_access(old, new)
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


@pytest.mark.usefixtures("no_fit")
def test_output_must_be_a_regular_file(fit):
    os.mkfifo("c.npz")
    assert_refused(fit("--out", "c.npz"), 1, "c.npz", "regular file")
    Path("a.npz").symlink_to("b.npz")
    Path("b.npz").symlink_to("a.npz")
    assert_refused(fit("--out", "a.npz"), 1, "a.npz")


@pytest.mark.parametrize(
    "unbuffered", [[], pytest.param(["-u"], marks=pytest.mark.slow)]
)
def test_a_reader_that_has_gone_ends_it_without_a_traceback(start, unbuffered):
    read, write = os.pipe()
    os.close(read)
    command = "-m", "diffkm_jax", "fit", "x.npy", "-k", "3", "--out", "c.npz"
    process = start(*unbuffered, *command, stdout=write)
    os.close(write)
    assert process.communicate()[1] == ""
    assert process.returncode == 141
    assert np.load("c.npz")["centroids"].shape == (3, 3)


def test_a_full_disk_under_its_output_is_one_line(fit, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        full = open("/dev/full", "w")  # noqa: SIM115
        patch.setattr(sys, "stdout", full)
        status, _, err = fit()
    full.close()  # What it could not write has gone elsewhere.
    assert status == 1
    assert err.startswith("diffkm: error: cannot write to stdout: [Errno 28]")
    assert err.count("\n") == 1


def test_a_full_disk_under_its_file_leaves_the_old_one(fit, monkeypatch):
    Path("c.npz").write_text("old")
    monkeypatch.setattr(np, "savez", fail_midway(OSError(28, "No space left")))
    status, out, err = fit("--out", "c.npz")
    assert (status, "loss" in out) == (1, True)
    assert err.startswith("diffkm: error: ")
    assert "c.npz: cannot be written: [Errno 28] No space left" in err
    assert Path("c.npz").read_text() == "old"


def test_a_closed_output_is_no_error(fit, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert fit("--out", "c.npz") == (0, "", "")


def test_a_fit_that_does_not_rest_is_told(capsys):
    x = np.array([[-1.0], [-1.05], [2.06], [4.1], [4.1]])
    result = dk.fit(x, np.array([[0.0], [4.2]]), tol=0.01)
    status = result.flags
    command_line.report(result, status, (5, 1, 2), 1.0)
    out, err = capsys.readouterr()
    assert "status          NOT_AT_REST" in out
    assert "(NOT_AT_REST): see --tol" in err
