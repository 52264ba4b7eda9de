"""Where a fit stands, how it ended, and what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import export, lax

from diffkm_jax._checks import as_points_and_centroids
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted
from diffkm_jax._problem import Problem
from diffkm_jax._sharding import specs_of
from diffkm_jax.distances._forms import form_of
from diffkm_jax.fitting._lines import lines_of_fit, lines_of_state
from diffkm_jax.fitting._status import Status, flags_of, is_converged
from diffkm_jax.optimizers import newton

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int


class State(NamedTuple):
    """Where a fit stands; with it a fit can go on.

    Far from the origin no dtype holds a mean of points: where a fit stands is
    `centroids + remainder`, and the gradient is that of the centroids alone.

    Attributes:
        centroids: [k, d], in the accumulation dtype, in data units.
        opt_state: The optimizer's own state.
        step: Number of updates so far, [], int32: the argument of a temperature
            schedule.
        remainder: What rounding took of the centroids, [k, d], in their dtype and data
            units; None is zeros.
    """

    centroids: Float[Array, "k d"]
    opt_state: Any
    step: Int[Array, ""]
    remainder: Float[Array, "k d"] | None = None

    def __repr__(self) -> str:
        return lines_of_state(self)


export.register_namedtuple_serialization(State, serialized_name="diffkm.State")


class FitResult(NamedTuple):
    """What a fit returns.

    Printed, it is five lines, the last of which says what to look at.
    `loss` and `counts` are differentiable functions of the returned centroids, points,
    weights and temperature; `history` and `residual` carry no gradient.

    Attributes:
        centroids: [k, d], in the dtype of the centroids given (of the points, if a
            `State` was), in data units.
        labels: Index of the nearest returned centroid, [n], int32; of `fit_bounded`
            that of the cluster that each point was assigned to.
        loss: The loss at the returned centroids, [], accumulation dtype.
        counts: Weight of every cluster there, [k], accumulation dtype.
        residual: Σ_j distance(c_j + shifts_j / counts_j, c_j) there, [], in the unit of
            the distance; Σ_j ‖shifts_j / counts_j‖² of one that has no means.
        history: Loss after t steps, [max_steps + 1], padded with `loss`.
        num_steps: Steps taken in this call, [], int32.
        status: Flags of `Status`, [], int32.
        temperature: The last one used, [], or None if the fit was hard.
        state: The `State` at the end, to go on from.
    """

    centroids: Float[Array, "k d"]
    labels: Int[Array, " n"]
    loss: Float[Array, ""]
    counts: Float[Array, " k"]
    residual: Float[Array, ""]
    history: Float[Array, " steps"]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]
    temperature: Float[Array, ""] | None
    state: State

    @property
    def converged(self) -> Bool[Array, ""]:
        """Whether `status` has CONVERGED, as of a fit that its rule ended, at rest.

        Returns:
            [], bool, and traced in a program; of a batch of fits an array of theirs.

        Example:
            >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
            >>> bool(dk.fit(x, x[:2]).converged)
            True
        """
        return is_converged(self.status)

    @property
    def flags(self) -> Status:
        """The `Status`, which prints by name.

        Returns:
            A `Status`; of a batch of fits a NumPy array of them.

        Raises:
            ValueError: The result is traced; `converged` may be.

        Example:
            >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
            >>> print(dk.fit(x, x[:2], max_steps=1).flags)
            MAX_STEPS
        """
        return flags_of(self.status)

    def __repr__(self) -> str:
        return lines_of_fit(self, "fit(points, result.state, ...)")


export.register_namedtuple_serialization(FitResult, serialized_name="diffkm.FitResult")
# Where each is on a mesh.
SPECS = specs_of(FitResult, "labels")


@hinted
def init(
    centroids: Float[ArrayLike, "k d"],
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> State:
    """Starts a fit: the centroids in the accumulation dtype and a new optimizer state.

    The gradient is the identity, in the centroids.

    Args:
        centroids: Start, [k, d], real, in data units.
        optimizer: Any optax transformation; None is `newton()`.

    Returns:
        The `State` of step 0.

    Raises:
        TypeError: `centroids` is not real.
        ValueError: `centroids` is not [k, d] with k at least 1.

    Example:
        >>> state = dk.init(jnp.zeros((2, 3), jnp.bfloat16), optimizer=optax.adam(0.1))
        >>> state.centroids.dtype.name, int(state.step)
        ('float32', 0)

    Source: the (init, update) pair of optax, https://optax.readthedocs.io
    """
    centroids, _ = as_points_and_centroids(centroids, centroids)
    centroids = centroids.astype(accumulation_dtype(centroids))
    return initial_state(centroids, newton() if optimizer is None else optimizer)


def initial_state(
    centroids: jax.Array,
    optimizer: optax.GradientTransformation,
    active: jax.Array | None = None,
) -> State:
    """The state of step 0."""
    opt_state = optimizer.init(zero_inactive(centroids, active))
    step = jnp.zeros((), jnp.int32)
    return State(centroids, opt_state, step, jnp.zeros_like(centroids))


def remainder_of(state: State) -> jax.Array:
    """The remainder of a state, [k, d], zeros if it has none."""
    if state.remainder is None:
        return jnp.zeros_like(state.centroids)
    return state.remainder


def moved(state: State, updates: jax.Array, active: jax.Array | None) -> State:
    """The state with the updates [k, d] added, of which rounding loses nothing."""
    c, remainder = state.centroids, remainder_of(state)
    by = remainder + updates
    new = c + by
    # Exact (Knuth's two-sum): c + by = new + what is lost.
    part = new - c
    lost = lax.stop_gradient((c - (new - part)) + (by - part))
    # Where a sum is not finite, what is lost of it is NaN.
    lost = jnp.where(jnp.isfinite(lost), lost, 0)
    return state._replace(
        centroids=where_active(active, new, c),
        remainder=where_active(active, lost, remainder),
    )


def retracted(problem: Problem, state: State, old: State) -> State:
    """The state with centroids where those of its distance are: on a sphere, if cosine.

    Where they have no direction they are the old ones.
    """
    form = form_of(problem.distance)
    if form is None or not (form.is_curved or form.has_edge):
        return state
    c = form.retract(state.centroids, old.centroids)
    c = where_active(problem.active, c, state.centroids)
    is_kept = (c == state.centroids) & (not form.is_curved)
    remainder = jnp.where(is_kept, remainder_of(state), 0)
    return state._replace(centroids=c, remainder=remainder)


def zero_inactive(centroids: jax.Array, active: jax.Array | None) -> jax.Array:
    """Centroids as an optimizer sees them: zero where inactive, whatever they hold."""
    return where_active(active, centroids, jnp.zeros_like(centroids))


def where_active(
    active: jax.Array | None, rows: jax.Array, others: jax.Array
) -> jax.Array:
    """The rows [k, ...] of active clusters, and the others of the inactive."""
    if active is None:
        return rows
    return jnp.where(active.reshape(-1, *(1,) * (rows.ndim - 1)), rows, others)
