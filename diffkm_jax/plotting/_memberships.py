"""How soft the memberships of points are, by temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffkm_jax._hints import hinted
from diffkm_jax.plotting._axes import COLORS, GREY, as_axes, legend_of_panels
from diffkm_jax.plotting._numbers import as_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jax.typing import ArrayLike
    from jaxtyping import Float
    from matplotlib.axes import Axes


@hinted
def plot_memberships(
    distances: Float[ArrayLike, "n k"],
    temperatures: Float[ArrayLike, " m"],
    *,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """How soft memberships are by temperature, for centroids that stay.

    The memberships of a point are r = softmax(−distances / T). The first panel has the
    largest of them, from 1 / k to 1; the second the effective number of clusters that a
    point belongs to, exp(−Σ_j r_j log r_j), from 1 to k: the perplexity. Lines are the
    means over points, bands go from the first decile to the last: where T is small all
    points are in one cluster, and where the band is wide, some are. The gradient is
    zero: a picture has none.

    Centroids that are fitted at each temperature move with it, and merge above the
    critical one: this shows what T means for these.

    Args:
        distances: Of points to centroids, [n, k], non-negative, in the unit of the
            distance: `pairwise(points, result.centroids)`, of any distance. Of many
            points a sample says as much: `points[::100]`.
        temperatures: Positive, [m], in the unit of the distance, as
            `np.geomspace(0.01, 10, 50)` times the mean distance to the nearest.
        ax: Two axes, or None for a new figure.

    Returns:
        The two axes, [2].

    Raises:
        TypeError: `distances` or `temperatures` is no array of real numbers, or traced;
            or `ax` are no axes.
        ValueError: `distances` is not [n, k], n and k at least 1, not finite or
            negative; `temperatures` is not [m], m at least 1, or not positive and
            finite; or `ax` are not two.

    Example:
        >>> from diffkm_jax import plotting
        >>> distances = jnp.array([[0.0, 0.0], [0.0, 1e3]])
        >>> largest, effective = plotting.plot_memberships(distances, [1.0])
        >>> float(largest.lines[0].get_ydata()[0])  # The mean of 0.5 and 1.
        0.75
        >>> float(effective.lines[0].get_ydata()[0])  # The mean of 2 and 1.
        1.5

    Source: Rose 1998 (memberships by temperature), https://doi.org/10.1109/5.726788;
        Jelinek et al. 1977 (perplexity), https://doi.org/10.1121/1.2016299
    """
    distances = as_numbers("distances", distances, (None, None), "[n, k]")
    temperatures = as_numbers("temperatures", temperatures, (None,), "[m]")
    if not distances.size:
        shape = distances.shape
        raise ValueError(f"distances must have a row and a column, got shape {shape}")
    is_distance = np.isfinite(distances) & (distances >= 0)
    if not is_distance.all():
        got = distances[~is_distance][0]
        raise ValueError(f"distances must be finite and not negative, got {got}")
    is_positive = (temperatures > 0) & np.isfinite(temperatures)
    if not (temperatures.size and is_positive.all()):
        got = temperatures[~is_positive][:1].tolist() or "none"
        raise ValueError(f"temperatures must be positive and finite, got {got}")
    temperatures, k = np.sort(temperatures), distances.shape[1]
    excess = distances - distances.min(axis=1, keepdims=True)
    found = [_softness(excess, temperature) for temperature in temperatures]
    axes = as_axes(ax, 1, 2, (9, 3.6))
    names = "largest membership", "effective number of clusters"
    of_panels = zip(axes, names, (0, 1), (1 / k, k), strict=True)
    for a, name, at, limit in of_panels:
        values = np.array([pair[at] for pair in found])
        _draw(a, temperatures, values)
        a.axhline(limit, color=GREY, linestyle=":", linewidth=1.2, label="all k alike")
        a.set_ylabel(name)
        a.set_xlabel("temperature, in the unit of the distance")
        a.set_xscale("log")
        a.set_ylim(0, 1.05 * max(1, limit))
        a.grid(alpha=0.25)
    legend_of_panels(axes, ax is None)
    return axes


def _softness(excess: np.ndarray, temperature: Any) -> tuple[np.ndarray, np.ndarray]:
    """The largest membership of every point, [n], and its effective number, [n].

    Of distances [n, k] above the least of their row.
    """
    with np.errstate(under="ignore", over="ignore"):
        scaled = excess / temperature
        shares = np.exp(-scaled)
        total = shares.sum(axis=1)
        # −Σ r log r; where a share is 0 its product is, and not NaN.
        product = np.where(shares > 0, shares * np.minimum(scaled, 1e4), 0.0)
        entropy = np.log(total) + product.sum(axis=1) / total
    return 1 / total, np.exp(entropy)


def _draw(ax: Axes, temperatures: np.ndarray, values: np.ndarray) -> None:
    """The mean and the deciles of values [m, n] by temperature."""
    low, high = np.quantile(values, [0.1, 0.9], axis=1)
    band = {"alpha": 0.25, "linewidth": 0, "label": "80 % of points"}
    ax.fill_between(temperatures, low, high, color=COLORS[0], **band)
    mean: dict[str, Any] = {"linewidth": 1.8, "label": "mean of points"}
    mean["marker"] = "o" if len(temperatures) == 1 else None
    ax.plot(temperatures, values.mean(axis=1), color=COLORS[0], **mean)
