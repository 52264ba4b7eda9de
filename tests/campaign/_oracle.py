"""What a result at an extreme may be: right, or visibly not; and what is neither.

The truth about a float32 result is float64 at the same inputs. *Silent and wrong* is:

1. A number that differs from a finite truth by more than 1000 ε of the largest entry of
   its row of the leaf (or of what its rounding is of: see `sizes_of_value`), 10 times
   what one unit in the last place of the inputs does to it, and 10⁻³⁶, below which
   squares underflow, as the documentation says.
2. NaN where inputs are finite and all of the truth can be represented, and infinity
   where their squares can be too. Where some of it overflows, what is not finite
   anywhere in the result is a flag, and is enough; a gradient is judged with its value.
   So is NaN in the state of an optimizer, whose losses of before are not returned.
   What is beyond a 64th of the largest number may overflow too, for its terms may.
3. A finite number below half the largest one, where the truth overflows.
4. CONVERGED, or a certificate that is `valid`, beside a loss or centroid that is not
   finite.
5. A label out of range; or, of inputs whose squares are normal numbers, one that is not
   the truth's, where that stands when inputs move by a unit in the last place.

Subnormal inputs are zeros to XLA: the truth at zero will do. Of a certificate, bounds
of rounding are not compared. Inputs that are not finite must give what they give in
float64: finite where that is, and near it. An exception is a refusal if it is a
ValueError or TypeError whose first word is a parameter (or the name of the function),
and a failure otherwise.
"""

from __future__ import annotations

import inspect
from operator import attrgetter
from typing import Any

import numpy as np

import diffkm_jax as dk
from tests.campaign._judged import BOUNDS, largest_change, leaves, wide
from tests.campaign._subjects import Subject

LARGEST = float(np.finfo(np.float32).max)
EPS = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)
UNDERFLOW = 1e-36
NEARLY = LARGEST / 64
# Where a scalar has no meaning, by its documentation; if traced, it is not checked.
POSITIVE = {"tau", "tau_backward", "temperature", "strength", "scale"}
NOT_NEGATIVE = {"tol", "gap", "eta", "min_count", "weights", "diversity_weight"}


# What moves centroids, or measures where they rest.
MOVING = {
    *("fit", "fit_minibatch", "fit_restarts", "fit_sharded"),
    *("certificate", "init", "update"),
    *("newton", "macqueen", "ema"),
}
# Their NaN is a flag where squares overflow.
FLAGGED = MOVING | {"kmeans_parallel", "kmeans_plus_plus"}


def in_domain(subject: Subject, name: str, value: float) -> bool:
    """Whether a value of an argument has a meaning."""
    if name == "alpha" and subject.base in ("entmax", "entmax_loss"):
        return 1 <= value < np.inf
    if name in POSITIVE and (subject.base, name) != ("diveq", "scale"):
        # XLA takes what is below the smallest normal number for zero.
        return TINY <= value < np.inf
    if name in NOT_NEGATIVE or name == "scale":
        return 0 <= value < np.inf or (name == "weights" and not value < 0)
    return True


def undecided(subject: Subject, name: str, value: float) -> str:
    """Why nothing is judged at a value of an argument, or nothing."""
    size = abs(value)
    beyond = size * EPS > 1 if name in ("logits", "noise") else 0 < size < EPS
    if subject.base in ("sinkhorn", "conditional_gumbel") and beyond:
        return "rounding of the logits decides"
    if subject.base == "rotation_trick" and name == "points" and 0 < size < 1e-37:
        return "the ratio of the norms is capped, as documented"
    return ""


def is_named(error: Exception, subject: str, arrays: Any) -> bool:
    """Whether an exception is a refusal that names what it refuses."""
    base = subject.partition("(")[0]
    parameters = [*inspect.signature(attrgetter(base)(dk)).parameters, *arrays]
    words = {*parameters, base.rpartition(".")[2], "the"}
    first = (str(error).split() or [""])[0]
    return isinstance(error, (ValueError, TypeError)) and first in words


