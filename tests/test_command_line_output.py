"""The command line: what it writes, predicts and refuses, and early ends."""

import json
import os
import resource
import signal
import stat
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from _shell import (
    POINTS,
    assert_refused,
    finished,
    fit,
    fitted,
    read,
    run,
    standard,
    start,
)

import diffkm_jax as dk
from diffkm_jax import _writing
from diffkm_jax.__main__ import main
from diffkm_jax._command_line import parser, progress, reading


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_fit(monkeypatch):
    """What is refused is refused before the fit."""
    monkeypatch.setattr(dk, "fit", None)


def files():
    return sorted(path.name for path in Path().iterdir())


# Predictions.


@pytest.mark.parametrize("distance", parser.DISTANCES)
def test_predict_gives_the_labels_and_the_loss_of_the_fit(distance):
    points = np.abs(POINTS) + 0.1
    fit("--distance", distance, "--out", "c.npz", points=points)
    command = "predict", "x.npy", "--fit", "c.npz", "--out", "labels.npy", "--json"
    status, out, err = run(*command)
    assert (status, err) == (0, "")
    found, saved = json.loads(out), read("c.npz")
    np.testing.assert_array_equal(np.load("labels.npy"), saved["labels"])
    np.testing.assert_allclose(found["loss"], saved["loss"], rtol=1e-12)
    assert found["sizes"] == saved["counts"].tolist()
    assert (found["n"], found["d"], found["k"]) == (60, 3, 3)


@pytest.mark.parametrize("block", [2**22, 30])
def test_predict_gives_memberships_block_by_block(monkeypatch, block):
    monkeypatch.setattr(reading, "BLOCK", block)
    saved = fitted("--temperature", 2.0)
    command = "predict", "x.npy", "--fit", "fitted.npz", "--proba", "--out"
    for out in ("p.npz", "p.npy", "p.csv"):
        assert run(*command, out)[0] == 0
    logits = -dk.pairwise(POINTS, saved["centroids"]) / 2.0
    expected = jax.nn.softmax(logits)
    found = read("p.npz")
    np.testing.assert_array_equal(found["labels"], saved["labels"])
    np.testing.assert_allclose(found["memberships"], expected, rtol=1e-12)
    np.testing.assert_allclose(np.load("p.npy"), expected, rtol=1e-12)
    lines = Path("p.csv").read_text().splitlines()
    assert lines[0] == "label,membership_0,membership_1,membership_2"
    rows = np.loadtxt(lines[1:], delimiter=",")
    np.testing.assert_allclose(rows[:, 1:], expected, rtol=1e-12)


def test_predict_takes_fewer_points_than_clusters_and_weights():
    saved = fitted()
    np.savetxt("y.csv", np.c_[POINTS[:2], [1.0, 3.0]], delimiter=",")
    command = "predict", "y.csv", "--fit", "fitted.npz", "--weights", "3", "--json"
    found = json.loads(run(*command)[1])
    c, weights = saved["centroids"], np.array([1.0, 3.0])
    expected = dk.kmeans_loss(POINTS[:2], c, weights=weights)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-9)
    assert sum(found["sizes"]) == 4


def test_predict_says_what_it_found():
    saved = fitted()
    status, out, err = run("predict", "x.npy", "--fit", "fitted.npz")
    assert (status, err) == (0, "")
    assert "n, d, k         60, 3, 3" in out
    assert f"{saved['loss']:.10g}" in out
    assert "sizes           20 to 20" in out


def test_predict_refuses_what_is_no_fit_or_of_another_width():
    command = "predict", "x.npy", "--out", "labels.npy", "--fit"
    fitted()
    np.save("x.npy", POINTS[:, :2])
    assert_refused(run(*command, "fitted.npz"), "d = 3", "got 2", "x.npy")
    assert_refused(run(*command, "none.npz"), "none.npz: no such file")
    np.savez("other.npz", labels=np.arange(3))
    assert_refused(run(*command, "other.npz"), "other.npz: is no result", "centroids")
    dk.save("saved.npz", dk.fit(POINTS, POINTS[:3]))
    assert_refused(run(*command, "saved.npz"), "of diffkm_jax.save", "load and assign")
    law = {"centroids": np.ones((3, 2)), "distance": "cosine", "temperature": -1.0}
    np.savez("other.npz", **law)
    assert_refused(run(*command, "other.npz"), "temperature is -1.0")
    np.savez("other.npz", centroids=np.full((3, 3), np.nan))
    assert_refused(run(*command, "other.npz"), "other.npz: is no result")
    np.savez("other.npz", centroids=np.ones((3, 3)), distance="hamming")
    assert_refused(run(*command, "other.npz"), "'hamming'")
    Path("other.npz").write_bytes(b"no archive")
    assert_refused(run(*command, "other.npz"), "other.npz")
    assert_refused(run(*command, "fitted.npz", "--proba"), "--proba", "hard fit")
    assert "labels.npy" not in files()


