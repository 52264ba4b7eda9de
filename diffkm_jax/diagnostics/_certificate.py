"""How far the gradient of a fit can be trusted: ties, curvature, distance to rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from diffkm_jax._blocks import block_for, over_points, psum, weigh
from diffkm_jax._checks import check_integer
from diffkm_jax._expansion import Expanded, expand
from diffkm_jax._geometry import matmul
from diffkm_jax._given import as_problem
from diffkm_jax._hints import hinted, shown
from diffkm_jax._pass import has_means
from diffkm_jax._problem import Axis, Plan, Problem
from diffkm_jax._sharding import over_rows, specs_of
from diffkm_jax._statistics import Statistics, pull_of, residual_of, statistics_of
from diffkm_jax._units import in_true_unit, in_unit
from diffkm_jax.diagnostics._licenses import hard_license, soft_license
from diffkm_jax.diagnostics._lines import lines_of_certificate
from diffkm_jax.diagnostics._margins import margins
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.distances._forms import WITH_MEANS

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int


class Certificate(NamedTuple):
    """What licenses the gradient of a fit, in the accumulation dtype.

    Rows of weight zero count for nothing. Lengths are Euclidean, each row for itself
    unless said otherwise; under `cosine` points are unit rows.

    Attributes:
        margin: Distance to the second nearest active centroid minus that to the
            nearest, [n], in the unit of the distance; infinite if one cluster is
            active. The gradient of a hard loss is exact where no margin is zero.
        label_radius: If every centroid moves by less, no label changes, nor, if squared
            Euclidean, do those that this dtype computes, [], in data units; infinite if
            one cluster is active. So far the hard loss is a quadratic if squared, and
            its gradient after a move is −2 (shifts − counts · move). It is known of
            squared Euclidean, Mahalanobis and cosine distances; of others it is NaN.
        num_undecided: Points whose label rounding may have chosen, [], int32: exact
            ties, margins below a bound of the error of their scores, and rows that are
            not finite. The bound is of the worst case and grows with d: most that
            float32 leaves undecided, float64 decides. If any is, `label_radius` is 0.
            Of `bregman(phi)` the rounding of φ is not in it.
        residual: Σ_j distance(c_j + shifts_j / counts_j, c_j), [], in the unit of the
            distance: `fit` stops by it.
        gradient_norm: Norm of the gradient of the loss in all centroids, []: zero at
            rest.
        smallest_eigenvalue: Of the Hessian of the loss in the centroids that have some
            weight, [], in the unit of weights; of the others it is zero, and so is
            their gradient. Hard: that at rest, if squared twice the smallest count.
            Soft: the smallest Ritz value. Under `cosine` along the sphere. At rest,
            positive means an isolated minimum, and negative a saddle, as of merged
            centroids that would rather part: no fit stays there.
        eigenvalue_error: Some eigenvalue is as near to that as this, []. Hard: 0.
        critical_temperature: Twice the largest eigenvalue of the weighted covariance,
            [], in squared data units, if squared; else as the Hessian of the distance
            at the mean makes it, in the unit of the distance. At rest above it all
            centroids of a soft fit have merged in the mean, and its gradient knows one
            cluster only.
        distance: Length of the Newton step of all centroids together, [], in data
            units: to first order, how far away the gradient is zero. Hard: exact if
            `valid`. Soft: at most this, `gradient_norm / smallest_eigenvalue`, which
            is infinite if that is not positive; an implicit gradient is taken that far
            from where it holds.
        point_radius: Hard: if every point moves by less from this data, a fit that goes
            on from here keeps all labels, and its implicit gradient is exact, [], in
            data units; half of what the largest full step leaves of `label_radius`.
            Known of squared Euclidean and Mahalanobis distances, else NaN. Soft: 0,
            because the license is for small changes only.
        valid: Whether the implicit gradient of `fit` is licensed at the resting point
            next to these centroids, [], bool. Hard: the full step of every cluster is
            below `label_radius`, so that the labels after it are the same and Lloyd's
            algorithm rests, or, where that is not known, these labels are found to be
            the same and none is undecided; the gradient reads nothing but labels, so it
            is exact here too. Soft: `smallest_eigenvalue` exceeds `eigenvalue_error`,
            as the implicit function theorem asks for; whether the fit rests, say its
            status and `distance`. In both cases all is finite, and there is some
            weight.
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

    def __repr__(self) -> str:
        return lines_of_certificate(self)


export.register_namedtuple_serialization(
    Certificate, serialized_name="diffkm.Certificate"
)
SPECS = specs_of(Certificate, "margin")