def assert_status(tree: Any) -> None:
    """Raises where a result calls itself good and is not finite (4)."""
    if isinstance(tree, dk.FitResult):
        finite = np.isfinite(np.asarray(tree.loss)).all()
        finite &= np.isfinite(np.asarray(tree.centroids, np.float64)).all()
        status = tree.flags
        assert finite or dk.Status.CONVERGED not in status, f"{status}, not finite"
    if isinstance(tree, dk.Certificate):
        finite = np.isfinite([tree.residual, tree.gradient_norm]).all()
        assert finite or not bool(tree.valid), "valid, but not finite"


def assert_labels(tree: Any, k: int) -> None:
    """Raises where labels are out of range (5)."""
    for name, leaf in leaves(tree):
        if name.endswith("labels") or (name == "" and leaf.dtype == "int32"):
            assert ((leaf >= 0) & (leaf < k)).all(), f"labels {leaf}"


def assert_not_silent(
    found: Any,
    truth: Any,
    others: list[Any],
    *,
    finite_inputs: bool,
    normal_squares: bool,
    sizes: dict[str, float],
    may_be_nan: bool,
) -> None:
    """Raises where a float32 result is silently wrong: 1, 2, 3 and 5.

    Args:
        found: The result in float32.
        truth: In float64.
        others: In float64, with inputs moved by a unit of float32 in the last place.
        finite_inputs: Whether all inputs are finite.
        normal_squares: Whether all their squares are zero or normal in float32.
        sizes: By the path of a leaf, the size of what its rounding is of.
        may_be_nan: Whether NaN is a flag where squares overflow.
    """
    mine, right, sides = wide(found), wide(truth), [wide(other) for other in others]
    floors = largest_change(truth, others)
    floats = [i for i, leaf in enumerate(right) if leaf.dtype.kind == "f"]
    overflows = any((~(np.abs(right[i]) <= NEARLY)).any() for i in floats)
    with np.errstate(all="ignore"):
        nan = any(np.isnan(mine[i]).any() for i in floats)
        infinite = any(np.isinf(mine[i]).any() for i in floats)
    flag = (infinite and (may_be_nan or not nan)) or (may_be_nan and nan)
    flagged = nan or infinite if overflows else flag and not normal_squares
    if finite_inputs and flagged:
        return
    for i, (name, _) in enumerate(leaves(found)):
        a, b = mine[i], right[i]
        if name.endswith(BOUNDS):
            continue
        if i not in floats:
            settled = np.all([side[i] == b for side in sides], axis=0)
            ok = ((a == b) | ~settled).all() or not (normal_squares and finite_inputs)
            assert ok, f"{name}: {a.tolist()} is not {b.tolist()}"
            continue
        with np.errstate(all="ignore"):
            representable, finite = np.abs(b) <= LARGEST, np.isfinite(a)
            limit = tolerance(b, floors[i], sizes.get(name, 0.0))
            wrong = representable & ~(np.abs(a - b) <= limit)
            # Infinite in float64 is no number that overflows.
            wrong |= ~representable & finite & (np.abs(a) < LARGEST / 2)
        say(name, wrong, a, b, "not")


def assert_twins_agree(
    ours: Any, theirs: Any, others: list[Any], exact: Any, sizes: dict
) -> None:
    """Raises where two packages give numbers that differ, or one of them none."""
    if any((~(np.abs(leaf) <= LARGEST)).any() for leaf in wide(exact)):
        return
    floors = largest_change(exact, others)
    may_overflow = any((np.abs(leaf) > NEARLY).any() for leaf in wide(exact))
    for a, b, floor, (name, _) in zip(
        wide(ours), wide(theirs), floors, leaves(ours), strict=True
    ):
        if a.dtype.kind != "f":
            continue
        with np.errstate(all="ignore"):
            both = np.isfinite(a) & np.isfinite(b)
            limit = tolerance(np.where(both, a, 0), floor, sizes.get(name) or 0.0)
            wrong = both & (np.abs(a - b) > limit)
            if not may_overflow:
                wrong |= np.isfinite(a) != np.isfinite(b)
        say(name, wrong, a, b, "in torch")


