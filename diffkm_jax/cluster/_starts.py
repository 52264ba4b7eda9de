"""Where fits start: k-means++, rows at random, centroids given, or a function."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn.utils import check_array

import diffkm_jax as dk
from diffkm_jax._by_name import COUNTING, distance_of
from diffkm_jax._checks import as_tree
from diffkm_jax._hints import shown
from diffkm_jax.distances._forms import embedded, form_of, plain

INITIALIZERS = {"k-means++": dk.kmeans_plus_plus, "random": dk.random_points}
# A start of which nothing is drawn but by a seed.
Start = Callable[[np.random.RandomState], Any]


def seed_of(random: np.random.RandomState) -> int:
    """The next seed."""
    return int(random.randint(np.iinfo(np.int32).max))


def key_of(seed: int) -> jax.Array:
    """The key of a seed, whatever kind of keys JAX is set to."""
    return jax.random.key(seed, impl="threefry2x32")


def number_of_starts(model: Any) -> int:
    """How many fits there are, with a warning where that is not what was asked for."""
    init, number = model.init, model.n_init
    is_given = not isinstance(init, str) and not callable(init)
    if isinstance(number, str):
        return 1 if is_given or (isinstance(init, str) and init == "k-means++") else 10
    if not is_given or number == 1:
        return int(number)
    warnings.warn(
        "Explicit initial center position passed: performing only one init in "
        f"{type(model).__name__} instead of n_init={number}: set n_init=1",
        RuntimeWarning,
        stacklevel=4,
    )
    return 1


def check_model(model: Any, X: Any) -> None:
    """Raises ValueError where arguments do not go together; warns of elkan."""
    n, k = X.shape[0], model.n_clusters
    is_named = model.optimizer is None or isinstance(model.optimizer, str)
    if is_named and (model.optimizer or "newton") in COUNTING:
        tree = as_tree(distance_of(model.distance))
        if form_of(tree) is None:
            raise ValueError(
                "optimizer must be one of gradients, as 'adam', under a distance "
                f"without means, got {model.optimizer!r} and {shown(plain(tree))}"
            )
    if n < k:
        raise ValueError(f"n_samples={n} should be >= n_clusters={k}.")
    if model.algorithm == "elkan" and k == 1:
        warnings.warn(
            "algorithm='elkan' doesn't make sense for a single cluster: both names are "
            "of one program here",
            RuntimeWarning,
            stacklevel=4,
        )


def start_of(
    model: Any, X: Any, points: jax.Array, weights: jax.Array | None
) -> tuple[Start, Any]:
    """A function that draws a start, [k, d], and the centroids given, or None.

    Args:
        model: The estimator.
        X: The data as they were given, checked, which a function of the user takes.
        points: The data, [n, d].
        weights: Of these, [n], or None.
    """
    init, k = model.init, int(model.n_clusters)
    if isinstance(init, str):
        initializer: Any = INITIALIZERS[init]
        rows = embedded(as_tree(distance_of(model.distance)), points)
        if weights is None and init == "random":
            # Without weights another stream is drawn than with equal ones.
            weights = jax.numpy.ones(len(points), points.dtype)

        def draw(random: np.random.RandomState) -> Any:
            key = key_of(seed_of(random))
            return initializer(key, rows, k, weights=weights)

        return draw, None
    if callable(init):

        def call(random: np.random.RandomState) -> Any:
            found: Any = init(X, k, random_state=random)
            return _checked(found, k, points)

        return call, None
    centers = _checked(init, k, points)
    return lambda random: centers, centers


def _checked(centers: Any, k: int, points: jax.Array) -> np.ndarray:
    """Centroids that a user gave, [k, d], in the dtype of the points, a copy."""
    if hasattr(centers, "toarray"):
        centers = centers.toarray()
    dtype: Any = np.dtype(points.dtype)
    centers = check_array(centers, dtype=dtype, copy=True, order="C")
    d, shape = points.shape[1], centers.shape
    for size, expected, what in (
        (shape[0], k, f"the number of clusters {k}."),
        (shape[1], d, f"the number of features of the data {d}."),
    ):
        if size != expected:
            raise ValueError(
                f"The shape of the initial centers {shape} does not match {what}"
            )
    return centers