@hinted
def certificate(
    points: Float[ArrayLike, "n d"],
    centroids: Float[ArrayLike, "k d"],
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    distance: Distance = squared_euclidean,
    temperature: ArrayLike | None = None,
    active: Bool[ArrayLike, " k"] | None = None,
    num_iterations: int = 32,
    block_size: int | None = None,
    axis_name: Axis = None,
) -> Certificate:
    """How far the gradient of a fit that ended at these centroids can be trusted.

    For every distance that has means. The loss of a hard fit has a kink wherever a
    point is as near to two centroids: its gradient holds up to the nearest such place.
    The implicit gradient of a soft fit needs a Hessian that is positive. Pass what the
    fit was given, and the centroids that it returned; in a wider dtype, to decide more.
    The certificate itself has no gradient, or rather one of zero.

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
        distance: The distance of the fit, one that has means: `squared_euclidean`,
            `cosine`, `kl_divergence`, `itakura_saito`, `mahalanobis`, `bregman`.
        temperature: Positive scalar, in the unit of the distance; may be traced. None
            is the hard assignment.
        active: Clusters that exist, [k], bool, at least one of them true; None is all.
        num_iterations: Limit of Lanczos steps, at least 1, static; unused if hard.
        block_size: Points in a block, static; None chooses it by shape.
        axis_name: Mesh axis inside `jax.shard_map` over which points are sharded; so is
            `margin` then, and the rest is of all points. Or as in `fit`.

    Returns:
        A `Certificate`. Nothing raises at run time: data that are not finite, in a row
        with weight, are not `valid`.

    Raises:
        TypeError: An array is not real, `active` is not bool, `num_iterations` or
            `block_size` no integer, `centroids` a `FitResult` or `State`, or
            `temperature` not real.
        ValueError: A shape does not fit; `temperature` is not a scalar, or a number
            and not positive and finite; `distance` is one without means;
            `num_iterations` or `block_size` is below 1;
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
        distance=distance,
        weights=weights,
        active=active,
        temperature=temperature,
        block_size=block_size,
        axis_name=axis_name,
    )
    if not has_means(problem):
        raise ValueError(
            f"distance must be one that has means ({WITH_MEANS}), got {shown(distance)}"
        )
    num_steps = min(num_iterations, max(1, centroids.size))
    return certificate_of(plan, num_steps, problem, centroids)


@over_rows(2, SPECS)
def certificate_of(
    plan: Plan, num_steps: int, problem: Problem, centroids: jax.Array
) -> Certificate:
    """The certificate of a problem at some centroids, by so many Lanczos steps."""
    problem, c = lax.stop_gradient((problem, centroids))
    c = c.astype(problem.dtype(c))
    # Squares of sums of weights are to be normal, too.
    problem = in_unit(plan, problem, c, limit=2)
    stats, given = statistics_of(plan, problem, c), expand(problem, c)
    margin, radii = margins(plan, problem, c)
    # Not known, NaN, or zero: a minimum may drop NaN.
    known = radii if given.form.is_metric else jnp.where(radii == 0, 0, jnp.inf)
    radius = jnp.min(known)
    if plan.axis_name is not None:
        radius = lax.pmin(radius, plan.axis_name)
    if not given.form.is_metric:
        radius = jnp.where((radius > 0) & (margin < jnp.inf).any(), jnp.nan, radius)
    mean, covariance = mean_and_covariance(plan, problem, given, stats)
    residual = residual_of(problem, c, stats)
    gradient_norm = jnp.linalg.norm(pull_of(problem, c, stats))
    finite = jnp.isfinite(jnp.stack([stats.loss, residual, gradient_norm])).all()
    finite &= jnp.any(stats.counts > 0)
    if problem.temperature is None:
        found = hard_license(plan, problem, given, stats, radius)
    else:
        spread = spread_of(given, stats, mean, covariance)
        found = soft_license(plan, num_steps, problem, given, stats, spread)
    return Certificate(
        margin=margin,
        label_radius=given.form.move(given.given, radius),
        num_undecided=psum(jnp.sum(radii == 0, dtype=jnp.int32), plan.axis_name),
        residual=residual,
        gradient_norm=in_true_unit(gradient_norm, problem),
        smallest_eigenvalue=in_true_unit(found.smallest_eigenvalue, problem),
        eigenvalue_error=in_true_unit(found.eigenvalue_error, problem),
        # None of them, and 0, where points have no coordinates.
        critical_temperature=given.form.critical_temperature(mean, covariance),
        distance=found.distance,
        point_radius=found.point_radius,
        valid=found.valid & finite,
    )


def spread_of(
    given: Expanded, stats: Statistics, mean: jax.Array, covariance: jax.Array
) -> jax.Array:
    """About the largest distance of a centroid to the mean, and of a point, [].

    Of points to second order, by their covariance.
    """
    weighty = stats.counts[:, None] > 0
    form, c = given.form, jnp.where(weighty, given.rows, mean)
    if form.is_invariant:
        costs = form.cost(c - mean, jnp.zeros_like(c))
    else:
        costs = form.cost(c, form.retract(mean, c[:1]))
    d = covariance.shape[0]
    rows = form.hessian(jnp.broadcast_to(mean, (d, d)), covariance)
    return 0.5 * form.scale * jnp.trace(rows) + jnp.max(costs)


def mean_and_covariance(
    plan: Plan, problem: Problem, given: Expanded, stats: Statistics
) -> tuple[jax.Array, jax.Array]:
    """Of embedded points, [1, d] and [d, d]; the mean from the statistics, rounded."""
    form, rows, origin = given.form, given.rows, given.anchor
    counts, mass = stats.counts[:, None], stats.counts.sum()
    # Σ w (x − m) = Σ_j u_j + n_j (c_j − m), from a pass that is made already.
    moments = stats.shifts + jnp.where(counts > 0, counts * (rows - origin), 0)
    mean = jnp.sum(moments, axis=0, keepdims=True) / mass

    def block(x: jax.Array, w: jax.Array | None):
        # Far from zero the mean itself would be rounded, and the covariance be larger.
        y = (form.embed(x) - origin) - mean
        return matmul(y.T, weigh(w, y)), ()

    block_size = plan.block_size or block_for(*rows.shape)
    scatter, _ = over_points(block, problem, block_size, origin)
    return origin + mean, psum(scatter, plan.axis_name) / mass
