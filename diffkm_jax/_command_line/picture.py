"""The picture of a fit, in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import diffkm_jax as dk
from diffkm_jax._command_line.output import write

# More points than these are drawn by a part of them.
MOST = 10_000


def draw(out: Path, points: np.ndarray, result: dk.FitResult) -> None:
    """Draws clusters in two dimensions, else the loss by step, and writes that."""
    from matplotlib.figure import Figure

    from diffkm_jax.plotting import plot_clusters, plot_losses

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    if points.shape[1] == 2:
        chosen = np.linspace(0, len(points) - 1, min(MOST, len(points))).astype(int)
        labels = result.labels[chosen]
        plot_clusters(points[chosen], result._replace(labels=labels), ax=axes)
    else:
        plot_losses([result], labels=["fit"], ax=axes)
    kind = out.suffix.lower()[1:]
    write(out, lambda file: figure.savefig(file, format=kind))