# The files that are written.


def test_labels_are_written_alone_where_the_name_says_so():
    labels = fitted()["labels"]
    fit("--out", "labels.npy")
    fit("--out", "labels.csv")
    np.testing.assert_array_equal(np.load("labels.npy"), labels)
    lines = Path("labels.csv").read_text().splitlines()
    assert lines == ["label", *labels.astype(str)]


def test_a_picture_is_drawn_of_the_clusters_or_of_one_column_of_the_loss():
    for points in (POINTS, POINTS[:, :1]):
        status, out, err = fit("--plot", "c.png", points=points)
        assert (status, err) == (0, "")
        assert "written         c.png" in out
        assert Path("c.png").read_bytes().startswith(b"\x89PNG")
        Path("c.png").unlink()


@pytest.mark.usefixtures("no_fit")
def test_without_matplotlib_it_is_said_what_to_install_before_the_fit(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(fit("--plot", "c.png"), "--plot", 'pip install "diffkm[plot]"')


def fail_midway(error):
    def savez(file, **_):
        file.write(b"half")
        raise error

    return savez


def test_failed_write_leaves_no_file(monkeypatch):
    monkeypatch.setattr(np, "savez", fail_midway(OSError(28, "No space left")))
    status, _, err = fit("--out", "c.npz")
    assert status == 2
    assert err.startswith("diffkm: error: ")
    assert "c.npz: cannot be written" in err
    assert "No space left" in err
    assert files() == ["x.npy"]


@pytest.mark.parametrize("out", ["c.npz", "c.npy", "c.csv"])
def test_a_full_disk_leaves_the_old_file(out):
    points = np.tile(POINTS, (20, 1))
    fit("--max-steps", 0, points=points)  # Compiled, and kept, before the limit.
    Path(out).write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        command = "fit", "x.npy", "-k", 3, "--max-steps", 0, "--out", out
        status, said, err = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, "loss" in said) == (2, True)
    assert f"diffkm: error: {out}: cannot be written: " in err
    assert Path(out).read_text() == "old"
    assert files() == [out, "x.npy"]


def test_interrupted_write_leaves_the_old_file(monkeypatch):
    Path("c.npz").write_text("old")
    monkeypatch.setattr(np, "savez", fail_midway(KeyboardInterrupt()))
    status, _, err = fit("--out", "c.npz")
    assert (status, err) == (130, "diffkm: interrupted\n")
    assert Path("c.npz").read_text() == "old"
    assert files() == ["c.npz", "x.npy"]


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("options", [(), ("--batch-size", 20)], ids=["all", "batches"])
def test_an_interrupted_fit_ends_without_a_traceback(monkeypatch, options):
    monkeypatch.setattr(progress.Progress, "due", interrupt)
    monkeypatch.setattr("diffkm_jax._command_line.fits.PIECE", 0)
    slow = "--optimizer", "adam", "--tol", 0
    slow = () if options else slow
    outcome = fit(*options, *slow, "--out", "c.npz")
    assert outcome == (130, "", "diffkm: interrupted\n")
    assert files() == ["x.npy"]


def test_too_little_memory_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(dk, "fit", refuse)
    assert_refused(fit(), "not enough memory", "7 TiB")


def test_output_replaces_a_file_and_keeps_a_link():
    Path("real.npz").write_text("old")
    Path("link.npz").symlink_to("real.npz")
    assert fit("--out", "link.npz")[0] == 0
    assert Path("link.npz").is_symlink()
    assert read("real.npz")["centroids"].shape == (3, 3)


