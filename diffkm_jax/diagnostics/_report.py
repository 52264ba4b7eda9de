"""What `evaluate` returns, and how it comes of the moments of the samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from diffkm_jax._numerics import nonzero, safe_sqrt
from diffkm_jax._printed import plain
from diffkm_jax.diagnostics._estimates import Sample, Truth, cosine, norm
from diffkm_jax.diagnostics._settings import ARRAYS
from diffkm_jax.diagnostics._table import as_lists, is_table, table_of

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from diffkm_jax.estimators._estimator import Estimator


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["settings"],
    meta_fields=["name", "shape", "ranks", "fixed", "reference"],
)
@dataclass(frozen=True, eq=False)
class Label:
    """Whose report it is.

    Attributes:
        name: Of the estimator.
        settings: Its hyperparameters by name that are arrays, as they were evaluated.
        shape: Of the logits: axes of a report before those are of a grid.
        ranks: Of the settings by name, without such axes.
        fixed: Its other hyperparameters by name: None, integers, strings.
        reference: The name of the estimator that stood for the exact gradient, or None.
    """

    name: str
    settings: dict[str, Any]
    shape: tuple[int, ...]
    ranks: tuple[tuple[str, int], ...]
    fixed: tuple[tuple[str, Any], ...]
    reference: str | None


def label_of(
    record: Estimator, shape: tuple[int, ...], grid: Any, reference: str | None
) -> Label:
    """The label of an estimator, of whose settings some have the axis of a grid."""
    ranks = {
        name: np.ndim(value) - (name in grid)
        for name, value in record.settings.items()
        if isinstance(value, ARRAYS)
    }
    arrays, fixed = {}, []
    for name, value in record.settings.items():
        if all(isinstance(a, ARRAYS) for a in jax.tree.leaves(value) or [None]):
            arrays[name] = value
        else:
            is_plain = isinstance(value, int | str | None)
            fixed.append((name, value if is_plain else str(value)))
    meta = shape, tuple(ranks.items()), tuple(fixed), reference
    return Label(record.name, arrays, *meta)


class Report(NamedTuple):
    """What `evaluate` found, of each independent problem of the batch.

    Printed, it is a table, and so is a list of them; an enumerated bias that rounding
    explains is 0 there. Over a grid of settings everything has the axis of the grid
    first.

    Vectors have the shape of the logits, [*batch, *rows, k]; numbers that of the costs,
    [*batch], and speak of the gradient of one problem as one vector. Gradients, and so
    bias and deviation, are in the unit of the costs, logits having none.

    Attributes:
        exact: The exact gradient of E f(D), or the reference's mean estimate of it.
        mean: The mean of the estimates.
        bias: mean − exact.
        bias_error: The standard error of the bias, that of a reference included; 0 if
            enumerated.
        variance: The variance of each component of an estimate.
        total_variance: Its sum over the components.
        mse: The mean of ‖estimate − exact‖²: ‖bias‖² + total_variance, this times
            1 − 1/n for n samples. A reference adds its own squared error to it.
        cosine: Of the angle between mean and exact; 0 if either is zero.
        mean_cosine: The mean of the cosines between estimate and exact.
        snr: Signal to noise, ‖mean‖ / √total_variance: infinite without variance, 0 if
            the mean is zero.
        enumerated: Whether the draws were enumerated, so that nothing here has a Monte
            Carlo error.
        exact_value: The exact E f(D), or the reference's mean.
        mean_value: The mean of the costs that the estimator returned.
        difference: mean − the mean of the first estimator of the list.
        difference_error: Its standard error, paired where both were sampled.
        label: The estimator's name and settings, the shape of the logits, and the name
            of the reference.
    """

    exact: Float[Array, "*batch_rows k"]
    mean: Float[Array, "*batch_rows k"]
    bias: Float[Array, "*batch_rows k"]
    bias_error: Float[Array, "*batch_rows k"]
    variance: Float[Array, "*batch_rows k"]
    total_variance: Float[Array, "*batch"]
    mse: Float[Array, "*batch"]
    cosine: Float[Array, "*batch"]
    mean_cosine: Float[Array, "*batch"]
    snr: Float[Array, "*batch"]
    enumerated: Bool[Array, ""]
    exact_value: Float[Array, "*batch"]
    mean_value: Float[Array, "*batch"]
    difference: Float[Array, "*batch_rows k"]
    difference_error: Float[Array, "*batch_rows k"]
    label: Label

    def __repr__(self) -> str:
        return table_of([self]) if is_table([self]) else plain(self)

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name as numbers and lists, for `json.dumps`.

        Returns:
            A dictionary of the estimator's `name` and `settings`, and of every field
            above them. What is infinite or no number is a float all the same.

        Raises:
            ValueError: The report is traced.
        """
        fields = self._asdict()
        label = fields.pop("label")
        settings = as_lists(label.settings) | dict(label.fixed)
        named = {"name": label.name, "settings": settings}
        return named | as_lists(fields)


