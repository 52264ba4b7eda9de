"""The picture of the estimators: how wrong they are, what their samples look like.

`python -m benchmarks report FILE --picture benchmarks/estimators.png`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def style() -> dict[str, dict[str, Any]]:
    """How every line is drawn; those of one color are a family, a wide one lies below.

    The exact gradient is what the panels are relative to.
    """
    dashed, dotted = (0, (5, 2)), (0, (1.2, 1.5))
    lines = {
        "sampled_straight_through": ("black", "-", 1.6),
        "straight_through": ("#e0559f", dotted, 2),
        "gapped_straight_through": ("#17a2c4", "-", 1.6),
        "gapped, gap=None": ("#17a2c4", dashed, 1.6),
        "reinmax": ("#d62728", "-", 1.6),
        "gumbel_rao": ("#8fd18f", "-", 4),
        "gumbel_softmax, hard": ("#f07f00", dashed, 1.6),
        "gumbel_softmax": ("#f07f00", "-", 1.6),
        "decoupled, tau_backward=1": ("#f07f00", dotted, 2),
        "blackbox": ("#9a8b00", dotted, 2),
        "implicit_mle, scaled": ("#9a8b00", dashed, 1.6),
        "reinforce": ("#8a8a8a", "-", 1.6),
        "reinforce, baseline": ("#8a8a8a", dashed, 1.6),
        "rloo, 4 draws": ("#6a35b0", dashed, 1.6),
        "rebar": ("#6a35b0", "-", 1.6),
        "reinmax_rao": ("#d62728", dashed, 1.6),
        "reinmax_cv": ("#d62728", dotted, 2),
        "rodeo, 4 draws": ("#2f6fd6", "-", 1.6),
        "unordered_set, 4": ("#2f6fd6", dashed, 1.6),
    }
    names = "color", "linestyle", "linewidth"
    return {label: dict(zip(names, how, strict=True)) for label, how in lines.items()}


UNBIASED = (
    *("reinforce", "reinforce, baseline", "rloo, 4 draws", "rebar"),
    *("rodeo, 4 draws", "unordered_set, 4"),
)
REMARKS = dict.fromkeys(UNBIASED, " (unbiased)") | {
    "straight_through": " (no variance)",
    "blackbox": " (over its strength, no variance)",
    "implicit_mle, scaled": " (over its strength)",
}


def draw_curves(row: Any, grid: np.ndarray, found: dict[str, Any]) -> list[Any]:
    """Three panels of one problem; returns the lines of the second, which has all."""
    bias, deviation, direction = row
    for label, how in style().items():
        if label not in found:
            continue
        # Where there is no bias to show, None, there is no line.
        curve = {key: np.array(of, float) for key, of in found[label].items()}
        spread = np.where(curve["deviation"] > 1e-6, curve["deviation"], np.nan)
        deviation.plot(grid, spread, label=label + REMARKS.get(label, ""), **how)
        if label not in UNBIASED:
            bias.plot(grid, curve["bias"], **how)
            # Logarithmic in what is missing to 1, upside down, ticks say the cosine.
            direction.plot(grid, np.maximum(1 - curve["cosine"], 1e-3), **how)
    for axis in row:
        axis.set(xscale="log", yscale="log", xlim=(grid[0], grid[-1]))
        axis.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        axis.set_xlabel("tau, in the unit of the logits")
        axis.grid(alpha=0.25)
    bias.set(title="Bias of the mean estimate")
    bias.set_ylabel("‖bias‖ / ‖exact gradient‖")
    deviation.set(title="Standard deviation of one estimate")
    deviation.set_ylabel("√(total variance) / ‖exact gradient‖")
    deviation.set_ylim(bottom=0.004)
    direction.set(title="Direction of the mean estimate")
    direction.set_ylabel("cosine with the exact gradient")
    missing = 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1
    names = ["0.999+", *(f"{1 - value:.4g}" for value in missing[1:])]
    direction.set_yticks(missing, names)
    direction.set_yticks([], minor=True)
    direction.set_ylim(1.25, 8e-4)
    return deviation.get_lines()


def draw_samples(mean_axis: Any, peak_axis: Any, sides: dict[str, dict]) -> None:
    """Two panels: the mean sample by tau, and how far from one-hot a sample is."""
    *probabilities, _, _ = sides["draws"].values()
    by_tau = {name: of for name, of in sides.items() if name.startswith("tau")}
    taus = [float(name.removeprefix("tau = ")) for name in by_tau]
    rows = np.array([list(of.values()) for of in by_tau.values()])
    means, (tops, entropies) = np.split(rows.T, [-2])
    log_k = np.log(len(probabilities))
    for i, p in enumerate(probabilities):
        (line,) = mean_axis.plot(taus, means[i], "o-", markersize=3)
        color = line.get_color()
        mean_axis.plot([taus[0] / 1.5, taus[0]], [p, p], ":", color=color)
        mean_axis.text(taus[0] / 1.6, p, f"{p:.2f}", ha="right", va="center", size=8)
    mean_axis.set_xlim(taus[0] / 2.8, taus[-1] * 1.1)
    mean_axis.set(
        title="Mean sample (left: the probabilities)",
        ylabel="mean entry of each of 7 categories",
    )
    for values, label, color, dash, place in (
        (tops, "largest entry", "#1f5fa8", "o-", (2.2, 0.38)),
        (entropies / log_k, "entropy / log 7", "#b04a1f", "s--", (2.2, 0.8)),
    ):
        peak_axis.plot(taus, values, dash, color=color)
        peak_axis.text(*place, label, color=color)
    peak_axis.set(title="How far from one-hot a sample is", ylabel="mean, no unit")
    for axis in (mean_axis, peak_axis):
        axis.set_xscale("log")
        axis.set_xticks(taus, [f"{tau:g}" for tau in taus])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("tau, in the unit of the logits")
        axis.grid(alpha=0.25)


PROBLEMS = {
    "three": "One row of three categories, cost exp(v·D)",
    "digits": "200 digits, 10 clusters, cost −log (D Q)[class]",
}


def draw(path: Path, records: list[dict[str, Any]]) -> None:
    """Draws the curves of two problems and the samples of one row into a file.

    Args:
        path: The file to write.
        records: Of a run of the topic estimators.

    Raises:
        ImportError: There is no matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 12.5), dpi=100, layout="constrained")
    parts: Any = figure.subfigures(3, 1, hspace=0.03)
    *upper, lower = parts
    lines = []
    curves = [one for one in records if one["benchmark"] == "estimators.curves"]
    found = {one["parameters"]["problem"]: one for one in curves}
    for part, (problem, title) in zip(upper, PROBLEMS.items(), strict=True):
        part.suptitle(title, weight="bold")
        grid = np.array(found[problem]["grid"])
        lines = draw_curves(part.subplots(1, 3), grid, found[problem]["sides"])
    lower.suptitle("Gumbel-softmax samples of one row", weight="bold", x=0.33)
    left, middle, corner = lower.subplots(1, 3)
    (sampled,) = (r for r in records if r["benchmark"] == "estimators.samples")
    draw_samples(left, middle, sampled["sides"])
    corner.axis("off")
    corner.legend(
        handles=lines,
        loc="center",
        fontsize=8,
        labelspacing=0.35,
        handlelength=3.2,
        frameon=False,
        title="Lines of the six panels above",
    )
    figure.savefig(path)
