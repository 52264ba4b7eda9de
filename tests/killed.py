"""Fits that go on from the state in a file, to be killed: see test_storage.py.

Arguments: the folder of the files, and which fit. A step takes a while, so that the
process is killed in the middle of one, or of the writing after it.
"""

import sys
import time
from itertools import islice
from pathlib import Path

import jax
import numpy as np

import diffkm_jax as dk

STEPS = 60
X = np.random.default_rng(0).normal(size=(STEPS * 10, 3)).astype(np.float32)
C = X[:4]
OPTIMIZER = dk.macqueen()


def batches():
    """Batches of ten rows, which take a while."""
    for i in range(STEPS):
        time.sleep(0.03)
        yield X[10 * i : 10 * i + 10]


def start(path):
    """The state in the file, or the first one."""
    if path.exists():
        return dk.load(path)
    return dk.init(C, optimizer=OPTIMIZER)


def stream(path):
    """Every batch from that of the state on, saved after each."""
    state = start(path)
    rest = islice(batches(), int(state.step), None)
    options = {"callback": lambda state, _: dk.save(path, state)}
    return dk.fit_stream(rest, state, optimizer=OPTIMIZER, **options).state


def minibatch(path):
    """Batches drawn by a key, saved every five steps."""
    state, key = start(path), jax.random.key(0)
    options = {"batch_size": 50, "optimizer": OPTIMIZER, "num_steps": 5}
    while int(state.step) < STEPS:
        state = dk.fit_minibatch(key, X, state, **options).state
        dk.save(path, state)
        time.sleep(0.1)
    return state


def fit(path):
    """Steps by all points, saved after each."""
    state = start(path)
    while int(state.step) < STEPS:
        result = dk.fit(X, state, optimizer=OPTIMIZER, max_steps=1, tol=0.0)
        state = result.state
        dk.save(path, state)
        time.sleep(0.02)
    return state


FITS = {"stream": stream, "minibatch": minibatch, "fit": fit}


if __name__ == "__main__":
    folder, name = Path(sys.argv[1]), sys.argv[2]
    print("ready", flush=True)
    dk.save(folder / "end.npz", FITS[name](folder / "state.npz"))
