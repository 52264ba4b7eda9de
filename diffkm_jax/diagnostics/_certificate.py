"""How far the gradient of a fit can be trusted: ties, curvature, distance to rest."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from diffkm_jax._blocks import block_for, over_points, psum, weigh
from diffkm_jax._checks import as_problem, check_integer
from diffkm_jax._geometry import anchor, matmul
from diffkm_jax._hints import hinted
from diffkm_jax._mesh import vary_as
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._units import in_true_unit, in_unit
from diffkm_jax.diagnostics._curvature import hessian_product, smallest_eigenvalue
from diffkm_jax.diagnostics._margins import margins
from diffkm_jax.distances import squared_euclidean
from diffkm_jax.statistics import Statistics, full_step, residual_of, statistics_of

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int


class Certificate(NamedTuple):
    """What licenses the gradient of a fit, in the accumulation dtype.

    Rows of weight zero count for nothing. Distances are Euclidean, each row for itself
    unless said otherwise.

    Attributes:
        margin: Squared distance to the second nearest active centroid minus that to the
            nearest, [n], in squared data units; infinite if one cluster is active. The
            gradient of a hard loss is exact where no margin is zero.
        label_radius: If every centroid moves by less, no label changes, nor do those
            that this dtype computes, [], in data units; infinite if one cluster is
            active. So far the hard loss is a quadratic, and its gradient after a move
            is −2 (shifts − counts · move).
        num_undecided: Points whose label rounding may have chosen, [], int32: exact
            ties, margins below a bound of the error of their scores, and rows that are
            not finite. The bound is of the worst case and grows with d: most that
            float32 leaves undecided, float64 decides. If any is, `label_radius` is 0.
        residual: Σ_j ‖shifts_j / counts_j‖², [], in squared data units: `fit` stops by
            it.
        gradient_norm: Norm of the gradient of the loss in all centroids, 2 ‖shifts‖,
            []: zero at rest.
        smallest_eigenvalue: Of the Hessian of the loss in the centroids that have some
            weight, [], in the unit of weights; of the others it is zero, and so is
            their gradient. Hard: twice the smallest count. Soft: the smallest Ritz
            value. At rest, positive means an isolated minimum, and negative a saddle,
            as of merged centroids that would rather part: no fit stays there.
        eigenvalue_error: Some eigenvalue is as near to that as this, []. Hard: 0.
        critical_temperature: Twice the largest eigenvalue of the weighted covariance,
            [], in squared data units. At rest above it all centroids of a soft fit have
            merged in the mean, and its gradient knows one cluster only.
        distance: Length of the Newton step of all centroids together, [], in data
            units: to first order, how far away the gradient is zero. Hard: exact if
            `valid`. Soft: at most this, `gradient_norm / smallest_eigenvalue`, which
            is infinite if that is not positive; an implicit gradient is taken that far
            from where it holds.
        point_radius: Hard: if every point moves by less from this data, a fit that goes
            on from here keeps all labels, and its implicit gradient is exact, [], in
            data units; half of what the largest full step leaves of `label_radius`.
            Soft: 0, because the license is for small changes only.
        valid: Whether the implicit gradient of `fit` is licensed at the resting point
            next to these centroids, [], bool. Hard: the full step of every cluster is
            below `label_radius`, so that the labels after it are the same and Lloyd's
            algorithm rests; the gradient reads nothing but labels, so it is exact here
            too. Soft: `smallest_eigenvalue` exceeds `eigenvalue_error`, as the implicit
            function theorem asks for; whether the fit rests, say its status and
            `distance`. In both cases all is finite, and there is some weight.
    """

    margin: Float[Array, " n"]
    label_radius: Float[Array, ""]
    num_undecided: Int[Array, ""]
    residual: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    smallest_eigenvalue: Float[Array, ""]
    eigenvalue_error: Float[Array, ""]
    critical_temperature: Float[Array, ""]
    distance: Float[Array, ""]
    point_radius: Float[Array, ""]
    valid: Bool[Array, ""]


export.register_namedtuple_serialization(
    Certificate, serialized_name="diffkm.Certificate"
)


@hinted
def certificate(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    temperature: ArrayLike | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    num_iterations: int = 32,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Certificate:
    """How far the gradient of a fit that ended at these centroids can be trusted.

    For squared Euclidean distances. The loss of a hard fit has a kink wherever a point
    is as near to two centroids: its gradient holds up to the nearest such place. The
    implicit gradient of a soft fit needs a Hessian that is positive. Pass what the fit
    was given, and the centroids that it returned; in a wider dtype, to decide more. The
    certificate itself has no gradient, or rather one of zero.

    The smallest eigenvalue of a soft loss is by Lanczos' method from a random start, at
    the price of some two passes an iteration. It is exact to rounding if
    `num_iterations` is at least k·d. Else it may be too large, and nothing can tell:
    its error says how near some eigenvalue is, not that it is the smallest. A value
    that falls with more iterations has not converged. The covariance takes O(n d²)
    operations, and its eigenvalues O(d³).

    Args:
        points: Data, [n, d], real, in data units.
        centroids: Centroids, [k, d], real, in data units.
        weights: Non-negative, [n], any unit; a row of weight 0 is inert, even one of
            NaN. None is ones.
        temperature: Positive scalar, in squared data units; may be traced. None is the
            hard assignment.
        active: Clusters that exist, [k], bool, at least one of them true; None is all.
        num_iterations: Limit of Lanczos steps, at least 1, static; unused if hard.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; so is
            `margin` then, and the rest is of all points.

    Returns:
        A `Certificate`. Nothing raises at run time: data that are not finite, in a row
        with weight, are not `valid`.

    Raises:
        TypeError: An array is not real, `active` is not bool, `num_iterations` or
            `block_size` no integer, `centroids` a `FitResult` or `State`, or
            `temperature` not real.
        ValueError: A shape does not fit; `temperature` is not a scalar, or a number
            and not positive and finite; `num_iterations` or `block_size` is below 1;
            `axis_name` is not an axis of the shard_map around.

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [9.0], [10.0]]), jnp.array([[0.5], [9.5]])
        >>> found = dk.certificate(x, c)
        >>> bool(found.valid), int(found.num_undecided), f"{found.label_radius:.1f}"
        (True, 0, '4.0')

    Source: Rose 1998 (critical temperature), https://doi.org/10.1109/5.726788;
        Paige 1980 (Lanczos), https://doi.org/10.1016/0024-3795(80)90167-6;
        Higham 2002 (rounding), https://doi.org/10.1137/1.9780898718027
    """
    check_integer("num_iterations", num_iterations, minimum=1)
    plan, problem, centroids = as_problem(
        points,
        centroids,
        distance=squared_euclidean,
        weights=weights,
        active=active,
        temperature=temperature,
        block_size=block_size,
        axis_name=axis_name,
    )
    num_steps = min(num_iterations, max(1, centroids.size))
    return certificate_of(plan, num_steps, problem, centroids)


@partial(jax.jit, static_argnums=(0, 1))
def certificate_of(
    plan: Plan, num_steps: int, problem: Problem, centroids: jax.Array
) -> Certificate:
    """The certificate of a problem at some centroids, by so many Lanczos steps."""
    problem, c = lax.stop_gradient((problem, centroids))
    acc = problem.dtype(c)
    c = c.astype(acc)
    # Squares of sums of weights are to be normal, too.
    problem = in_unit(plan, problem, c, limit=2)
    stats = statistics_of(plan, problem, c)
    margin, radii = margins(plan, problem, c)
    label_radius = jnp.min(radii)
    if plan.axis_name is not None:
        label_radius = lax.pmin(label_radius, plan.axis_name)
    mean, covariance = mean_and_covariance(plan, problem, c, stats)
    residual, gradient_norm = residual_of(stats), 2 * jnp.linalg.norm(stats.shifts)
    finite = jnp.isfinite(jnp.stack([stats.loss, residual, gradient_norm])).all()
    finite &= jnp.any(stats.counts > 0)
    if problem.temperature is None:
        found = hard_license(stats, label_radius)
    else:
        found = soft_license(plan, num_steps, problem, c, stats, mean, covariance)
    return Certificate(
        margin=margin,
        label_radius=label_radius,
        num_undecided=psum(jnp.sum(radii == 0, dtype=jnp.int32), plan.axis_name),
        residual=residual,
        gradient_norm=in_true_unit(gradient_norm, problem),
        smallest_eigenvalue=in_true_unit(found.smallest_eigenvalue, problem),
        eigenvalue_error=in_true_unit(found.eigenvalue_error, problem),
        # None of them, and 0, where points have no coordinates.
        critical_temperature=2 * jnp.max(jnp.linalg.eigvalsh(covariance), initial=0),
        distance=found.distance,
        point_radius=found.point_radius,
        valid=found.valid & finite,
    )


class _License(NamedTuple):
    """What of a certificate is another thing for hard and for soft assignment."""

    smallest_eigenvalue: jax.Array
    eigenvalue_error: jax.Array
    distance: jax.Array
    point_radius: jax.Array
    valid: jax.Array


def hard_license(stats: Statistics, label_radius: jax.Array) -> _License:
    """Labels stand if every full step is shorter than the move that changes one."""
    zero = jnp.zeros_like(stats.loss)
    # After moves of at most `step` the labels, and so the means, are the same: a rest.
    step = jnp.max(jnp.linalg.norm(full_step(stats), axis=1))
    smallest = 2 * jnp.min(stats.counts, where=stats.counts > 0, initial=jnp.inf)
    valid = step < label_radius
    return _License(
        smallest_eigenvalue=jnp.where(jnp.any(stats.counts > 0), smallest, 0),
        eigenvalue_error=zero,
        distance=jnp.sqrt(residual_of(stats)),
        point_radius=jnp.where(valid, (label_radius - step) / 2, zero),
        valid=valid,
    )


def soft_license(
    plan: Plan,
    num_steps: int,
    problem: Problem,
    c: jax.Array,
    stats: Statistics,
    mean: jax.Array,
    covariance: jax.Array,
) -> _License:
    """The implicit function theorem asks for a Hessian that is positive."""
    weighty = stats.counts[:, None] > 0
    start = jax.random.normal(jax.random.key(0), c.shape, c.dtype)
    product = partial(hessian_product, plan, problem, vary_as(c, stats))
    smallest, error = smallest_eigenvalue(
        product, jnp.where(weighty, start, 0), num_steps
    )
    away = jnp.where(weighty, c - mean, 0)
    spread = jnp.trace(covariance) + jnp.max(jnp.sum(away**2, axis=1))
    # The Hessian is 2 counts minus something positive, and rounds as the two do; what
    # rounding does to distances, it does to logits by the temperature.
    size = 2 * jnp.max(stats.counts) + jnp.abs(smallest)
    size *= 1 + spread / problem.temperature
    error += 8 * float(jnp.finfo(size.dtype).eps) * size
    # ‖H⁻¹ g‖ ≤ ‖g‖ / λ_min, if that is positive.
    positive = smallest > 0
    distance = 2 * jnp.linalg.norm(stats.shifts) / jnp.where(positive, smallest, 1)
    return _License(
        smallest_eigenvalue=jnp.where(weighty.any(), smallest, 0),
        eigenvalue_error=error,
        distance=jnp.where(positive, distance, jnp.inf),
        point_radius=jnp.zeros_like(smallest),
        valid=(smallest > error) & (problem.temperature > 0),
    )


def mean_and_covariance(
    plan: Plan, problem: Problem, c: jax.Array, stats: Statistics
) -> tuple[jax.Array, jax.Array]:
    """Of the points, [1, d] and [d, d]; the mean from the statistics, rounded."""
    origin, counts = anchor(c, problem.active), stats.counts[:, None]
    mass = stats.counts.sum()
    # Σ w (x − m) = Σ_j u_j + n_j (c_j − m), from a pass that is made already.
    moments = stats.shifts + jnp.where(counts > 0, counts * (c - origin), 0)
    mean = jnp.sum(moments, axis=0, keepdims=True) / mass

    def block(x: jax.Array, w: jax.Array | None):
        # Far from zero the mean itself would be rounded, and the covariance be larger.
        y = (x - origin) - mean
        return matmul(y.T, weigh(w, y)), ()

    block_size = plan.block_size or block_for(*c.shape)
    scatter, _ = over_points(block, problem, block_size, origin)
    return origin + mean, psum(scatter, plan.axis_name) / mass
