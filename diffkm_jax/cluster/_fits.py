"""The best of the fits of an estimator, and one step of it on a batch."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from diffkm_jax._by_name import (
    WITHOUT_RATE,
    default_rate,
    distance_of,
    needs_rate,
    optimizer_of,
)
from diffkm_jax._checks import as_tree
from diffkm_jax._hints import shown
from diffkm_jax.cluster._given import check_rows, dense
from diffkm_jax.cluster._printed import print_fit
from diffkm_jax.cluster._starts import key_of, seed_of, start_of
from diffkm_jax.distances._forms import embedded
from diffkm_jax.optimizers import MacQueenState


def in_numpy(result: dk.FitResult) -> dk.FitResult:
    """The result with arrays of NumPy, which can be pickled and written to."""
    return jax.tree.map(np.array, result)


def common(model: Any, weights: Any) -> dict[str, Any]:
    """What every fit of an estimator is given."""
    return {
        "weights": weights,
        "temperature": model.temperature,
        "distance": distance_of(model.distance),
    }


def rate_of(
    model: Any, points: np.ndarray, weights: np.ndarray | None, number: int
) -> float | None:
    """The rate of an optimizer by name, in steps of a number of points, or None."""
    name, distance = model.optimizer, distance_of(model.distance)
    if not isinstance(name, str) or name in WITHOUT_RATE:
        return None
    if needs_rate(name, distance):
        raise ValueError(
            f"optimizer must be one of optax with a learning rate of yours under "
            f"{shown(distance)}, as optax.{name}(0.01), got {name!r}"
        )
    rows = np.asarray(embedded(as_tree(distance), jnp.asarray(points)), float)
    apart = rows - np.average(rows, axis=0, weights=weights)
    variance = float(np.average(apart**2, axis=0, weights=weights).mean())
    mean_weight = 1.0 if weights is None else float(weights.mean(dtype=float))
    return default_rate(name, mean_weight * number, variance)


def optimizer_with(optimizer: Any, rate: float | None) -> Any:
    """The optimizer of a name, with its learning rate, or the one given."""
    return optimizer_of(optimizer, rate) if isinstance(optimizer, str) else optimizer


def as_tol(tol: float, dtype: Any) -> float:
    """The tolerance, where the dtype has no number as small or as large the nearest."""
    info = np.finfo(dtype)
    return 0.0 if tol < info.tiny else min(float(tol), float(info.max))


def best_fit(
    model: Any, X: Any, weights: np.ndarray | None, random: np.random.RandomState
) -> tuple[dk.FitResult, float | None]:
    """The fit of least loss, and the learning rate of its optimizer, if it has one."""
    data = dense(X)
    rate = rate_of(model, data, weights, model.batch_size or len(data))
    points = jnp.asarray(data)
    held = None if weights is None else jnp.asarray(weights)
    draw, given = start_of(model, X, points, held)
    check_rows(model, data, weights, given)
    settings: dict[str, Any] = common(model, held)
    settings["optimizer"] = optimizer_with(model.optimizer, rate)
    steps = int(model.max_iter)

    def fit_from(start: Any) -> dk.FitResult:
        if model.batch_size is None:
            tol = as_tol(model.tol, points.dtype)
            settings["empty"], settings["derivative"] = "farthest", "none"
            return dk.fit(points, start, tol=tol, max_steps=steps, **settings)
        size, key = int(model.batch_size), key_of(seed_of(random))
        settings["num_steps"], settings["batch_size"] = steps, size
        return dk.fit_minibatch(key, points, start, **settings)

    best, least = None, math.inf
    for _ in range(model._n_init):
        result = fit_from(draw(random))
        if model.verbose:
            print_fit(model, result)
        loss = float(result.loss)
        # A fit that failed is kept only where all have.
        loss = loss if math.isfinite(loss) else math.inf
        if best is None or loss < least:
            best, least = result, loss
    assert best is not None, "n_init is at least 1"
    check_status(model, best)
    check_scale(model, data, least / len(data))
    return in_numpy(best), rate


def check_status(model: Any, result: dk.FitResult) -> None:
    """Raises ValueError where a fit ended in NaN, or outside its distance's domain."""
    flags, distance = result.flags, distance_of(model.distance)
    if dk.Status.NON_FINITE in flags and distance is dk.kl_divergence:
        raise ValueError(
            "X must be above 0 under kl_divergence where a cluster has zeros alone: a "
            "centroid with a 0 is infinitely far from a row with more; add a small "
            f"number to X ({flags})"
        )
    if dk.Status.NON_FINITE in flags:
        raise ValueError(
            "X and sample_weight must be finite, and in units in which squares and "
            "sums are, or an optimizer have a smaller learning rate: the fit ended in "
            f"NaN or infinity ({flags})"
        )
    if dk.Status.DOMAIN in flags:
        raise ValueError(
            f"distance must be defined, and not negative, where the fit goes; it is "
            f"not, under {shown(distance)} ({flags})"
        )


