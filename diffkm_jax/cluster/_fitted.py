"""What a fitted estimator tells of data: labels, distances, memberships, a score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

import diffkm_jax as dk
from diffkm_jax._by_name import distance_of
from diffkm_jax._checks import as_tree
from diffkm_jax.cluster._given import as_rows, as_weights, check_rows, in_blocks, padded


@partial(jax.jit, static_argnums=0)
def distances(is_root: bool, points: Any, centers: Any, distance: Any) -> jax.Array:
    """The distances of points to centroids, [n, k], or the roots of them."""
    found = dk.pairwise(points, centers, distance=distance)
    return jnp.sqrt(found) if is_root else found


@jax.jit
def memberships(
    points: Any, centers: Any, distance: Any, temperature: Any
) -> jax.Array:
    """softmax(−distances / temperature), [n, k]."""
    found = dk.pairwise(points, centers, distance=distance)
    return dk.softmax(-found / jnp.asarray(temperature, found.dtype))


def has_temperature(model: Any) -> bool:
    """Whether an estimator has memberships."""
    if model.temperature is None:
        raise AttributeError("predict_proba needs a temperature, got temperature=None")
    return True


class Fitted(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
    """The methods of an estimator of centroids that leave it as it is.

    Attributes:
        cluster_centers_: Centroids, [k, d].
        result_: The `FitResult`.
    """

    cluster_centers_: np.ndarray
    result_: Any
    distance: Any

    def predict(self, X: Any) -> np.ndarray:
        """The index of the nearest centroid of every row.

        Args:
            X: Data, [n, d], array-like, a data frame, or sparse.

        Returns:
            Labels, [n], int32, ties to the lowest index.
        """
        distance = distance_of(self.distance)
        return self._by_blocks(partial(dk.assign, distance=distance), X)

    def transform(self, X: Any) -> np.ndarray:
        """The distance of every row to every centroid.

        Args:
            X: Data, [n, d], array-like, a data frame, or sparse.

        Returns:
            Distances, [n, k]: Euclidean, in data units, where `distance` is the squared
            Euclidean, as scikit-learn's; else the value of `distance`.
        """
        given = distance_of(self.distance)
        is_root, distance = given is dk.squared_euclidean, as_tree(given)

        def values(rows: Any, centers: Any) -> jax.Array:
            return distances(is_root, rows, centers, distance)

        return self._by_blocks(values, X)

    @available_if(has_temperature)
    def predict_proba(self, X: Any) -> np.ndarray:
        """The membership of every row in every cluster, softmax(−distance/temperature).

        There where a `temperature` is given; of a schedule its last one.

        Args:
            X: Data, [n, d], array-like, a data frame, or sparse.

        Returns:
            Memberships, [n, k], of rows that sum to 1.
        """
        check_is_fitted(self)
        if self.result_.temperature is None:
            raise ValueError("temperature must be given before fit: fit again with it")
        distance = as_tree(distance_of(self.distance))

        def values(rows: Any, centers: Any) -> jax.Array:
            return memberships(rows, centers, distance, self.result_.temperature)

        return self._by_blocks(values, X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the sum of distances of the rows to their nearest centroids.

        Args:
            X: Data, [n, d], array-like, a data frame, or sparse.
            y: Not used.
            sample_weight: Non-negative, [n], any unit; None is ones.

        Returns:
            A number: the larger, the better.
        """
        check_is_fitted(self)
        X = as_rows(self, X, reset=False)
        weights = as_weights(sample_weight, X)
        return -self._inertia(X, weights)

    def _inertia(self, X: Any, weights: np.ndarray | None) -> float:
        """Σ w min_j distance(x, c_j)."""
        total, centers = 0.0, self.cluster_centers_
        distance = distance_of(self.distance)
        with jax.enable_x64(True):
            for rows, block in in_blocks(X):
                more = padded(block)
                w = np.zeros(len(more), X.dtype)
                w[: len(block)] = 1 if weights is None else weights[rows]
                check_rows(self, block, w[: len(block)])
                found = dk.kmeans_loss(more, centers, weights=w, distance=distance)
                total += float(found)
        return total

    def _by_blocks(self, function: Callable[[Any, Any], jax.Array], X: Any) -> Any:
        """A function of rows and centroids, of all rows."""
        check_is_fitted(self)
        X = as_rows(self, X, reset=False)
        found, sizes = [], []
        with jax.enable_x64(True):
            for _, block in in_blocks(X):
                check_rows(self, block)
                found.append(function(padded(block), self.cluster_centers_))
                sizes.append(len(block))
        parts = [
            np.asarray(part)[:size] for part, size in zip(found, sizes, strict=True)
        ]
        return np.concatenate(parts)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
