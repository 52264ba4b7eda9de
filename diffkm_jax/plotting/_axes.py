"""The axes that are drawn on, and how what is drawn differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes as MatplotlibAxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe & Ito, without black, and yellow, which is faint on white. The three lists
# have lengths without a common factor: 6, 7 and 5, so that few pairs repeat.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
MARKERS = "o", "^", "s", "X", "v", "D", "P"
DASHES = "-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 1))
GREY = "#666666"


def as_axes(
    ax: Any, rows: int, columns: int, size: tuple[float, float], **shared: Any
) -> np.ndarray:
    """The axes given, checked to be as many, or those of a new figure, [number].

    Args:
        ax: Axes, a sequence or an array of some, or None.
        rows: Of panels.
        columns: Of panels.
        size: Of a new figure, in inches.
        **shared: What panels of a new figure share.
    """
    number = rows * columns
    if ax is None:
        # Chooses the backend, and so is imported only for figures of its own.
        from matplotlib import pyplot

        how = {"figsize": size, "layout": "constrained", "squeeze": False}
        _, axes = pyplot.subplots(rows, columns, **how, **shared)
        return axes.ravel()
    several = isinstance(ax, Sequence | np.ndarray)
    given = list(np.ravel(np.asarray(ax, object))) if several else [ax]
    how = f"plt.subplots({rows}, {columns})[1]" if number > 1 else "plt.axes()"
    what = f"ax must be {number} matplotlib Axes, as {how}, or None"
    others = {type(a).__name__ for a in given if not isinstance(a, MatplotlibAxes)}
    if others:
        raise TypeError(f"{what}, got {', '.join(sorted(others))}")
    if len(given) != number:
        raise ValueError(f"{what}, got {len(given)}")
    axes = np.empty(number, object)
    axes[:] = given
    return axes


def line_style(i: int) -> dict[str, Any]:
    """How the i-th line is drawn."""
    return {
        "color": COLORS[i % len(COLORS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "linewidth": 1.6,
        "markersize": 5.5,
    }


def legend_of_panels(axes: np.ndarray, is_new: bool) -> None:
    """The legend of the first panel: over all of a new figure, else in that panel."""
    if not is_new:
        axes[0].legend(fontsize="small")
        return
    place = {"loc": "outside upper left", "frameon": False, "fontsize": "small"}
    lines, names = axes[0].get_legend_handles_labels()
    figure = axes[0].figure
    # A letter is as a rule 0.08 inches wide, a handle six letters.
    fit = int(figure.get_figwidth() / 0.08 / (6 + max(map(len, names))))
    figure.legend(lines, names, ncols=min(max(fit, 1), 4), **place)


def legend_above(ax: Axes, columns: int) -> None:
    """A legend over the axes, where no data are."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3}
    ax.legend(**place, ncols=columns, frameon=False, fontsize="small")
