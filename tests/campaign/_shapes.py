"""Extreme shapes: one cluster, one point, no coordinate, all equal, tied, weightless.

Results are compared with torch's in float64, with what is known of them, and with the
rules of `_oracle` about what calls itself good.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.campaign._bench import Arrays
from tests.campaign._cells import Cell, Refused
from tests.campaign._judged import leaves, wide
from tests.campaign._oracle import assert_labels, assert_status, is_named, k_of
from tests.campaign._subjects import Subject, subjects, twins

# Arrays [n, ...] and [k, ...], and those whose last axis is clusters.
OF_N = {"points", "weights", "nearest"}
OF_K = {"centroids", "active"}
OF_LOGITS = {"logits", "noise", "target", "gradient"}


def equal(given: dict, names: set[str]) -> dict:
    """All rows of some arrays as the first is."""
    return {
        k: np.broadcast_to(a[:1], a.shape).copy() if k in names else a
        for k, a in given.items()
    }


def filled(given: dict, name: str, value: Any) -> dict:
    return given | {name: np.full_like(given[name], value)} if name in given else {}


def rows(given: dict, names: set[str], count: int) -> dict:
    if not names & given.keys():
        return {}
    n = len(given["points"]) if "points" in given else 0
    # The normal draws of `nsvq` are as many as the points; Gumbel noise is not.
    per_row = {k for k, a in given.items() if k == "noise" and len(a) == n and n}
    found = names | (per_row if names is OF_N else set())
    return {k: a[:count] if k in found else a for k, a in given.items()}


def last_axis(given: dict, names: set[str], count: int) -> dict:
    if not names & given.keys():
        return {}
    return {
        k: a[..., :count] if k in names and a.ndim > 1 else a for k, a in given.items()
    }


def without_coordinates(given: dict) -> dict:
    names = {"points", "centroids", "nearest", "x", "y"}
    found = last_axis(given, names, 0)
    if found and "noise" in found and "points" in found:
        found["noise"] = found["noise"][:, :0]
    if found and "precision" in found:
        found["precision"] = found["precision"][:0, :0]
    return found


def one_cluster(given: dict) -> dict:
    found = rows(given, OF_K, 1)
    # The first is active.
    return found or last_axis(given, OF_LOGITS | {"draws"}, 1)


def one_point(given: dict) -> dict:
    found = rows(given, OF_N, 1)
    return rows(found, OF_K, 1) if found else {}


def tied(given: dict) -> dict:
    """Points in the middle of centroids: on a grid, where distances are exact."""
    if not {"points", "centroids"} <= given.keys():
        return {}
    n, k = len(given["points"]), len(given["centroids"])
    corners = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])[:k]
    return given | {"points": np.ones((n, 2)), "centroids": corners + 1e-300}


def all_equal(given: dict) -> dict:
    names = {"points", "centroids", "nearest", "x", "y"}
    if not names & given.keys():
        return {
            k: np.full_like(a, 0.5) if k in OF_LOGITS else a for k, a in given.items()
        }
    found = equal(given, names)
    first = next(found[k] for k in ("points", "x", "centroids") if k in found)
    for name in names & found.keys():
        found[name] = np.broadcast_to(first[:1], found[name].shape).copy()
    return found


SHAPES = {
    "k = 1": one_cluster,
    "n = 1": one_point,
    "d = 0": without_coordinates,
    "all equal": all_equal,
    "all tied": tied,
    "all weights zero": lambda given: filled(given, "weights", 0.0),
    "all inactive": lambda given: filled(given, "active", False),
    "one weight": lambda given: {
        k: np.where(np.arange(len(a)) == 0, a, 0) if k == "weights" else a
        for k, a in given.items()
    } if "weights" in given else {},
}  # fmt: skip


def check(subject: Subject, shape: str) -> None:
    """Raises unless the result is that of torch, and is known or flagged."""
    given = SHAPES[shape](subject.arrays)
    arrays: Arrays = {k: jnp.asarray(a) for k, a in given.items()}
    try:
        found = subject.function(**arrays)
    except Exception as error:
        if is_named(error, subject.name, given):
            raise Refused from None
        raise
    jax.block_until_ready(found)
    assert_status(found)
    assert_labels(found, k_of(subject, given))
    if shape == "all inactive":
        return
    nans = {name for name, leaf in leaves(found) if np.isnan(wide(leaf)[0]).any()}
    weightless = shape == "all weights zero"
    assert not nans or weightless, f"{sorted(nans)} NaN of finite inputs"
    for name, leaf in leaves(found):
        # Where empty clusters are moved to equal points, rounding breaks the ties; and
        # noise, where codes are drawn.
        broken = "farthest" in subject.name or "noise" in given
        tied = shape in ("all equal", "all tied") and not broken
        if name.endswith("labels") and tied and "centroids" in given:
            assert (leaf == 0).all(), f"ties go to the lowest index, not {leaf}"
        if name.endswith("loss") and (shape == "d = 0" or weightless):
            hard = "temperature" not in subject.name
            assert not hard or float(leaf) == 0, f"{name} is {leaf}, not 0"


def gradient(subject: Subject, shape: str) -> None:
    """Raises unless the gradient is finite."""
    given = SHAPES[shape](subject.arrays)
    fixed = {k: jnp.asarray(a) for k, a in given.items() if a.dtype == bool}
    moved = {k: jnp.asarray(a) for k, a in given.items() if a.dtype != bool}

    def scalar(moved: Arrays) -> jax.Array:
        tree = subject.smooth(subject.function(**moved, **fixed))
        floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, float)]
        return sum((jnp.sum(x) for x in floats), jnp.zeros(()))

    try:
        found = jax.grad(scalar)(moved)
    except Exception as error:
        if is_named(error, subject.name, given):
            raise Refused from None
        raise
    bad = [k for k, a in found.items() if not np.isfinite(a).all()]
    assert not bad, f"the gradient in {bad} is not finite"


def in_numpy(a: Any) -> np.ndarray:
    return a.detach().numpy() if isinstance(a, torch.Tensor) else np.asarray(a)


def twin(name: str, shape: str) -> None:
    """Raises unless both packages give the same in float64, or both refuse."""
    _, ours, theirs, given = next(t for t in twins() if t[0] == name)
    given = SHAPES[shape](given)
    results, errors = [], []
    for function, make in ((ours, jnp.asarray), (theirs, torch.tensor)):
        try:
            tree = function(**{k: make(a) for k, a in given.items()})
            results.append(jax.tree.map(in_numpy, tree))
        except Exception as error:
            if not is_named(error, name, given):
                raise
            errors.append(str(error).split("\n")[0])
    if errors:
        assert len(errors) == 2, f"one package refuses: {errors}"
        raise Refused
    ours_, theirs_ = map(wide, results)
    for a, b, (leaf, _) in zip(ours_, theirs_, leaves(results[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=leaf)


def shape_cells() -> Iterator[Cell]:
    """Every shape that the arguments of a subject can have."""
    mirrored = {name for name, *_ in twins()}
    for subject in subjects():
        for shape, make in SHAPES.items():
            if not make(subject.arrays):
                continue
            label = f"{subject.name} {shape}"
            yield Cell("extremes", "shape", label, partial(check, subject, shape))
            if subject.promised and shape not in ("all inactive", "all weights zero"):
                run = partial(gradient, subject, shape)
                yield Cell("extremes", "shape gradient", label, run)
            moved = "farthest" in subject.name and shape in ("all tied", "all equal")
            if subject.name in mirrored and shape != "all inactive" and not moved:
                run = partial(twin, subject.name, shape)
                yield Cell("extremes", "shape twin", label, run)
        jax.clear_caches()