def check_scale(model: Any, X: np.ndarray, mean_loss: float) -> None:
    """Raises ValueError where squares of X are so small that they are rounded to 0."""
    info = np.finfo(X.dtype)
    least = float(np.sqrt(info.tiny / info.eps))
    if mean_loss > least**2 or distance_of(model.distance) is not dk.squared_euclidean:
        return
    with np.errstate(over="ignore"):
        width = float(np.max(X.max(axis=0) - X.min(axis=0)))
    if 0 < width < least:
        raise ValueError(
            f"X must be in units in which its squares are not rounded to 0, got "
            f"features no wider than {width:.3g} in {X.dtype}: multiply it by a number"
        )


def state_after(model: Any, optimizer: Any) -> dk.State:
    """The state from which an estimator that is fitted goes on, by batches."""
    found = model.result_
    if model.optimizer is not None:
        return found.state
    # By the default a batch is averaged with all points so far.
    state = dk.init(found.centroids, optimizer=optimizer)
    counts = jnp.asarray(found.counts, state.centroids.dtype)
    return state._replace(opt_state=MacQueenState(counts), step=found.state.step)


def check_optimizer(model: Any, state: dk.State, optimizer: Any) -> None:
    """Raises ValueError unless a state is of the optimizer that an estimator has."""
    own = dk.init(state.centroids, optimizer=optimizer).opt_state
    if jax.tree.structure(own) != jax.tree.structure(state.opt_state):
        raise ValueError(
            "optimizer must be, in partial_fit, that of the steps before, got "
            f"{shown(model.optimizer)}: for another, fit anew with "
            "init=model.cluster_centers_"
        )


def moved_to(centers: np.ndarray, state: dk.State) -> dk.State:
    """The state, at the centroids that an estimator has been given since, if any."""
    if np.array_equal(np.asarray(state.centroids).astype(centers.dtype), centers):
        return state
    there = jnp.asarray(centers, state.centroids.dtype)
    return state._replace(centroids=there, remainder=jnp.zeros_like(there))


def batch_step(
    model: Any, X: Any, weights: np.ndarray | None, random: np.random.RandomState
) -> dk.FitResult:
    """One step on a batch; the result is of that batch."""
    data, state = dense(X), model._state
    if model._rate is None:
        model._rate = rate_of(model, data, weights, len(data))
    optimizer = optimizer_with(model.optimizer or dk.macqueen(), model._rate)
    if hasattr(model, "result_"):
        state = state_after(model, optimizer) if state is None else state
        check_optimizer(model, state, optimizer)
        state = moved_to(model.cluster_centers_, state)
        data = data.astype(model.cluster_centers_.dtype, copy=False)
    points = jnp.asarray(data)
    held = None if weights is None else jnp.asarray(weights, points.dtype)
    given = None
    if state is None:
        draw, given = start_of(model, X, points, held)
        state = dk.init(draw(random), optimizer=optimizer)
    check_rows(model, data, weights, given)
    # As MiniBatchKMeans does with clusters that had few points, by what keeps counts.
    counts = isinstance(state.opt_state, MacQueenState)
    result = dk.fit_minibatch(
        key_of(model._seed),
        points,
        state,
        num_steps=1,
        batch_size=len(points),
        sampling="sequential",
        reassignment_ratio=0.01 if counts else None,
        optimizer=optimizer,
        # A batch may have fewer rows than there are clusters.
        active=jnp.ones(len(state.centroids), bool),
        **common(model, held),
    )
    check_status(model, result)
    check_scale(model, data, float(result.loss) / len(data))
    return in_numpy(result)
