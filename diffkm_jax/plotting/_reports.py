"""How wrong estimators are, over a grid of a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer
from matplotlib.ticker import LogLocator

from diffkm_jax._hints import hinted
from diffkm_jax.diagnostics import Report
from diffkm_jax.diagnostics._table import lengths_of
from diffkm_jax.plotting._axes import GREY, as_axes, legend_of_panels, line_style
from diffkm_jax.plotting._numbers import named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"bias": "‖bias‖", "deviation": "standard deviation", "cosine": "cosine"}


@hinted
def plot_reports(
    reports: Report | Mapping[str, Report] | Sequence[Report],
    *,
    setting: str = "tau",
    labels: str | Sequence[str] | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Bias, deviation and cosine of estimators over a grid of a setting.

    They are the numbers of a printed report, all problems as one vector: the length of
    the bias, with the length of its standard error as bars, where estimates were
    sampled; the standard deviation of an estimate, the root of the sum of the variances
    of its components; and the cosine between the mean estimate and the exact gradient.
    An estimator without the setting is a level line, over the grid of the others. The
    gradient is zero: a picture has none.

    The length of a sampled bias is no less than some length of its error: a bias within
    its bars may be none.

    Args:
        reports: A `Report` of `evaluate` with a `grid`, a sequence of some, or a
            mapping from names to them.
        setting: The name of a setting in that grid, the horizontal axis, which is
            logarithmic if all its values are positive.
        labels: Names of a sequence, or of the one report; None is the names of the
            estimators, with their other settings, or numbers, where two are equal.
        ax: Three axes, or None for a new figure.

    Returns:
        The three axes, [3]; bias and deviation are in the unit of the costs.

    Raises:
        TypeError: `reports` are no reports, or traced; or `ax` are no axes.
        ValueError: `reports` is empty, none of them is over a grid of `setting`, or one
            is of another grid, or of several; `labels` are not as many different
            names, or a mapping has names already; or `ax` are not three.

    Example:
        >>> from diffkm_jax import plotting
        >>> key, logits = jax.random.key(0), jnp.zeros(2)
        >>> records, grid = [es.straight_through(), es.reinforce()], {"tau": [0.5, 1.0]}
        >>> found = dk.evaluate(key, lambda row: row[0], logits, records, grid=grid)
        >>> bias, deviation, cosine = plotting.plot_reports(found)
        >>> [line.get_ydata().round(3).tolist() for line in cosine.lines[:2]]
        [[1.0, 1.0], [1.0, 1.0]]

    Source: Shekhovtsov 2021 (bias and variance of estimators by temperature),
        https://arxiv.org/abs/2110.03549
    """
    each = _each(reports)
    if labels is None and not isinstance(reports, Mapping):
        labels = _labels(each, setting)
    by_name = named("reports", reports, labels, "report")
    grids = [_grid_of(report, setting) for report in each]
    known = [grid for grid in grids if grid is not None]
    if not known:
        raise ValueError(
            f"reports must be over a grid of {setting}, as evaluate(..., "
            f'grid={{"{setting}": [0.1, 1.0]}}), got none'
        )
    axes = as_axes(ax, 1, 3, (11, 3.8))
    is_logarithmic, least = True, np.inf
    for i, (label, report) in enumerate(by_name.items()):
        grid = grids[i]
        x = known[0] if grid is None else grid
        curves = _curves(report, len(x))
        order, style = np.argsort(x), line_style(i) | {"label": label}
        is_logarithmic &= bool(np.all(x > 0))
        least = min([least, *curves["deviation"][curves["deviation"] > 0]])
        for a, name in zip(axes, PANELS, strict=True):
            a.plot(x[order], curves[name][order], **style)
        error = curves["bias_error"][order]
        if np.any(error > 0):
            bars = {"linestyle": "none", "color": style["color"], "capsize": 3}
            axes[0].errorbar(x[order], curves["bias"][order], yerr=error, **bars)
    _finish(axes, setting, is_logarithmic, least)
    legend_of_panels(axes, ax is None)
    return axes


