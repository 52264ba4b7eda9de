"""One way of measuring: sides that agree, timed in turns, each weighed alone."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._records import PACKAGES, Record, record

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.05
# Of the rows of a first call, in a process where the second is weighed.
FEW = 2000


class Prepared(NamedTuple):
    """A call that blocks until it is done, and what compiling it told."""

    call: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


class Side(NamedTuple):
    """One of those that are compared: how to prepare it, and the module it needs."""

    prepare: Callable[[], Prepared]
    module: str | None = None


class Contest(NamedTuple):
    """Sides that compute the same.

    `agree` takes what each returned, by name. It raises AssertionError unless they are
    equal, up to rounding, and returns facts about some of them, for the record.
    """

    sides: dict[str, Side]
    agree: Callable[[dict[str, Any]], dict[str, dict[str, Any]]]


def compiled(function: Callable, *args: Any) -> Prepared:
    """A JAX function, compiled ahead of time, with its arguments in place."""
    # A copy that is still under way would count as what a call adds to memory.
    args = jax.block_until_ready(jax.tree.map(jnp.asarray, args))
    begin = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    took = time.perf_counter() - begin
    memory = program.memory_analysis()
    temporaries = None if memory is None else memory.temp_size_in_bytes
    return Prepared(lambda: jax.block_until_ready(program(*args)), took, temporaries)


def normal(n: int, k: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal points, in float32, and the first k of them as centroids."""
    points = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return points, points[:k].copy()


def relative_error(found: Any, true: Any) -> float:
    true = np.asarray(true)
    return float(np.linalg.norm(np.asarray(found) - true) / np.linalg.norm(true))


def missing(module: str | None) -> str | None:
    """Why a module that a side needs is not here, or None."""
    if not module:
        return None
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"pip install {PACKAGES[module]} ({error})"
    return None


# Time --------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], number: int = 1) -> float:
    """Wall time of one call, the mean of `number` in a row."""
    # Threads of the library that ran before spin for a while: let them rest.
    time.sleep(PAUSE)
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int, burst: float
) -> dict[str, list[float]]:
    """Times the calls in turns, so that a busy machine is busy for all of them.

    Args:
        calls: Functions that block until they are done, each called before.
        rounds: Samples of each.
        burst: A sample is the mean of as many calls, at most ten, as take this long,
            in seconds. Of one: 0.

    Returns:
        The samples of each, in seconds, round by round.
    """
    number = dict.fromkeys(calls, 1)
    if burst:
        took = {name: seconds(call) for name, call in calls.items()}
        number = {n: min(10, max(1, round(burst / t))) for n, t in took.items()}
    samples = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(seconds(call, number[name]))
    return samples


# Memory ------------------------------------------------------------------------------


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory now, or at its peak (Linux).

    Not `ru_maxrss`: a child inherits that from the process that started it.
    """
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(s.split()[1]) for s in lines if s.startswith(key))


def peak_growth(call: Callable[[], Any]) -> int:
    """Bytes that one call adds to the peak of this process, which it should have alone.

    What is free goes back to the system first: reused, it would hide what the call
    needs. Where the peak cannot be reset, one from before may make this too large.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    call()
    return resident(peak=True) - before


def peak(topic: str, benchmark: str, side: str, parameters: str) -> dict[str, Any]:
    """Runs in a process of its own: what one call of a side needs beyond its arguments.

    The baseline is taken with the points in place and the program compiled, after a
    call on few points: what starts with the first call is not what the next one needs.
    Nothing is run where its compiler says that it takes too much of the machine.
    """
    build = getattr(importlib.import_module(topic), benchmark)
    of = json.loads(parameters)
    build(**of | {"n": min(of["n"], FEW)}).sides[side].prepare().call()
    call, _, temporaries = build(**of).sides[side].prepare()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if temporaries and temporaries > 0.4 * machine:
        return {"temporary_bytes": temporaries}
    found = {"peak_bytes": peak_growth(call)}
    return found | ({"temporary_bytes": temporaries} if temporaries else {})


def in_child(function: Callable, *args: Any, **env: str) -> Any:
    """What a function of texts returns in a process of its own, through JSON."""
    name = f"{function.__module__}:{function.__name__}"
    command = [sys.executable, "-m", "benchmarks", "in-child", name, *map(str, args)]
    settings = {"capture_output": True, "text": True, "env": os.environ | env}
    run = subprocess.run(command, cwd=ROOT, check=False, **settings)
    if run.returncode:
        raise RuntimeError(run.stderr or f"a child ended with {run.returncode}")
    return json.loads(run.stdout.splitlines()[-1])


# A whole contest ---------------------------------------------------------------------


def measure(
    build: Callable[..., Contest],
    *,
    rounds: int,
    burst: float = 0.05,
    timed: Collection[str] | None = None,
    weighed: Collection[str] = (),
    **parameters: Any,
) -> Record:
    """Measures a contest: are its sides equal, how fast are they, what do they need?

    Args:
        build: Makes the contest; a function at the top of its module.
        rounds: Samples of the time of each side. None: 0, and nothing is compared.
        burst: As in `interleaved`.
        timed: The sides that are compiled, compared and timed. All: None.
        weighed: The sides whose peak of memory is measured.
        **parameters: Of `build`. `n` is the number of points.

    Returns:
        The record.
    """
    contest = build(**parameters)
    done = record({}, **parameters)
    why = {name: missing(side.module) for name, side in contest.sides.items()}
    done["left_out"] = {name: text for name, text in why.items() if text}
    here = {name: side for name, side in contest.sides.items() if not why[name]}
    found = done["sides"]
    found |= {name: {} for name in here}
    ready = {n: s.prepare() for n, s in here.items() if timed is None or n in timed}
    for name, one in ready.items():
        told = one._asdict()
        told.pop("call")
        found[name] |= {key: value for key, value in told.items() if value is not None}
    if rounds:
        calls = {name: one.call for name, one in ready.items()}
        results = {name: call() for name, call in calls.items()}
        for name, facts in contest.agree(results).items():
            found[name] |= facts
        del results
        for name, samples in interleaved(calls, rounds, burst).items():
            found[name]["seconds"] = samples
    # Else glibc keeps what a loop in torch frees, in pieces too small for it.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    for name in here:
        if name in weighed:
            args = build.__module__, build.__name__, name, json.dumps(parameters)
            found[name] |= in_child(peak, *args, **malloc)
    return done
