"""Scores by the number of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from diffkm_jax._hints import hinted
from diffkm_jax.plotting._axes import as_axes, line_style
from diffkm_jax.plotting._numbers import as_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jax.typing import ArrayLike
    from jaxtyping import Float, Int
    from matplotlib.axes import Axes

# Where a score is best.
SCORES = {
    "silhouette": "largest",
    "Davies–Bouldin": "least",
    "Calinski–Harabasz": "largest",
    "BIC": "least",
}


@hinted
def plot_choices(
    ks: Int[ArrayLike, " m"],
    inertias: Float[ArrayLike, " m"],
    *,
    silhouettes: Float[ArrayLike, " m"] | None = None,
    davies_bouldins: Float[ArrayLike, " m"] | None = None,
    calinski_harabaszs: Float[ArrayLike, " m"] | None = None,
    bics: Float[ArrayLike, " m"] | None = None,
    ax: Sequence[Axes] | np.ndarray | Axes | None = None,
) -> np.ndarray:
    """Scores of fits by their number of clusters, each in a panel, the best marked.

    The inertia only falls with k, and has no best: look for the k after which it falls
    slowly. Of the other scores the best is the largest silhouette and the largest
    Calinski–Harabasz, the least Davies–Bouldin and the least BIC; it has a ring, and
    the panel its k. The gradient is zero: a picture has none.

    Args:
        ks: Numbers of clusters, [m], integers of no unit, in any order.
        inertias: The least loss found with each, [m], in the unit of the distance.
        silhouettes: Silhouette scores, [m], no unit, as
            `sklearn.metrics.silhouette_score`; None has no panel.
        davies_bouldins: Davies–Bouldin scores, [m], no unit, as
            `sklearn.metrics.davies_bouldin_score`; None has no panel.
        calinski_harabaszs: Calinski–Harabasz scores, [m], no unit, as
            `sklearn.metrics.calinski_harabasz_score`; None has no panel.
        bics: Bayesian information criteria, [m], in nats, of the sign of which the
            least is best; None has no panel.
        ax: As many axes as there are panels, or None for a new figure.

    Returns:
        The axes, [panels], in the order of the arguments.

    Raises:
        TypeError: An argument is no array of real numbers, or traced; or `ax` are no
            axes.
        ValueError: `ks` is empty, not [m], or has a number twice or one that is no
            positive integer; the others are not [m]; or `ax` are not as many as there
            are panels.

    Example:
        >>> from diffkm_jax import plotting
        >>> scores = [0.4, 0.6, 0.5]
        >>> axes = plotting.plot_choices([2, 3, 4], [9, 3, 2], silhouettes=scores)
        >>> axes[1].get_title()
        'largest at k = 3'

    Source: Rousseeuw 1987 (silhouette), https://doi.org/10.1016/0377-0427(87)90125-7;
        Davies & Bouldin 1979, https://doi.org/10.1109/TPAMI.1979.4766909; Calinski &
        Harabasz 1974, https://doi.org/10.1080/03610927408827101; Schwarz 1978 (BIC),
        https://doi.org/10.1214/aos/1176344136
    """
    ks = as_numbers("ks", ks, (None,), "[m]")
    m = len(ks)
    if not m or np.any(ks != np.round(ks)) or np.any(ks < 1) or len({*ks}) < m:
        raise ValueError(f"ks must be different integers from 1 on, got {ks.tolist()}")
    given = {
        "inertias": inertias,
        "silhouettes": silhouettes,
        "davies_bouldins": davies_bouldins,
        "calinski_harabaszs": calinski_harabaszs,
        "bics": bics,
    }
    layout = f"[m] with m = {m} as ks"
    scores = {
        title: (as_numbers(name, given[name], (m,), layout), best)
        for name, (title, best) in zip(
            given, [("inertia", None), *SCORES.items()], strict=True
        )
        if given[name] is not None or name == "inertias"
    }
    order, height = np.argsort(ks), 0.9 + 1.7 * len(scores)
    axes = as_axes(ax, len(scores), 1, (6, height), sharex=True)
    for i, (a, (title, (values, best))) in enumerate(
        zip(axes, scores.items(), strict=True)
    ):
        style = line_style(i)
        a.plot(ks[order], values[order], **style)
        if best is not None and np.isfinite(values).any():
            find = np.nanargmax if best == "largest" else np.nanargmin
            at = find(np.where(np.isfinite(values), values, np.nan))
            ring = {"marker": "o", "markersize": 14, "markerfacecolor": "none"}
            a.plot(ks[at], values[at], **ring, color="black", linestyle="none")
            a.set_title(f"{best} at k = {ks[at]:g}", fontsize="medium")
            a.margins(y=0.18)
        a.set_ylabel(title)
        a.grid(alpha=0.25)
        a.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[-1].set_xlabel("number of clusters k")
    return axes