def _each(reports: Any) -> list[Report]:
    """The reports, checked to be some that can be read."""
    several = isinstance(reports, Sequence) and not isinstance(reports, Report)
    each: list[Any] = [*reports] if several else [reports]
    if isinstance(reports, Mapping):
        each = [*reports.values()]
    for report in each:
        if not isinstance(report, Report):
            got = type(report).__name__
            raise TypeError(f"reports must be what evaluate returns, got {got}")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(each)):
        raise TypeError(
            "reports must not be traced: return them from the program first"
        )
    return each


def _grid_of(report: Report, setting: str) -> np.ndarray | None:
    """The values of a setting, [size], or None if a report is not over a grid of it."""
    name, axes = report.label.name, np.ndim(report.exact) - len(report.label.shape)
    if axes != 1:
        raise ValueError(
            f"reports must have the one axis of a grid, got {axes} in that of {name}"
        )
    rank = dict(report.label.ranks).get(setting)
    if rank is None or np.ndim(report.label.settings[setting]) != rank + 1:
        return None
    if rank:
        raise ValueError(f"reports must be of a {setting} that is a number, in {name}")
    return np.asarray(report.label.settings[setting]).astype(float)


def _curves(report: Report, size: int) -> dict[str, np.ndarray]:
    """Bias, its error, deviation and cosine, [size] each."""
    if len(report.exact) != size:
        raise ValueError(
            f"reports must be over one grid, got {len(report.exact)} points in that of "
            f"{report.label.name} and {size} of the setting"
        )
    points = [lengths_of(report, (i,)) for i in range(size)]
    names = "bias", "bias_error", "deviation", "cosine"
    return {name: np.array([found[name] for found in points]) for name in names}


def _labels(reports: Sequence[Report], setting: str) -> list[str]:
    """Names of estimators; of those that are there twice with settings, or numbers."""
    names = [report.label.name for report in reports]
    names = [
        f"{name}, {_settings_of(report, setting)}" if names.count(name) > 1 else name
        for name, report in zip(names, reports, strict=True)
    ]
    return [
        f"{name.removesuffix(', ')}, {i}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _settings_of(report: Report, setting: str) -> str:
    """The settings of a report that are numbers or words, but for that of the grid."""
    ranks, found = dict(report.label.ranks), dict(report.label.fixed)
    for name, value in report.label.settings.items():
        if name in ranks and np.ndim(value) == 0 and name != setting:
            found[name] = f"{float(np.asarray(value)):.3g}"
    return ", ".join(f"{name}={value}" for name, value in found.items())


def _finish(axes: np.ndarray, setting: str, is_logarithmic: bool, least: float) -> None:
    """Scales, ticks and names."""
    bias, deviation, cosine = axes
    bias.axhline(0, color=GREY, linestyle=":", linewidth=1)
    cosine.axhline(1, color=GREY, linestyle=":", linewidth=1)
    if np.isfinite(least):
        # Logarithmic down to the least, and 0 is below it, for what has no variance.
        drawn = np.concatenate([line.get_ydata() for line in deviation.lines])
        scale = {"linthresh": least, "linscale": 0.3} if np.any(drawn == 0) else {}
        deviation.set_yscale("symlog" if scale else "log", **scale)
    for a, name in zip(axes, PANELS.values(), strict=True):
        a.set_ylabel(name)
        a.set_xlabel(setting)
        a.grid(alpha=0.25)
        if is_logarithmic:
            a.set_xscale("log")
            low, high = a.get_xlim()
            # Decades alone would be one or two ticks.
            steps = (1, 2, 5) if high < 300 * low else (1,)
            a.xaxis.set_major_locator(LogLocator(subs=steps))
            a.xaxis.set_major_formatter("{x:g}")
            a.xaxis.set_minor_formatter("")
