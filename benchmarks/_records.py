"""What is written down: facts by side, ratios, goals, and the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = {
    "torch": "torch",
    "sklearn.cluster": "scikit-learn",
    "ott.tools.k_means": "ott-jax",
    "torch_kmeans": "torch_kmeans",
    "fast_pytorch_kmeans": "fast_pytorch_kmeans",
    "faiss": "faiss-cpu",
}
VERSIONS = "jax", "jaxlib", "numpy", "optax", *PACKAGES.values()

INFINITY = float("inf")

Record = dict[str, Any]


class Part(NamedTuple):
    """A record that takes long: what it will be of, and how to take it."""

    parameters: dict[str, Any]
    take: Callable[[], Record]


def record(sides: dict[str, dict], **parameters: Any) -> Record:
    """What was found, in terms that JSON knows: facts by side, ratios and goals."""
    empty = {"ratios": [], "goals": [], "left_out": {}, "notes": []}
    return {"parameters": parameters, "sides": sides} | empty


def median(of: Record, side: str) -> float:
    return statistics.median(of["sides"][side]["seconds"])


def compare(of: Record, above: str, below: str, **bound: float) -> None:
    """Notes the ratio of two sides' times, with its range, and a goal for it.

    Nothing, if one of them was left out or not timed.
    """
    samples = [of["sides"].get(name, {}).get("seconds") for name in (above, below)]
    if not all(samples):
        return
    every = [a / b for a, b in zip(*samples, strict=True)]
    value = median(of, above) / median(of, below)
    ratio = {"value": value, "low": min(every), "high": max(every)}
    of["ratios"].append({"above": above, "below": below} | ratio)
    if bound:
        goal(of, f"{above} ÷ {below}", value, **bound)


def goal(
    of: Record,
    what: str,
    value: float,
    *,
    at_least: float = -INFINITY,
    at_most: float = INFINITY,
) -> None:
    """Notes a goal: what it is of, what was found, and whether that meets it."""
    text = f"≥ {at_least:g}" if at_most == INFINITY else f"≤ {at_most:g}"
    met = bool(at_least <= value <= at_most)
    of["goals"].append({"what": what, "value": value, "bound": text, "met": met})


def environment() -> dict[str, Any]:
    """What this runs on: the processor, its cores, who else uses them, the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    affinity = getattr(os, "sched_getaffinity", None)
    versions = {"python": platform.python_version()}
    for package in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": versions,
    }
