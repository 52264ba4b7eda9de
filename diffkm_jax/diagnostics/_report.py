"""What `evaluate` returns, and how it comes of the moments of the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jax import export

from diffkm_jax._numerics import nonzero, safe_sqrt
from diffkm_jax.diagnostics._estimates import Sample, cosine, norm

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class Report(NamedTuple):
    """What `evaluate` found, of each independent problem of the batch.

    Vectors have the shape of the logits, [*batch, *rows, k]; numbers that of the costs,
    [*batch], and speak of the gradient of one problem as one vector. Gradients, and so
    bias and deviation, are in the unit of the costs, logits having none.

    Attributes:
        exact: The exact gradient of E f(D).
        mean: The mean of the estimates.
        bias: mean − exact.
        bias_error: The standard error of the bias; 0 if enumerated.
        variance: The variance of each component of an estimate.
        total_variance: Its sum over the components.
        mse: The mean of ‖estimate − exact‖²: ‖bias‖² + total_variance, this times
            1 − 1/n for n samples.
        cosine: Of the angle between mean and exact; 0 if either is zero.
        mean_cosine: The mean of the cosines between estimate and exact.
        snr: Signal to noise, ‖mean‖ / √total_variance: infinite without variance, 0 if
            the mean is zero.
        enumerated: Whether the draws were enumerated, so that nothing here has a Monte
            Carlo error.
        exact_value: The exact E f(D).
        mean_value: The mean of the costs that the estimator returned.
        difference: mean − the mean of the first estimator of the list.
        difference_error: Its standard error, paired where both were sampled.
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


export.register_namedtuple_serialization(Report, serialized_name="diffkm.Report")


def report_of(
    found: Sample,
    truth: tuple,
    count: int | None,
    num_samples: int,
    first: Report | None,
    paired: bool,
) -> Report:
    """The report of an estimator; `count` is None if it was sampled."""
    exact_value, exact_gradient = truth
    kept = exact_value.ndim
    bias = found.error.mean
    mean, squares = found.gradient.mean, found.gradient.squares
    divisor = found.gradient.weight if count else found.gradient.weight - 1
    variance = squares / divisor
    total_variance = jnp.sum(variance, axis=tuple(range(kept, variance.ndim)))
    length = norm(mean, kept)
    deviation = safe_sqrt(total_variance)
    snr = jnp.where(deviation > 0, length / nonzero(deviation), jnp.inf)
    bias_error = jnp.zeros_like(bias)
    if count is None:
        bias_error = safe_sqrt(variance / num_samples)
    if first is None:
        difference = difference_error = jnp.zeros_like(bias)
    elif paired and count is None:
        difference = found.difference.mean
        difference_error = safe_sqrt(found.difference.squares / divisor / num_samples)
    else:
        difference = bias - first.bias
        difference_error = safe_sqrt(bias_error**2 + first.bias_error**2)
    return Report(
        exact=exact_gradient,
        mean=mean,
        bias=bias,
        bias_error=bias_error,
        variance=variance,
        total_variance=total_variance,
        mse=found.squared_error.mean,
        cosine=cosine(mean, exact_gradient, kept),
        mean_cosine=found.cosine.mean,
        snr=jnp.where(length == 0, 0, snr),
        enumerated=jnp.asarray(count is not None),
        exact_value=exact_value,
        mean_value=found.cost.mean,
        difference=difference,
        difference_error=difference_error,
    )
