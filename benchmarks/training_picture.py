"""The picture of training: how far each estimator comes, and how its estimates vary.

`python -m benchmarks report FILE --picture benchmarks/training.png --of training`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.picture import style
from benchmarks.report import TRAINED, best, chosen_by

PROBLEMS = {
    "8 × 16": "Autoencoder, 16 variables of 8 categories",
    "10 × 30": "Autoencoder, 30 variables of 10 categories",
    "p = 1.5": "Polynomial problem, p = 1.5",
}


def draw_problem(column: Any, records: list[dict], spread: dict | None) -> None:
    """Scores along training, at its end, and the deviation of estimates along it.

    Every estimator is at its best setting.
    """
    along, end, deviation = column
    names = [one["parameters"]["estimator"] for one in records]
    for place, one in enumerate(records):
        found = best(one)
        if not found:
            continue
        setting, scores = found
        name = names[place]
        how = style()[name]
        curve = np.array(scores[chosen_by(scores)], float)  # [steps, seeds]
        mean, error = curve.mean(1), curve.std(1, ddof=1)
        along.plot(one["steps"], mean, **how)
        area = {"color": how["color"], "alpha": 0.15, "linewidth": 0}
        along.fill_between(one["steps"], mean - error, mean + error, **area)
        dot = {"color": how["color"], "fmt": "o", "capsize": 3}
        end.errorbar(mean[-1], place, xerr=error[-1], **dot)
        if spread:
            tau = setting.split(",")[0]
            side = spread["sides"].get(f"{name}, {tau}") or spread["sides"][name]
            deviation.plot(spread["grid"], side["deviation"], **how)
    end.set_yticks(range(len(names)), names, fontsize=8)
    end.invert_yaxis()
    # The first segment, from random logits, would leave no room for the rest.
    tops = [line.get_ydata()[1] for line in along.get_lines()]
    low, _ = along.get_ylim()
    along.set_ylim(low, max(tops) + 0.05 * (max(tops) - low))
    unit = "negative ELBO, nats" if "train" in scores else "expected loss"
    along.set(xlabel="step", ylabel=unit)
    end.set(xlabel=f"{unit}, after training")
    deviation.set(xlabel="step", ylabel="√(total variance) / ‖exact gradient‖")
    deviation.set(yscale="log", visible=spread is not None)
    for axis in column:
        axis.grid(alpha=0.25)


def draw(path: Path, records: list[dict[str, Any]]) -> None:
    """Draws what was trained into a file.

    Args:
        path: The file to write.
        records: Of a run of the topic training.

    Raises:
        ImportError: There is no matplotlib.
    """
    from matplotlib.figure import Figure

    trained: dict[str, list] = {}
    spreads = {}
    for one in records:
        problem = one["parameters"].get("problem")
        if one["benchmark"] in TRAINED:
            trained.setdefault(problem, []).append(one)
        if one["benchmark"] == "training.variance":
            spreads[problem] = one
    shown = [problem for problem in PROBLEMS if problem in trained]
    size = 4.4 * len(shown), 10.5
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    grid: Any = figure.subplots(3, len(shown), squeeze=False)
    for column, problem in zip(grid.T, shown, strict=True):
        draw_problem(column, trained[problem], spreads.get(problem))
        column[0].set_title(PROBLEMS[problem], fontsize=10)
    figure.savefig(path)
