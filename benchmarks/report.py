"""The documentation's tables of speed, and one of every benchmark, of what was saved.

A file holds the records of a run: `environment`, and `records`, each with `benchmark`,
`parameters`, `sides` (facts by side; `seconds` are samples, a time is their median),
`ratios`, `goals`, `left_out` and `notes`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks._records import Record

Saved = dict[str, Any]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"### {title}\n\n{text}\n"


def of_seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def of_fact(key: str, value: Any) -> str:
    """A fact as text, by the unit in its name."""
    if value is None or isinstance(value, str):
        return value or ""
    if key == "seconds":
        return of_seconds(statistics.median(value))
    if key.endswith("_seconds"):
        return of_seconds(value)
    if key.endswith("_bytes"):
        return f"{value / 1e6:.3g} MB"
    return f"{value:.5g}"


def median(record: Record, side: str) -> str:
    samples = record["sides"].get(side, {}).get("seconds")
    return of_fact("seconds", samples) if samples else ""


def ratio(record: Record, above: str, below: str) -> float | None:
    for one in record["ratios"]:
        if (one["above"], one["below"]) == (above, below):
            return one["value"]
    return None


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} × as long"


# The documentation's -----------------------------------------------------------------


def of_losses(records: list[Record]) -> Iterator[str]:
    """Value and gradient of both losses, by shape."""
    shapes: dict[str, list[str]] = {}
    for record in records:
        if record["benchmark"] == "losses.loss":
            shape = ", ".join(str(record["parameters"][name]) for name in "nkd")
            rivals = (ratio(record, r, "diffkm") for r in ("torch", "naive JAX"))
            row = shapes.setdefault(shape, [shape])
            row += [median(record, "diffkm"), *map(times, rivals)]
    if shapes:
        rivals = "torch autograd", "naive JAX"
        head = "n, k, d", "`kmeans_loss`", *rivals, "`soft_kmeans_loss`", *rivals
        yield table("Value and gradient in the centroids", head, shapes.values())


def of_gradients(records: list[Record]) -> Iterator[str]:
    """A gradient through a fit: its price and its memory at two numbers of steps."""
    found = [one for one in records if one["benchmark"] == "fits.gradient"]
    lengths = sorted({one["parameters"]["steps"] for one in found})
    rows = {}
    for one in found:
        kind = "soft" if one["parameters"]["soft"] else "hard"
        steps = one["parameters"]["steps"]
        for side, facts in one["sides"].items():
            prices, peaks = rows.setdefault(f"{kind}, {side}", ([], []))
            if value := ratio(one, side, "diffkm, the fit alone"):
                more = f"{value:.2f} ({facts['passes_more']:.1f} passes more)"
                prices.append(f"{more} of {steps} steps" if prices else more)
            if "peak_bytes" in facts:
                peaks.append(f"{facts['peak_bytes'] / 1e6:.0f}")
    if found:
        head = "", f"{lengths[0]} steps, times the fit alone"
        head = *head, f"peak memory added, {' / '.join(map(str, lengths))} steps"
        cells = [
            (side, ", ".join(prices), " / ".join(peaks) + " MB" * bool(peaks))
            for side, (prices, peaks) in rows.items()
            if prices or peaks
        ]
        yield table("A gradient through a fit, in the points", head, cells)


# Estimators --------------------------------------------------------------------------

TRAINED = "training.autoencoder", "training.polynomial"


def best(record: Record) -> tuple[str, dict[str, list]] | None:
    """The setting whose last score is lowest in the mean over seeds, and its scores.

    None if in every setting that of a seed is not finite.
    """
    means = {
        name: statistics.mean(scores[chosen_by(scores)][-1])
        for name, scores in record["sides"].items()
        if None not in scores[chosen_by(scores)][-1]
    }
    if not means:
        return None
    name = min(means, key=lambda name: means[name])
    return name, record["sides"][name]


def chosen_by(scores: dict[str, list]) -> str:
    return "train" if "train" in scores else "expected"


def of_training(records: list[Record]) -> Iterator[str]:
    """The last scores of every estimator at its best setting, mean ± deviation."""
    problems: dict[str, list[Record]] = {}
    for one in records:
        if one["benchmark"] in TRAINED:
            problems.setdefault(one["parameters"]["problem"], []).append(one)
    for problem, found in problems.items():
        first = next(iter(found[0]["sides"].values()))
        keys = [key for key in ("train", "held out", "expected") if key in first]
        rows = []
        for one in found:
            setting, scores = best(one) or ("none is finite", {})
            cells = (
                f"{statistics.mean(last):.4g} ± {statistics.stdev(last):.2g}"
                for last in (scores[key][-1] for key in keys if scores)
            )
            rows.append([one["parameters"]["estimator"], setting, *cells])
        num, seeds = (found[0]["parameters"][key] for key in ("num_steps", "seeds"))
        title = f"{problem}: after {num} steps, ± of {seeds} seeds"
        yield table(title, ["", "best setting", *keys], rows)


# Every benchmark's -------------------------------------------------------------------


CURVES = {
    "estimators.curves": ("tau =", "bias, deviation, cosine"),
    "training.variance": ("step", "bias, deviation, cosine along training"),
}


def of_curves(records: list[Record]) -> Iterator[str]:
    for record in records:
        if record["benchmark"] in CURVES:
            over, what = CURVES[record["benchmark"]]
            head = ["", *(f"{over} {at:.4g}" for at in record["grid"])]
            rows = [[name, *cells(facts)] for name, facts in record["sides"].items()]
            yield table(f"{record['parameters']['problem']}: {what}", head, rows)


def cells(curve: dict[str, list]) -> list[str]:
    """Bias (or below what it is, if not told from zero), deviation, cosine."""
    columns = (curve[key] for key in ("bias", "limit", "deviation", "cosine"))
    return [
        f"{f'<{limit:.1g}' if bias is None else f'{bias:.2g}'}, {spread:.2g}, {cos:.3f}"
        for bias, limit, spread, cos in zip(*columns, strict=True)
    ]


def of_benchmark(name: str, records: list[Record]) -> str:
    """A row for each side of each record: its facts, its ratios."""
    parameters = list(dict.fromkeys(p for one in records for p in one["parameters"]))
    facts = [side for one in records for side in one["sides"].values()]
    keys = list(dict.fromkeys(key for side in facts for key in side))
    keys = sorted(keys, key=lambda key: key != "seconds")
    compared = any(one["ratios"] for one in records)
    rows = []
    for one in records:
        shared = [str(one["parameters"].get(p, "")) for p in parameters]
        for side, found in one["sides"].items():
            row = [*shared, side, *(of_fact(key, found.get(key)) for key in keys)]
            ratios = [
                f"{r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f}) of {r['below']}"
                for r in one["ratios"]
                if r["above"] == side
            ]
            rows.append([*row, "; ".join(ratios)] if compared else row)
    head = [*parameters, "", *(key.replace("_", " ") for key in keys)]
    return table(name, [*head, "times as long"] if compared else head, rows)


def render(saved: Saved) -> str:
    """All of a file as markdown."""
    of, records = saved["environment"], saved["records"]
    versions = ", ".join(f"{name} {v}" for name, v in of["versions"].items())
    load = f"load {of['load_before']:.1f} before, {of.get('load_after', 0):.1f} after"
    flags = f"XLA_FLAGS={of['xla_flags']}; " if of["xla_flags"] else ""
    machine = f"{of['processor']}, {of['cores']} cores; {load}; {flags}{versions}."
    parts = [machine + "\n", *of_losses(records), *of_gradients(records)]
    names = dict.fromkeys(one["benchmark"] for one in records)
    for name in names:
        if name not in (*CURVES, *TRAINED):
            same = [one for one in records if one["benchmark"] == name]
            parts.append(of_benchmark(name, same))
    parts += [*of_training(records), *of_curves(records)]
    goals = [
        [
            one["benchmark"],
            ", ".join(f"{key} {value}" for key, value in one["parameters"].items()),
            goal["what"],
            goal["bound"],
            f"{goal['value']:.3g}",
            "met" if goal["met"] else "**missed**",
        ]
        for one in records
        for goal in one["goals"]
    ]
    if goals:
        head = "benchmark", "of", "goal", "bound", "found", ""
        parts.append(table("Goals", head, goals))
    remarks = [f"- {text}" for one in records for text in one["notes"]]
    left_out = {why: None for one in records for why in one["left_out"].values()}
    remarks += [f"- Left out, not installed: {why}." for why in left_out]
    return "\n".join(parts + ["\n".join(remarks)] * bool(remarks))