def tolerance(truth: np.ndarray, floor: np.ndarray, size: float) -> np.ndarray:
    """How far entries may be off: the formula of 1."""
    known = np.where(np.isfinite(truth), np.abs(truth), 0)
    rows = known.max(-1, keepdims=True, initial=0) if truth.ndim else known
    size = np.nan_to_num(size, posinf=0.0)
    return 1000 * EPS * np.maximum(rows, size) + 10 * floor + UNDERFLOW


def sizes_of_value(subject: Subject, value: Any, given: dict) -> dict[str, float]:
    """By the path of a leaf, the size of what its rounding is of, if not its own.

    What a step leaves is a sum of centroids and shifts, and has the rounding of the
    largest coordinate; the loss and the residual at rest, that of its square (if soft:
    ε times the largest square, as the documentation says).
    """
    if subject.base == "evaluate":
        # Of variances, whose squares underflow.
        return {".snr": 10.0}
    if subject.base not in MOVING:
        return {}
    coordinates = [given[k] for k in ("points", "centroids") if k in given]
    finite = [a[np.isfinite(a)] for a in coordinates]
    largest = max(float(np.abs(a).max(initial=0)) for a in finite)
    weight = float(np.abs(given["weights"]).max()) if "weights" in given else 1.0
    squared = largest**2 * max(weight, 1.0)
    if "temperature" not in given:
        squared *= 1000 * EPS
    return {
        name: largest if leaf.ndim == 2 else squared for name, leaf in leaves(value)
    }


def sizes_of_gradient(subject: Subject, value: Any, given: dict) -> dict[str, float]:
    """By argument: of one that holds a single number s, and of logits.

    The derivative in s has the rounding of value / s, and that in logits of the value;
    what should be zero in other arrays, of rounding's own.
    """
    floats = [leaf for leaf in wide(value) if leaf.dtype.kind == "f"]
    size = max((float(np.abs(leaf).max(initial=0)) for leaf in floats), default=0.0)
    size = max(size, *sizes_of_value(subject, value, given).values(), 0.0)
    found = {"logits": size}
    if subject.base in MOVING:
        # Centroids move as means of points do; if soft, as far as points are apart, and
        # so does the loss where they do not rest.
        coordinates = [given[k] for k in ("points", "centroids") if k in given]
        far = max(float(np.abs(a[np.isfinite(a)]).max(initial=1)) for a in coordinates)
        soft = "temperature" in given or subject.base == "fit_minibatch"
        found |= dict.fromkeys(("centroids", "points"), far if soft else 1.0)
        found |= {"weights": far**2} if soft else {}
    for name, a in given.items():
        largest = float(np.abs(a).max(initial=0)) if a.dtype != bool else 0.0
        if largest and name not in found:
            single = (a == a.flat[0]).all()
            found[name] = size / largest * (1.0 if single else EPS)
    return found


def say(name: str, wrong: np.ndarray, a: np.ndarray, b: np.ndarray, what: str) -> None:
    """Raises AssertionError with the first wrong entry, if there is one."""
    where = tuple(np.argwhere(wrong)[0]) if wrong.any() else ()
    place = [int(index) for index in where]
    assert not wrong.any(), f"{name}{place} is {a[where]}, {what} {b[where]}"


def k_of(subject: Subject, given: dict) -> int:
    """How many labels there are."""
    if subject.base in ("finite_scalar_quantize", "lookup_free_quantize"):
        return 4 ** given["points"].shape[-1]
    return len(given["centroids"]) if "centroids" in given else 3