def test_output_has_the_permissions_of_a_new_file():
    fit("--out", "c.npz")
    assert Path("c.npz").stat().st_mode == Path("x.npy").stat().st_mode


@pytest.mark.usefixtures("no_fit")
def test_output_folder_must_exist():
    assert_refused(fit("--out", "none/c.npz"), "none/c.npz", "folder")
    assert_refused(fit("--plot", "none/c.png"), "none/c.png", "folder")


@pytest.mark.usefixtures("no_fit")
def test_output_folder_must_be_writable(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert_refused(fit("--out", "c.npz"), "c.npz", "Permission denied")


@pytest.mark.usefixtures("no_fit")
def test_output_must_be_a_regular_file():
    Path("d.npz").mkdir()
    assert_refused(fit("--out", "d.npz"), "d.npz", "directory")
    os.mkfifo("c.npz")
    assert_refused(fit("--out", "c.npz"), "c.npz", "regular file")
    Path("a.npz").symlink_to("b.npz")
    Path("b.npz").symlink_to("a.npz")
    assert_refused(fit("--out", "a.npz"), "a.npz")


@pytest.mark.usefixtures("no_fit")
def test_output_must_not_be_the_input():
    np.savez("x.npz", POINTS)
    outcome = run("fit", "x.npz", "-k", 3, "--out", "./x.npz")
    assert_refused(outcome, "x.npz", "input")
    np.save("c.npy", POINTS[:3])
    outcome = fit("--init", "c.npy", "--out", "c.npy")
    assert_refused(outcome, "c.npy", "input")
    np.savez("c.npz", centroids=POINTS[:3])
    outcome = run("predict", "x.npz", "--fit", "c.npz", "--out", "c.npz")
    assert_refused(outcome, "c.npz", "input")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(monkeypatch, mode):
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


def test_permissions_of_a_group_are_not_given_to_another(monkeypatch):
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


# Wrong usage.

ADAM = "--optimizer", "adam"
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
    "learning rate 0": ("--learning-rate", "0", *ADAM),
    "learning rate no number": ("--learning-rate", "x", *ADAM),
    "rate of newton": ("--learning-rate", "1"),
    "rate of macqueen": ("--learning-rate", "1", "--optimizer", "macqueen"),
    "rate of ema": ("--learning-rate", "1", "--optimizer", "ema"),
    "rate of lbfgs": ("--learning-rate", "1", "--optimizer", "lbfgs"),
    "rate of batches": ("--learning-rate", "1", "--batch-size", "9"),
    "no rate of sgd": ("--learning-rate",),
    "seed negative": ("--seed", "-1"),
    "seed too large": ("--seed", str(2**63)),
    "steps negative": ("--max-steps", "-1"),
    "restarts 0": ("--restarts", "0"),
    "restarts of starts": ("--restarts", "2", "--init", "starts.npy"),
    "optimizer": ("--optimizer", "none", "--learning-rate", "1"),
    "means": ("--optimizer", "newton", "--distance", "manhattan"),
    "distance": ("--distance", "hamming"),
    "dtype": ("--dtype", "float16"),
    "init": ("--init", "none"),
    "empty": ("--empty", "none"),
    "output": ("--out", "c.txt"),
    "picture": ("--plot", "c.npz"),
    "key of a .npy": ("--key", "points"),
    "header of a .npy": ("--header",),
    "delimiter of a .npy": ("--delimiter", ";"),
    "delimiter of two": ("--delimiter", ";;"),
    "columns of a .npy": ("--columns", "0"),
    "weights of a .npy": ("--weights", "0"),
    "batches alone": ("--batches", "5"),
    "epochs alone": ("--epochs", "5"),
    "epochs and batches": ("--epochs", "5", "--batches", "5", "--batch-size", "5"),
    "max steps of batches": ("--max-steps", "5", "--batch-size", "5"),
    "tol of batches": ("--tol", "5", "--batch-size", "5"),
}


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("arguments", USAGES.values(), ids=USAGES)
def test_wrong_usage_is_refused(arguments):
    named = [a for a in arguments if a.startswith("-")]
    outcome = fit(*arguments)
    assert_refused(outcome, "argument --" if len(named) > 1 else f"argument {named[0]}")


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("distance", ["cosine", "kl_divergence", "manhattan"])
def test_a_rate_without_a_default_is_asked_for(distance):
    outcome = fit("--optimizer", "sgd", "--distance", distance)
    assert_refused(outcome, "argument --learning-rate: sgd has no default")
    outcome = fit("--optimizer", "rmsprop")
    assert_refused(outcome, "argument --learning-rate: rmsprop has no default")


