"""The picture of a fit, in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import diffkm_jax as dk
from diffkm_jax._command_line.output import write

# Of more points a part is drawn; of more columns no principal components are found.
MOST, WIDEST = 10_000, 1000


def draw(out: Path, points: np.ndarray, result: dk.FitResult) -> None:
    """Writes a picture of clusters in the plane; of one column, of the loss by step."""
    os.environ.setdefault("MPLBACKEND", "agg")  # No window.
    from diffkm_jax.plotting import plot_clusters, plot_losses

    axes: Any
    if 2 <= points.shape[1] <= WIDEST:
        chosen = np.linspace(0, len(points) - 1, min(MOST, len(points))).astype(int)
        drawn = result._replace(labels=result.labels[chosen])
        axes = plot_clusters(points[chosen], drawn)
    else:
        axes = plot_losses([result], labels=["fit"])[0]
    kind = out.suffix.lower()[1:]
    write(out, lambda file: axes.figure.savefig(file, format=kind))