class Reports(tuple[Report, ...]):
    """Reports of a list of estimators, a tuple; printed, they are one table."""

    __slots__ = ()

    def __repr__(self) -> str:
        return table_of(self) if is_table(self) else super().__repr__()


jax.tree_util.register_pytree_node(
    Reports, lambda reports: (tuple(reports), None), lambda _, leaves: Reports(leaves)
)
export.register_namedtuple_serialization(Report, serialized_name="diffkm.Report")
export.register_pytree_node_serialization(
    Label,
    serialized_name="diffkm.Label",
    serialize_auxdata=lambda meta: json.dumps(meta).encode(),
    deserialize_auxdata=lambda data: _meta(json.loads(data)),
)
export.register_pytree_node_serialization(
    Reports,
    serialized_name="diffkm.Reports",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: None,
)


def _meta(found: list) -> tuple:
    name, shape, *pairs, reference = found
    return name, tuple(shape), *(tuple(map(tuple, p)) for p in pairs), reference


def numbers_of(found: Sample, *, truth: Truth, count: int | None) -> dict[str, Any]:
    """The fields of a report, by name; `count` is None if samples were drawn."""
    kept = truth.value.ndim
    bias = found.error.mean
    mean, squares = found.gradient.mean, found.gradient.squares
    num = found.gradient.weight
    variance = squares / (num - 1 if count is None else num)
    total_variance = jnp.sum(variance, axis=tuple(range(kept, variance.ndim)))
    length = norm(mean, kept)
    deviation = safe_sqrt(total_variance)
    snr = jnp.where(deviation > 0, length / nonzero(deviation), jnp.inf)
    zero = jnp.zeros_like(bias)
    paired = found.difference.squares / (num - 1) / num if count is None else zero
    return {
        "exact": truth.gradient,
        "mean": mean,
        "bias": bias,
        "bias_error": safe_sqrt(variance / num) if count is None else zero,
        "variance": variance,
        "total_variance": total_variance,
        "mse": found.squared_error.mean,
        "cosine": cosine(mean, truth.gradient, kept),
        "mean_cosine": found.cosine.mean,
        "snr": jnp.where(length == 0, 0, snr),
        "enumerated": jnp.asarray(count is not None),
        "exact_value": truth.value,
        "mean_value": found.cost.mean,
        "difference": found.difference.mean,
        "difference_error": safe_sqrt(paired),
    }


def difference_of(numbers: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """The differences to the first estimator and their errors, of means not paired."""
    squares = numbers["bias_error"] ** 2 + first["bias_error"][None] ** 2
    return {
        "difference": numbers["bias"] - first["bias"][None],
        "difference_error": safe_sqrt(squares),
    }


def by_reference(numbers: dict[str, Any], truth: Truth) -> dict[str, Any]:
    """What is not exact where a reference stands for the exact gradient."""
    squares = numbers["bias_error"] ** 2 + truth.squared_error[None, None]
    return {
        "bias_error": safe_sqrt(squares),
        "enumerated": jnp.zeros_like(numbers["enumerated"]),
    }
