"""The command line, called in this process, and what a refusal looks like."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import jax
import numpy as np

from diffkm_jax.__main__ import main

ROOT = Path(__file__).parents[1]
POINTS = np.random.default_rng(0).normal(size=(60, 3)) + 5.0 * np.eye(3)[[0, 1, 2] * 20]


def standard(function, *arguments, **options):
    """Calls where dtypes may be promoted, as optax does."""
    with jax.numpy_dtype_promotion("standard"):
        return function(*arguments, **options)


def run(*arguments):
    """Runs the command line: (exit status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = standard(main, [str(a) for a in arguments])
        except SystemExit as exit:
            status = exit.code
    return status, out.getvalue(), err.getvalue()


def fit(*arguments, points=POINTS):
    """Saves points as x.npy, beside which it is, and fits them with k = 3."""
    np.save("x.npy", points)
    return run("fit", "x.npy", "-k", 3, *arguments)


def fitted(*arguments, points=POINTS):
    """What a fit that succeeds writes."""
    status, _, err = fit("--out", "fitted.npz", *arguments, points=points)
    assert (status, err) == (0, "")
    return read("fitted.npz")


def read(path):
    """The arrays of a .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def assert_refused(outcome, *fragments):
    """One error line with every fragment, nothing on stdout, nothing left behind."""
    status, out, err = outcome
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("diffkm: error: ")
    assert [f for f in fragments if f not in err] == []
    assert list(Path().rglob(".*")) == []


def start(*arguments, **options):
    """Starts Python in the folder where we are."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop("PYTHONUNBUFFERED", None)
    return subprocess.Popen([sys.executable, *arguments], env=env, text=True, **options)


def finished(*arguments, **options):
    """Runs Python there: (exit status, stdout, stderr)."""
    process = start(*arguments, **options)
    out, err = process.communicate()
    return process.returncode, out, err