@pytest.mark.usefixtures("no_fit")
def test_temperature_zero_is_told_what_it_means():
    outcome = fit("--temperature", 0)
    assert_refused(outcome, "positive", "without it the assignment is hard")


def test_file_and_k_are_required():
    assert_refused(run("fit", "x.npy"), "-k")
    assert_refused(run("fit", "-k", 3), "FILE")
    assert_refused(run("cluster"), "cluster")
    assert_refused(run("--"), "command")
    assert_refused(run("predict", "x.npy"), "--fit")
    command = "predict", "x.npy", "--fit", "c.npz", "--proba"
    assert_refused(run(*command), "--proba", "--out")


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_extreme_seeds_are_fine(seed):
    assert fit("--seed", seed)[0] == 0
    assert fit("--seed", seed, "--batch-size", 30)[0] == 0


def test_help_imports_neither_jax_nor_numpy():
    program = (
        "import sys\nfrom diffkm_jax.__main__ import main\n"
        "for line in (['--help'], ['fit', '--help'], ['--version']):\n"
        "    try: main(line)\n"
        "    except SystemExit as exit: assert exit.code == 0\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    assert finished("-c", program)[0] == 0


def test_help_documents_every_default_and_status():
    status, out, _ = run("fit", "--help")
    assert status == 0
    for text in ("0.75 / n", "0.05 times", "300", "1e-4", "exit status", "130", "141"):
        assert text in out


def test_version_is_that_of_the_library():
    assert run("--version") == (0, f"{dk.__version__}\n", "")


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_writing_leaves_the_old_file_alone(number):
    np.save("x.npy", POINTS)
    Path("c.npz").write_text("old")
    process = start("-c", SLOW_WRITE)
    lines = iter(process.stdout.readline, "")
    assert "writing\n" in lines
    process.send_signal(number)
    assert process.wait(30) == {signal.SIGINT: 130}.get(number, -number)
    assert "Traceback" not in process.communicate()[1]
    assert Path("c.npz").read_text() == "old"
    assert files() == ["c.npz", "x.npy"]


def test_an_interrupt_in_the_middle_of_a_fit_is_status_130():
    points = np.random.default_rng(0).normal(size=(100_000, 16))
    np.save("x.npy", points)
    options = "-k", "50", "--tol", "0", "--max-steps", "100000", "--progress"
    process = start("-m", "diffkm_jax", "fit", "x.npy", *options, "--out", "c.npz")
    assert "step" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("diffkm: interrupted\n")
    assert files() == ["x.npy"]


def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    assert fit("--out", "c.npz")[0] == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "unbuffered", [[], pytest.param(["-u"], marks=pytest.mark.slow)]
)
def test_a_reader_that_has_gone_ends_it_without_a_traceback(unbuffered):
    np.save("x.npy", POINTS)
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = "-m", "diffkm_jax", "fit", "x.npy", "-k", "3", "--out", "c.npz"
    process = start(*unbuffered, *command, stdout=write_end)
    os.close(write_end)
    assert process.communicate()[1] == ""
    assert process.returncode == 141
    assert read("c.npz")["centroids"].shape == (3, 3)


def test_a_full_disk_under_its_output_is_one_line(capsys):
    np.save("x.npy", POINTS)
    with pytest.MonkeyPatch.context() as patch:
        full = open("/dev/full", "w")  # noqa: SIM115
        patch.setattr(sys, "stdout", full)
        status = standard(main, ["fit", "x.npy", "-k", "3"])
    full.close()  # What it could not write has gone elsewhere.
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("diffkm: error: cannot write to stdout: [Errno 28]")
    assert err.count("\n") == 1


def test_a_closed_output_is_no_error(monkeypatch, capsys):
    np.save("x.npy", POINTS)
    monkeypatch.setattr(sys, "stdout", None)
    command = ["fit", "x.npy", "-k", "3", "--out", "c.npz"]
    assert standard(main, command) == 0
    assert capsys.readouterr() == ("", "")
