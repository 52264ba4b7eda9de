"""python -m diffkm_torch: the parity table, and the comparison of a user's own pair."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import diffkm_jax
import diffkm_torch
from diffkm_torch import _parity
from diffkm_torch.__main__ import main

ROOT = Path(diffkm_torch.__file__).parents[1]
PAIRS = """\
import diffkm_jax as dk, diffkm_torch as dt

ours, theirs = dk.kmeans_loss, dt.kmeans_loss


def doubled(points, centroids, **kw):
    return 2 * dt.kmeans_loss(points, centroids, **kw)


def squares(x):
    return (x**2).sum()


def fails(points, centroids):
    raise ArithmeticError("of mine")


number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "pairs_of_a_user.py").write_text(PAIRS)
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(20, 3)), rng.normal(size=(4, 3))
    np.savez(tmp_path / "args.npz", *arrays)
    np.savez(
        tmp_path / "keys.npz", arg0=arrays[0], arg1=arrays[1], weights=arrays[0][:, 0]
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "pairs_of_a_user", raising=False)
    return tmp_path


def compare(theirs, *more, args="args.npz"):
    names = "pairs_of_a_user:ours", f"pairs_of_a_user:{theirs}"
    return main(["compare", *names, "--args", args, *more])


@pytest.fixture(scope="module")
def table():
    """The table, as printed by a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "diffkm_torch", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_mirrored_function_passes(table):
    assert table.returncode == 0, table.stdout[-2000:] + table.stderr[-2000:]
    rows = json.loads(table.stdout)
    assert [row["name"] for row in rows if not row["pass"]] == []
    named = {row["name"].split("(")[0] for row in rows}
    for space, module in (("", diffkm_jax), ("estimators.", diffkm_jax.estimators)):
        twin = getattr(diffkm_torch, space.rstrip("."), diffkm_torch)
        for name in set(module.__all__) & set(twin.__all__):
            is_function = inspect.isfunction(inspect.unwrap(getattr(module, name)))
            judged = is_function and name not in _parity.OF_INTEGERS
            assert (space + name in named) == judged


@pytest.mark.slow
def test_nearly_all_rows_of_the_table_are_judged_and_have_gradients(table):
    rows = json.loads(table.stdout)
    wide = [p for r in rows for p in r["report"]["pairs"] if p["dtype"] == "float64"]
    left_out = sum(p["num_unresolved"] + p["num_kinks"] for p in wide)
    assert left_out < 0.01 * sum(p["num_rows"] for p in wide)
    without = {
        row["name"]
        for row in rows
        if not any(
            p["kind"] == "gradient" and p["cosine"] for p in row["report"]["pairs"]
        )
    }
    # Labels; a one-hot; constants.
    zero = {"assign()", "hard()", "top_k()", "assign_bounded()"}
    assert without <= {*zero, "estimators.straight_through()"}


def test_a_parameter_that_is_not_known_fails_the_run(monkeypatch, capsys):
    def changed(x, y, *, novelty=1.0):
        return diffkm_jax.euclidean(x, y)

    monkeypatch.setattr(diffkm_jax, "euclidean", changed)
    monkeypatch.setattr(_parity, "mirrored", lambda: ["euclidean", "hard"])
    assert main([]) == 1
    printed = capsys.readouterr().out
    assert "no argument is known for the parameter 'novelty'" in printed
    assert "1 pass, 1 fail" in printed


def test_a_twin_that_differs_fails_the_run_and_is_shown(monkeypatch, capsys):
    def wrong(x, y):
        return diffkm_torch.manhattan(x, y.detach())

    monkeypatch.setattr(diffkm_torch, "euclidean", wrong)
    monkeypatch.setattr(_parity, "mirrored", lambda: ["euclidean"])
    assert main(["--order", "2", "--jit"]) == 1
    printed = capsys.readouterr().out
    assert "GRADIENTS DISAGREE" in printed
    assert "d (d output / d x) / d x" in printed


def test_only_the_functions_named_are_compared(capsys):
    assert main(["parity", "hard", "estimators.reinforce", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = ["hard()", "estimators.reinforce()", "estimators.reinforce(size=2)"]
    assert [row["name"] for row in rows] == names
    assert main(["parity", "hard", "reinforce"]) == 2
    assert "'reinforce' must be a function of both" in capsys.readouterr().err


def test_a_pair_of_the_user_is_compared(folder, capsys):
    assert compare("theirs") == 0
    assert "Gradients agree" in capsys.readouterr().out
    assert compare("doubled", "--no-jit", "--dtypes", "float64") == 1
    assert "torch's is 2 times jax's" in capsys.readouterr().out
    assert compare("theirs", "--json", "--wrt", "1", "weights", args="keys.npz") == 0
    report = json.loads(capsys.readouterr().out)
    assert {p["input"] for p in report["pairs"]} == {"", "arg1", "weights"}


def test_where_nothing_could_be_judged_the_exit_status_says_so(folder, capsys):
    np.savez(folder / "nan.npz", np.full((3, 4), np.nan))
    pair = "pairs_of_a_user:squares", "pairs_of_a_user:squares"
    assert main(["compare", *pair, "--args", "nan.npz"]) == 3
    assert "Nothing could be judged" in capsys.readouterr().out
    assert main(["compare", *pair, "--json", "--args", "nan.npz"]) == 3
    assert json.loads(capsys.readouterr().out)["agree"] is False
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "3 nothing disagrees" in capsys.readouterr().out


def test_it_runs_as_a_module_from_the_folder_of_the_functions(folder):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "diffkm_torch", "compare", "--no-jit"),
            *("pairs_of_a_user:ours", "pairs_of_a_user:theirs", "--args", "args.npz"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "d output / d arg1" in run.stdout


@pytest.mark.parametrize(
    ("theirs", "more", "message"),
    [
        ("nothing", (), "has no attribute 'nothing'"),
        ("number", (), "must be a function, got int"),
        ("fails", (), "ArithmeticError: of mine"),
        ("theirs", ("--wrt", "7"), "wrt must be among"),
    ],
)
def test_what_cannot_be_compared_says_why(folder, capsys, theirs, more, message):
    assert compare(theirs, *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no.npz: cannot be read"),
        (b"no archive", "no.npz: cannot be read"),
        ({"arr_1": np.ones(3)}, r"positions must be 0, 1, 2, ..., got \['arr_1'\]"),
        ({"arg0": np.ones(3), "arr_0": np.ones(3)}, "positions must be"),
        ({"arr_0": np.array([{}])}, "no.npz: cannot be read"),
    ],
)
def test_a_file_that_is_none_says_so(folder, capsys, content, message):
    path = folder / "no.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    assert compare("theirs", args="no.npz") == 2
    assert re.search(message, capsys.readouterr().err)


def test_names_that_are_none_are_refused(folder, capsys):
    for name in ("pairs_of_a_user", "nowhere_at_all:f"):
        assert main(["compare", name, name, "--args", "args.npz"]) == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["compare"], ["compare", "a:b"], ["--order", "3"]])
def test_wrong_usage_exits_with_2(argv):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
