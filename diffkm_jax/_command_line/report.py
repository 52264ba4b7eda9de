"""What is said of a fit or of an assignment: lines of text, or one JSON object."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

import diffkm_jax as dk
from diffkm_jax._command_line.output import say


def print_json(found: dict[str, Any]) -> None:
    """Prints one object; what is not finite is null."""
    print(json.dumps({name: _for_json(value) for name, value in found.items()}))


def _for_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_for_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if hasattr(value, "suffix") else value


def sizes_of(counts: Any, are_whole: bool) -> list[float]:
    """The weight of every cluster, which is a number of points if whole."""
    counts = np.asarray(counts).tolist()
    return [round(n) if are_whole and math.isfinite(n) else n for n in counts]


def print_text(found: dict[str, Any]) -> None:
    """Prints what is known, a line for each."""
    sizes = found["sizes"]
    soft = found["temperature"] is not None
    lines = {
        "n, d, k": f"{found['n']}, {found['d']}, {found['k']}",
        "loss": f"{found['loss']:.10g}{' (free energy)' * soft}",
    }
    if "steps" in found:
        lines["steps"] = f"{found['steps']}"
        lines["residual"] = f"{found['residual']:.3g}"
        lines["status"] = "|".join(found["status"])
    lines["sizes"] = f"{min(sizes):.10g} to {max(sizes):.10g}"
    lines["empty clusters"] = f"{sizes.count(0)}"
    lines["seconds"] = f"{found['seconds']:.2f} (with compiling)"
    for name, text in lines.items():
        print(f"{name:<15} {text}")


def warn(status: dk.Status, steps: int, sizes: list[float], by_batches: bool) -> None:
    """Says on stderr what is to be known about how a fit ended."""
    if dk.Status.NON_FINITE in status:
        say(
            "error: the loss or a step was not finite (NON_FINITE), and nothing is "
            "written: scale the points, or take float64 or a smaller --learning-rate"
        )
        return
    if dk.Status.DOMAIN in status:
        say("warning: a centroid is where the distance is not defined (DOMAIN)")
    if dk.Status.MAX_STEPS in status and not by_batches:
        say(f"warning: not converged in {steps} steps (MAX_STEPS): see --max-steps")
    if dk.Status.NOT_AT_REST in status:
        say("warning: the last step moved too far (NOT_AT_REST): see --tol")
    if dk.Status.EMPTY_CLUSTER in status:
        empty = f"{sizes.count(0)} of {len(sizes)}"
        say(f"warning: empty clusters: {empty} (EMPTY_CLUSTER): see --empty")
