"""The estimator: scikit-learn's KMeans, fitted by this library."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
import optax
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

import diffkm_jax as dk
from diffkm_jax._by_name import DISTANCES, WITH_DEFAULT_RATE, WITHOUT_RATE
from diffkm_jax.cluster._fits import batch_step, best_fit
from diffkm_jax.cluster._fitted import Fitted
from diffkm_jax.cluster._given import as_rows, as_weights
from diffkm_jax.cluster._starts import check_model, number_of_starts, seed_of
from diffkm_jax.distances import Distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax.typing import ArrayLike
    from jaxtyping import Float


class KMeans(Fitted):
    """K-means as an estimator of scikit-learn, in place of `sklearn.cluster.KMeans`.

    It has the arguments, attributes and methods of scikit-learn's, its rule to stop,
    its warnings and what it does with empty clusters; from the same centroids it takes
    the same steps. Beyond these it takes other optimizers and distances, a temperature
    for soft clusters, and batches. Arrays are NumPy's, of float64 or float32 as the
    data are, whatever JAX is configured to; data are not written to. A seed means
    other starts than it does in scikit-learn.

    The labels, centroids and scores have no gradient: `result_` is a `FitResult`, and
    `fit` of this library, from `cluster_centers_`, is what is differentiable.

    Sparse data are made dense to fit: n·d numbers. `predict`, `transform` and `score`
    make them dense by blocks.

    Args:
        n_clusters: Number of centroids, k, at most n.
        init: `"k-means++"`, `"random"`, centroids [k, d] in data units, or a function
            (X, n_clusters, random_state) that returns them.
        n_init: Number of fits, each from its own start, of which that of least loss is
            kept; `"auto"` is 1 for `"k-means++"` and an array, else 10.
        max_iter: Limit of steps of a fit. With a `batch_size` all of them are taken,
            each on one batch.
        tol: Relative tolerance, no unit, of the sum of squared shifts of the centroids:
            times the mean variance of the features, which is weighted, as the rows are.
            Not used with a `batch_size`.
        verbose: Whether to print the loss before every step, after each fit.
        random_state: A seed, a `RandomState`, or None. The same seed gives the same
            result, bit for bit.
        copy_x: For scikit-learn's sake: data are never written to, nor copied for it.
        algorithm: `"lloyd"` or `"elkan"`, for scikit-learn's sake: both are one program
            here, as they have the same result there.
        optimizer: None, which is `newton()`, Lloyd's algorithm; or `"newton"`,
            `"macqueen"`, `"ema"`, `"lbfgs"`, `"sgd"` (a learning rate of 0.75 over the
            weight of all points of a step, for squared Euclidean distances alone) or
            `"adam"` (0.05 times the root mean variance of the features); or an optax
            transformation, which cannot be pickled as a name can. With a `batch_size`
            None is the moving averages of `fit_minibatch`, in `partial_fit` it is
            `macqueen()`.
        distance: `"squared_euclidean"`, `"cosine"`, `"kl_divergence"`,
            `"itakura_saito"`, `"euclidean"` or `"manhattan"`, which are functions of
            this library; or another that `fit` takes, as `mahalanobis(P)`. Those that
            have no means (the last two names, your own function) need an optimizer of
            gradients.
        temperature: None, or a positive number in the unit of `distance`, or a schedule
            of the step, for soft k-means. Adds `predict_proba`.
        batch_size: None, or the rows of a batch, to fit by `fit_minibatch`.

    Attributes:
        cluster_centers_: Centroids, [k, d], in data units, in the dtype of the data.
        labels_: Index of the nearest centroid of every row, [n], int32.
        inertia_: Sum of the distances of the rows to their nearest centroids, weighted,
            in the unit of `distance`; at a temperature too, where `result_.loss` is
            the free energy, which is less.
        n_iter_: Steps taken, and those of `partial_fit` since.
        n_features_in_: Number of features, d.
        feature_names_in_: Their names, [d], where `X` has names.
        result_: The `FitResult` of the best fit (of `partial_fit`: of the last batch),
            with arrays of NumPy. `result_.flags` says how it ended, as MAX_STEPS, of
            which there is no warning, as in scikit-learn.

    Returns:
        An estimator that is not fitted yet.

    Raises:
        ValueError: An argument is not one of the above, X or weights are not finite,
            weights negative, n is below k, centroids given have another shape; X has
            rows outside the domain of `distance`; or the fit ended in NaN or infinity.

    Example:
        >>> from diffkm_jax.cluster import KMeans
        >>> x = np.array([[0.0], [1.0], [9.0], [10.0]])
        >>> model = KMeans(2, random_state=0).fit(x)
        >>> sorted(model.cluster_centers_.ravel().tolist()), model.inertia_
        ([0.5, 9.5], 1.0)

    Source: the interface of
        https://scikit-learn.org/stable/modules/generated/sklearn.cluster.KMeans.html
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++", "random"}), callable, "array-like"],
        "n_init": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "copy_x": ["boolean"],
        "algorithm": [StrOptions({"lloyd", "elkan"})],
        "optimizer": [
            StrOptions({*WITHOUT_RATE, *WITH_DEFAULT_RATE}),
            optax.GradientTransformation,
            None,
        ],
        "distance": [StrOptions({*DISTANCES}), callable],
        "temperature": [
            Interval(Real, 0, None, closed="neither"),
            callable,
            None,
        ],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | Float[ArrayLike, "k d"] | Callable = "k-means++",
        n_init: str | int = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        optimizer: str | optax.GradientTransformation | None = None,
        distance: str | Distance = "squared_euclidean",
        temperature: float | optax.Schedule | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.optimizer = optimizer
        self.distance = distance
        self.temperature = temperature
        self.batch_size = batch_size

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Fits the centroids.

        Args:
            X: Data, [n, d], array-like, a data frame, or sparse.
            y: Not used.
            sample_weight: Non-negative, [n], any unit; None is ones. Starts are drawn
                by it too.

        Returns:
            The estimator.
        """
        X = as_rows(self, X, reset=True)
        check_model(self, X)
        self._n_init = number_of_starts(self)
        random = check_random_state(self.random_state)
        weights = as_weights(sample_weight, X)
        with jax.enable_x64(True):
            result, self._rate = best_fit(self, X, weights, random)
        self._state = None
        self._keep(result, X, weights, int(result.num_steps))
        distinct = len(np.unique(self.labels_))
        if distinct < self.n_clusters:
            why = "in X"
            if self.temperature is not None:
                why += ", or to the temperature"
            if self.optimizer not in (None, "newton"):
                why += ", or to the optimizer's learning rate"
            warnings.warn(
                f"Number of distinct clusters ({distinct}) found smaller than "
                f"n_clusters ({self.n_clusters}). Possibly due to duplicate points "
                f"{why}.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Takes one step on a batch, from where the last fit, or step, has ended.

        By default that is MacQueen's: every centroid is the mean of all points that it
        was given so far, those of `fit` too, and clusters that had few are set to rows
        of the batch, as by `MiniBatchKMeans.partial_fit`. Without a fit before it, one
        start is drawn from this batch. Batches of one size are one program.

        Args:
            X: A batch, [m, d], array-like, a data frame, or sparse.
            y: Not used.
            sample_weight: Non-negative, [m], any unit; None is ones.

        Returns:
            The estimator. `labels_`, `inertia_` and `result_` are of this batch.
        """
        is_first = not hasattr(self, "cluster_centers_")
        X = as_rows(self, X, reset=is_first)
        if is_first:
            check_model(self, X)
            self._state, self._rate = None, None
        random = check_random_state(self.random_state)
        if self._state is None:
            self._seed = seed_of(random)
        weights = as_weights(sample_weight, X)
        with jax.enable_x64(True):
            result = batch_step(self, X, weights, random)
        self._state: dk.State | None = result.state
        before = 0 if is_first else self.n_iter_
        return self._keep(result, X, weights, before + int(result.num_steps))

    def fit_predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: Any, y: Any = None, sample_weight: Any = None
    ) -> np.ndarray:
        """Fits, and returns `labels_`.

        Args:
            X: As in `fit`.
            y: Not used.
            sample_weight: As in `fit`.

        Returns:
            Labels, [n], int32.
        """
        return self.fit(X, sample_weight=sample_weight).labels_

    def fit_transform(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: Any, y: Any = None, sample_weight: Any = None
    ) -> Any:
        """Fits, and returns `transform(X)`.

        Args:
            X: As in `fit`.
            y: Not used.
            sample_weight: As in `fit`.

        Returns:
            Distances, [n, k], as of `transform`.
        """
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def _keep(
        self, result: dk.FitResult, X: Any, weights: np.ndarray | None, steps: int
    ) -> KMeans:
        """Sets the attributes of a fit."""
        self.result_ = result
        self.cluster_centers_ = np.array(result.centroids)
        self.labels_ = np.array(result.labels)
        self.n_iter_ = steps
        self._n_features_out = len(self.cluster_centers_)
        is_hard = self.temperature is None
        self.inertia_ = float(result.loss) if is_hard else self._inertia(X, weights)
        return self
