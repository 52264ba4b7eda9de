"""Clusters in two dimensions, and the paths of their centroids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffkm_jax._hints import hinted
from diffkm_jax.plotting._axes import COLORS, MARKERS, as_axes, legend_above
from diffkm_jax.plotting._numbers import as_numbers

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float, Int
    from matplotlib.axes import Axes

    from diffkm_jax.fitting import FitResult
    from diffkm_jax.streaming import StreamResult

MOST_NUMBERS = 50
# Of more, a file for print has the points as an image: each would be an object.
MOST_OBJECTS = 2000
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "black"}


@hinted
def plot_clusters(
    points: Float[ArrayLike, "n d"],
    result: FitResult | StreamResult | Any,
    *,
    labels: Int[ArrayLike, " n"] | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    path: Float[ArrayLike, "steps k d"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Points by cluster in the plane, the centroids, and the paths that they took.

    A cluster has a color and a marker, and a number at its centroid if there are at
    most 50. Points of more than two dimensions are projected on the two principal
    components of the points, centroids and paths alike; the labels of the axes say so,
    with the share of the variance, and a point may lie nearer to another centroid there
    than its own. All points are drawn, whatever their number; rows that are not finite
    are not, nor are such centroids. The gradient is zero: a picture has none.

    Args:
        points: Data, [n, d], real, in data units, d at least 2.
        result: A `FitResult` or `StreamResult`, of either package, or a fitted
            `KMeans`: what has centroids.
        labels: The cluster of every point, [n], integers of no unit; None is those of
            the result. A `StreamResult` has none: `assign(points, result.centroids)`.
        active: Clusters that exist, [k], bool, as in `fit`: the others are not drawn.
            None is all.
        path: Centroids after every step, [steps, k, d], in data units, from the start
            on; as the states of `jax.lax.scan` over `update`. None draws no path.
        ax: One axes, or None for a new figure, of equal scales.

    Returns:
        The axes, [], no array of some; in data units, also if projected.

    Raises:
        TypeError: `points`, `labels`, `active` or `path` is no array of real numbers,
            or traced; `result` has no centroids; or `ax` is no axes.
        ValueError: `points` is not [n, d] with d at least 2, or has no finite row;
            `result` has centroids of another d, or no labels; `labels` is not [n], or
            not from 0 to k − 1; `active` is not [k], or `path` not [steps, k, d]; or
            `ax` is several.

    Example:
        >>> from diffkm_jax import plotting
        >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]])
        >>> ax = plotting.plot_clusters(x, dk.fit(x, x[1:3]))
        >>> [line.get_xydata().tolist() for line in ax.lines[:2]]
        [[[0.0, 0.0], [0.0, 1.0]], [[9.0, 0.0], [9.0, 1.0]]]
        >>> [text.get_text() for text in ax.texts]
        ['0', '1']

    Source: Pearson 1901 (principal components),
        https://doi.org/10.1080/14786440109462720; Okabe & Ito 2008 (the colors),
        https://jfly.uni-koeln.de/color/
    """
    points = as_numbers("points", points, (None, None), "[n, d]")
    n, d = points.shape
    if d < 2:
        raise ValueError(
            f"points must be [n, d] with d at least 2, got shape {points.shape}: for "
            "one feature take a histogram, as plt.hist"
        )
    layout = (
        f"of one fit, of centroids [k, d] with d = {d} as in points; of a batch take "
        "jax.tree.map(lambda a: a[i], result)"
    )
    centroids = as_numbers("result", _centroids_of(result), (None, d), layout)
    k = len(centroids)
    if active is not None:
        is_active = as_numbers("active", active, (k,), f"[k] with k = {k}") != 0
        centroids = np.where(is_active[:, None], centroids, np.nan)
    labels = _as_labels(result if labels is None else labels, labels is None, n, k)
    if path is not None:
        layout = f"[steps, k, d] with k = {k} and d = {d} as in the result"
        path = as_numbers("path", path, (None, k, d), layout)
        path = np.where(np.isfinite(centroids), path, np.nan)
    plane = plane_of(points)
    [axes] = as_axes(ax, 1, 1, (6, 5), subplot_kw={"aspect": "equal"})
    _draw_points(axes, plane.project(points), labels, k)
    if path is not None:
        _draw_paths(axes, plane.project(path))
    _draw_centroids(axes, plane.project(centroids))
    if path is not None:
        legend_above(axes, 3)
    axes.set_xlabel(plane.names[0])
    axes.set_ylabel(plane.names[1])
    return axes


