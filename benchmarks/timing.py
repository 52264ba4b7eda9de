"""Times and weighs rivals, and prints what came of it as markdown."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

PAUSE = 0.05


def need(module: str, package: str) -> ModuleType:
    """Imports a rival, or ends the run with a message that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"this benchmark compares with {package}: pip install {package}"
        raise SystemExit(f"{message} ({error})") from error


def seconds(call: Callable[[], Any], number: int = 1) -> float:
    """Wall time of one call, the mean of `number` in a row; the call must block."""
    # Threads of the library that ran before spin for a while: let them rest.
    time.sleep(PAUSE)
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int, *, burst: float = 0.05
) -> dict[str, list[float]]:
    """Times the calls in turns, so that a busy machine is busy for all of them.

    Args:
        calls: Functions that block until they are done, by name.
        rounds: Samples of each. One call of each comes before them, untimed.
        burst: A sample is the mean of as many calls, at most ten, as take this long,
            in seconds.

    Returns:
        The samples of each, in seconds, round by round.
    """
    number = {}
    for name, call in calls.items():
        call()
        number[name] = min(10, max(1, round(burst / seconds(call))))
    samples = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(seconds(call, number[name]))
    return samples


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


def in_child(script: str, *args: Any, **env: str) -> Any:
    """What a script prints as JSON, in a process of its own, or the end of the run."""
    command = [sys.executable, script, *map(str, args)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | env
    )
    if run.returncode:
        raise SystemExit(run.stderr or f"a child ended with {run.returncode}")
    return json.loads(run.stdout.splitlines()[-1])


def median(samples: Sequence[float]) -> str:
    """The median of some seconds, as text."""
    value = statistics.median(samples)
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, str]:
    """The ratio of two medians, and as text with the range of it over the rounds."""
    value = statistics.median(above) / statistics.median(below)
    every = [a / b for a, b in zip(above, below, strict=True)]
    return value, f"{value:.2f} ({min(every):.2f} to {max(every):.2f})"


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a markdown table under a title."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def machine(*packages: str) -> str:
    """What this runs on: the processor, its cores, who else uses them, the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    cpu = names[0] if names else platform.processor() or platform.machine()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    load = os.getloadavg()[0]
    return f"{cpu}, {cores} cores, load {load:.1f} before; {', '.join(found)}"
