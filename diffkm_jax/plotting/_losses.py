"""Fits by step: their losses, and how far from rest they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from diffkm_jax._hints import hinted
from diffkm_jax.plotting._axes import as_axes, legend_of_panels, line_style
from diffkm_jax.plotting._numbers import as_numbers, named

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Float
    from matplotlib.axes import Axes

    from diffkm_jax.fitting import FitResult
    from diffkm_jax.streaming import StreamResult

    Result = FitResult | StreamResult


@hinted
def plot_losses(
    results: Result | Mapping[str, Result] | Sequence[Result],
    *,
    labels: str | Sequence[str] | None = None,
    residuals: Float[ArrayLike, " steps"] | Mapping | Sequence | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Losses of fits by step, and how fast they come to rest.

    The first panel has the loss after every step that was taken. The second has, on a
    logarithmic axis, the loss above the least of all fits; or the residuals, if they
    are given: a result holds that of its end only, which the legend says. The gradient
    is zero: a picture has none.

    Losses of one panel should be of the same points, weights and temperature. What
    `fit_minibatch` and streams of batches have in their history are losses of batches,
    which are noisy.

    Args:
        results: A `FitResult` or `StreamResult`, of either package, a sequence of them,
            or a mapping from names to them.
        labels: Names of a sequence, or of the one result; None numbers them.
        residuals: The residual before every step, [num_steps], in the unit of the
            distance, for each result, as a mapping or a sequence as `results` is one:
            Σ_j ‖shifts_j / counts_j‖² of the statistics that `update` returns. The end
            of the line is the `residual` of the result. None draws none.
        ax: Two axes, or None for a new figure.

    Returns:
        The two axes, [2]; losses are in the unit of the distance.

    Raises:
        TypeError: `results` holds what has no history, or is traced; a history or
            residual is no array of numbers; or `ax` are no axes.
        ValueError: `results` is empty, or of a batch of fits, under `jax.vmap`;
            `labels` are not as many different names, or a mapping has names already;
            `residuals` are not those of the steps, or of other names; or `ax` are not
            two.

    Example:
        >>> from diffkm_jax import plotting
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> fits = {"start": dk.fit(x, x[1:3], max_steps=0)}
        >>> fits["Lloyd"] = dk.fit(x, x[1:3])
        >>> loss, above = plotting.plot_losses(fits)
        >>> [line.get_ydata().tolist() for line in loss.lines]
        [[2.0], [2.0, 1.0, 1.0]]

    Source: Boyd & Vandenberghe 2004, section 9.3 (error f − p* by iteration on a
        logarithmic axis), https://web.stanford.edu/~boyd/cvxbook/
    """
    fits = named("results", results, labels, "fit")
    curves = {name: _history(name, fit) for name, fit in fits.items()}
    if residuals is not None:
        below, title = _residuals(fits, curves, residuals), "residual"
    else:
        finite = [curve[np.isfinite(curve)] for curve in curves.values()]
        least = min((curve.min() for curve in finite if curve.size), default=0.0)
        below = {name: curve - least for name, curve in curves.items()}
        title = "loss above the least" + " of all" * (len(fits) > 1)
    axes = as_axes(ax, 1, 2, (9, 3.6))
    for i, (name, fit) in enumerate(fits.items()):
        style = line_style(i)
        ends = style | {"label": _label(name, fit), "markevery": [-1]}
        axes[0].plot(np.arange(len(curves[name])), curves[name], **ends)
        # A logarithmic axis has no place for 0.
        shown = np.where(below[name] > 0, below[name], np.nan)
        axes[1].plot(np.arange(len(shown)), shown, **ends)
    legend_of_panels(axes, ax is None)
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel(title)
    axes[1].set_yscale("log")
    for a in axes:
        a.set_xlabel("step")
        a.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        a.grid(alpha=0.25)
    return axes


def _history(name: str, result: Any) -> np.ndarray:
    """The losses of a result, [steps], of the steps that it took."""
    if not (hasattr(result, "history") and hasattr(result, "num_steps")):
        got = type(result).__name__
        raise TypeError(f"results must be results of fits, got {got} as {name!r}")
    one = "of one fit each; of a batch take jax.tree.map(lambda a: a[i], result)"
    num_steps = as_numbers("results", result.num_steps, (), one)
    history = as_numbers("results", result.history, (None,), one)
    return history[: int(num_steps) + 1]


def _residuals(fits: dict, curves: dict, residuals: Any) -> dict[str, np.ndarray]:
    """The residuals of every fit by step, the last that of its result."""
    if isinstance(residuals, Mapping):
        given = {str(key): value for key, value in residuals.items()}
    else:
        each = residuals if isinstance(residuals, Sequence) else [residuals]
        given = dict(zip(fits, each, strict=True)) if len(each) == len(fits) else {}
    if given.keys() != fits.keys():
        raise ValueError(
            f"residuals must be of the {len(fits)} fits {', '.join(fits)}, as a "
            "mapping or in their order"
        )
    found = {}
    for name, fit in fits.items():
        steps = int(fit.num_steps)
        layout = f"[num_steps] with num_steps = {steps} of {name}"
        each = as_numbers("residuals", given[name], (steps,), layout)
        last = as_numbers("results", fit.residual, (), "of one fit each")
        found[name] = np.append(each, last)[: len(curves[name])]
    return found


def _label(name: str, fit: Any) -> str:
    steps = int(fit.num_steps)
    residual = float(as_numbers("results", fit.residual, (), "of one fit each"))
    plural = "step" if steps == 1 else "steps"
    return f"{name}: {steps} {plural}, residual {residual:.2g}"
