"""Faults from outside: threads, interrupts, a full disk, a closed pipe, SIGTERM.

Children are processes of their own. One program of XLA is not interrupted: a Ctrl-C is
seen when it ends, so what is interrupted is a loop of fits, and compiling.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from tests.campaign._cells import Cell
from tests.campaign._threads import thread_cells

ROOT = Path(__file__).parents[2]
SECONDS = 10


INTERRUPTED = """
import signal
# A child of a background job is told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
import time, numpy as np, {imports}
x = {array}(np.random.default_rng(0).normal(size=(4000, 8)).astype("float32"))
fit = lambda: {fit}
before = None
try:
    {warm}
    print("ready", flush=True)
    end = time.time() + {seconds}
    while time.time() < end:
        fit()
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    a, b = fit(), fit()
    assert np.array_equal(a, b) and (before is None or np.array_equal(a, before))
    print("works")
"""
IN_JAX = {
    "imports": "jax.numpy as jnp, diffkm_jax as dk",
    "array": "jnp.asarray",
    "fit": "np.asarray(dk.fit(x, x[:50], max_steps=30).centroids)",
}
IN_TORCH = {
    "imports": "torch, diffkm_torch as dt",
    "array": "torch.tensor",
    "fit": "dt.fit(x, x[:50], max_steps=10_000, tol=0.0).centroids.numpy()",
}


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | more


def interrupt(words: dict[str, str], *, warm: bool, delay: float) -> None:
    """Raises unless SIGINT ends a loop of fits at once, and the next fit is right."""
    first = "before = fit()" if warm else "pass"
    program = INTERRUPTED.format(warm=first, seconds=60, **words)
    # Nothing is read from a cache of programs, so that there is compiling to interrupt.
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(JAX_ENABLE_COMPILATION_CACHE="false"),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    assert child.stdout.readline() == "interrupted\n"
    assert time.perf_counter() - begin < SECONDS
    assert child.stdout.readline() == "works\n"
    assert child.wait() == 0


def command(folder: Path, *more: str) -> list[str]:
    """A fit of a file from the command line, its output beside it."""
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(2000, 4)))
    file, out = folder / "x.npy", folder / "out.npz"
    return [sys.executable, "-m", "diffkm_jax", "fit", str(file), "-k", "3",
            "--out", str(out), *more]  # fmt: skip


def only_whole_files(folder: Path, before: bytes | None) -> None:
    """Raises if a part of a file is left, or the old one is not as it was."""
    left = sorted(p.name for p in folder.iterdir())
    assert set(left) <= {"x.npy", "out.npz"}, left
    if before is not None:
        assert (folder / "out.npz").read_bytes() == before


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def full_disk() -> None:
    """Raises unless a file that cannot be written whole is said, and not left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = command(folder)
        (folder / "out.npz").write_bytes(b"before")
        child = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            preexec_fn=limited,
            env=environment(JAX_ENABLE_COMPILATION_CACHE="false"),
            check=False,
        )
        assert child.returncode == 2, (child.returncode, child.stderr)
        assert "diffkm: error:" in child.stderr, child.stderr
        assert "Traceback" not in child.stderr, child.stderr
        only_whole_files(folder, b"before")


def full_output() -> None:
    """Raises unless a full disk under stdout is an error, without a traceback."""
    with tempfile.TemporaryDirectory() as name, Path("/dev/full").open("w") as full:
        child = subprocess.run(
            command(Path(name)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
        assert child.returncode not in (0, -signal.SIGSEGV), child.returncode
        assert "Traceback" not in child.stderr, child.stderr
        only_whole_files(Path(name), None)


def closed_pipe() -> None:
    """Raises unless a reader that goes away ends the program, without a traceback."""
    with tempfile.TemporaryDirectory() as name:
        child = subprocess.Popen(
            command(Path(name)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        said = child.stderr.read()
        child.wait()
        assert "Traceback" not in said, said
        only_whole_files(Path(name), None)


SLOW_WRITE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import sys, time, numpy as np
import diffkm_jax.__main__ as main
savez = np.savez
def slow(file, **arrays):
    savez(file, **arrays)
    print("writing", flush=True)
    time.sleep(30)
np.savez = slow
sys.exit(main.main(sys.argv[1:]))
"""


def killed_while_writing(number: signal.Signals) -> None:
    """Raises unless a signal while a file is written leaves the folder as it was."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [sys.executable, "-c", SLOW_WRITE, *command(folder)[3:]]
        (folder / "out.npz").write_bytes(b"before")
        child = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        assert child.stdout is not None
        assert any(line == "writing\n" for line in child.stdout)
        child.send_signal(number)
        assert child.wait(SECONDS) != 0
        only_whole_files(folder, b"before")


def cells() -> Iterator[Cell]:
    """Threads first, then children."""
    yield from thread_cells()
    interrupts = {
        "fits in JAX": partial(interrupt, IN_JAX, warm=True, delay=0.7),
        "compiling in JAX": partial(interrupt, IN_JAX, warm=False, delay=0.4),
        "a fit in torch": partial(interrupt, IN_TORCH, warm=True, delay=0.7),
    }
    for label, run in interrupts.items():
        yield Cell("faults", "interrupt", label, run)
    command_line = {
        "full disk": full_disk,
        "full output": full_output,
        "closed pipe": closed_pipe,
        "SIGTERM while writing": partial(killed_while_writing, signal.SIGTERM),
        "SIGINT while writing": partial(killed_while_writing, signal.SIGINT),
    }
    for label, run in command_line.items():
        yield Cell("faults", "command line", label, run)
