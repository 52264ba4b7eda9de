"""The picture of a fit, in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import diffkm_jax as dk
from diffkm_jax._command_line.output import write

# Of more points a part is drawn; of more columns no principal components are found.
MOST, WIDEST = 10_000, 1000


def draw(out: Path, points: np.ndarray, result: dk.FitResult) -> None:
    """Writes a picture of clusters in the plane; of one column, of the loss by step."""
    from matplotlib.figure import Figure

    from diffkm_jax.plotting import plot_clusters, plot_losses

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    if 2 <= points.shape[1] <= WIDEST:
        chosen = np.linspace(0, len(points) - 1, min(MOST, len(points))).astype(int)
        labels = result.labels[chosen]
        plot_clusters(points[chosen], result._replace(labels=labels), ax=axes)
    else:
        plot_losses([result], labels=["fit"], ax=axes)
    kind = out.suffix.lower()[1:]
    write(out, lambda file: figure.savefig(file, format=kind))