class Plane(NamedTuple):
    """Where points are projected to.

    Attributes:
        origin: Of the projection, [d].
        axes: Two orthonormal rows, [2, d].
        names: Of both.
    """

    origin: np.ndarray
    axes: np.ndarray
    names: tuple[str, str]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points [..., d] in the plane, [..., 2]."""
        if self.axes.shape[1] == 2:
            return points
        return (points - self.origin) @ self.axes.T


def plane_of(points: np.ndarray) -> Plane:
    """The plane of the first two principal components of points [n, d]."""
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        raise ValueError("points must have a finite row, got none")
    d = points.shape[1]
    if d == 2:
        return Plane(np.zeros(2), np.eye(2), ("feature 0", "feature 1"))
    origin = finite.mean(axis=0)
    rows = finite - origin
    # Of many rows the products of features have the same axes, and are few.
    is_tall = len(rows) > d
    matrix = np.vstack([rows.T @ rows if is_tall else rows, np.zeros((2, d))])
    _, lengths, axes = np.linalg.svd(matrix, full_matrices=False)
    squares = lengths if is_tall else lengths**2
    shares = squares[:2] / max(squares.sum(), np.finfo(float).tiny)
    # Which of the two directions LAPACK finds is chance.
    axes = axes[:2]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1)
    first, second = (
        f"principal component {i} ({100 * share:.0f} % of the variance)"
        for i, share in enumerate(shares, start=1)
    )
    return Plane(origin, axes * np.sign(largest), (first, second))


def _centroids_of(result: Any) -> Any:
    """The centroids of a result, or of an estimator of scikit-learn's kind."""
    for name in ("centroids", "cluster_centers_"):
        if hasattr(result, name):
            return getattr(result, name)
    got = type(result).__name__
    raise TypeError(f"result must have centroids, as of fit, got {got}")


def _as_labels(given: Any, is_result: bool, n: int, k: int) -> np.ndarray:
    """The labels given, or those of a result, [n]."""
    name = "result" if is_result else "labels"
    if is_result:
        found = getattr(given, "labels", getattr(given, "labels_", None))
        if found is None:
            raise ValueError(
                "result must have labels; of a StreamResult pass "
                "labels=assign(points, result.centroids)"
            )
        given = found
    numbers = as_numbers(name, given, (n,), f"of labels [n] with n = {n}")
    labels = np.nan_to_num(numbers, nan=-1).astype(int)
    if np.any(labels != numbers) or np.any((labels < 0) | (labels >= k)):
        raise ValueError(
            f"{name} must be of labels from 0 to {k - 1}, got some from "
            f"{numbers.min():g} to {numbers.max():g}"
        )
    return labels


def _draw_points(ax: Axes, points: np.ndarray, labels: np.ndarray, k: int) -> None:
    """Every cluster as a line without strokes: the fastest that matplotlib has."""
    n = len(points)
    size = float(np.clip(8.5 - 1.6 * np.log10(n), 1.2, 5.5))
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1])
    for j, rows in enumerate(groups):
        ax.plot(
            points[rows, 0],
            points[rows, 1],
            linestyle="none",
            marker=MARKERS[j % len(MARKERS)],
            color=COLORS[j % len(COLORS)],
            markersize=size,
            markeredgewidth=0,
            alpha=0.65,
            rasterized=n > MOST_OBJECTS,
        )


def _draw_paths(ax: Axes, path: np.ndarray) -> None:
    """The way of every centroid, from a square on."""
    for j in range(path.shape[1]):
        x, y = path[:, j, 0], path[:, j, 1]
        ax.plot(x, y, color="white", linewidth=3.5, solid_capstyle="round")
        name = "path of a centroid" if j == 0 else None
        ax.plot(x, y, ".-", color="black", linewidth=1.2, markersize=5, label=name)
    x, y = path[0, :, 0], path[0, :, 1]
    ax.plot(x, y, "s", **HOLLOW, markersize=7, label="its start")


def _draw_centroids(ax: Axes, centroids: np.ndarray) -> None:
    """A disk at every centroid, with its number."""
    is_numbered = len(centroids) <= MOST_NUMBERS
    size = 13 if is_numbered else 6
    x, y = centroids.T
    ax.plot(x, y, "o", **HOLLOW, markersize=size, zorder=3, label="centroid")
    for j, (x, y) in enumerate(centroids[: len(centroids) * is_numbered]):
        if np.isfinite(x + y):
            middle: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
            ax.text(x, y, f"{j}", **middle, fontsize=8, color="black", zorder=4)
