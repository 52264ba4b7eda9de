"""K-means algorithms as optax transformations that read the cluster counts.

Their `update` takes the gradient of a k-means loss (a sum, hard or soft) and, as extra
arguments, the counts and shifts of the same pass. They chain with any other optax
transformation behind them; clusters without weight do not move.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import export

from diffkm_jax._checks import as_scalar
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted, shown
from diffkm_jax._numerics import per_count
from diffkm_jax.distances._forms import WITH_MEANS

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["EmaState", "MacQueenState", "ema", "macqueen", "newton"]


class MacQueenState(NamedTuple):
    """The state of `macqueen`.

    Attributes:
        counts: Weight that every cluster has seen so far, [k], in a tree like the
            parameters'.
    """

    counts: Any


export.register_namedtuple_serialization(
    MacQueenState, serialized_name="diffkm.MacQueenState"
)


class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
        counts: Moving average of the weight of every cluster, [k], in a tree like the
            parameters'; zero for one that never had any.
        step: Number of updates so far, [], int32, if the decay is a schedule; or None.
    """

    counts: Any
    step: Any = None


export.register_namedtuple_serialization(EmaState, serialized_name="diffkm.EmaState")


class _PerCount(optax.GradientTransformationExtraArgs):
    """An optimizer whose step, and whose state but for its unit, is per weight."""


def is_per_count(optimizer: optax.GradientTransformation) -> bool:
    """Whether a step is the same with gradient and counts in any unit of the weights.

    The state of such an optimizer is empty, or has `counts` in that unit and nothing
    else that has a unit.
    """
    return isinstance(optimizer, _PerCount)


def _require(name: str, counts: jax.Array | None) -> jax.Array:
    if counts is None:
        raise ValueError(
            f"{name}() needs counts, the cluster weights of the pass, got None: only a "
            f"distance that has means has them ({WITH_MEANS}), and a wrapper around "
            "the optimizer must pass extra arguments on; else take a gradient optimizer"
        )
    return counts


def _steps(updates: Any, shifts: Any, counts: Any) -> Any:
    """The shifts over the counts, in a tree like the updates, which are gradients."""
    if shifts is None:
        # If squared Euclidean; of others a gradient is no shift.
        shifts = jax.tree.map(lambda g: -0.5 * g.astype(accumulation_dtype(g)), updates)
    elif not isinstance(updates, jax.Array):
        shifts = jax.tree.map(lambda _: shifts, updates)

    def step(gradient: jax.Array, shift: jax.Array, n: jax.Array) -> jax.Array:
        # In float32 or wider: a count beyond 65504 is infinite in float16.
        acc = accumulation_dtype(gradient, n)
        return per_count(shift.astype(acc), n.astype(acc)).astype(gradient.dtype)

    return jax.tree.map(step, updates, shifts, counts)


@hinted
@cache
def newton() -> optax.GradientTransformationExtraArgs:
    """Newton's method on the k-means loss: Lloyd's algorithm, or EM if it is soft.

    The update is shifts / counts, which takes every centroid to the mean of its points;
    if squared Euclidean that is −gradient / (2 counts). It is exact on the hard loss,
    whose Hessian at rest is counts times that of the distance; on the soft loss, whose
    Hessian is smaller, it is the EM step. The update is differentiable in the shifts
    and the counts. In a chain it stands first: it reads shifts, which what stands
    before it does not change.

    Returns:
        A stateless optax transformation, the same object at every call; its `update`
        needs `counts`, [k], in the unit of the weights, and reads `shifts`, [k, d];
        without them it takes the gradient to be that of the squared Euclidean loss.

    Raises:
        ValueError: `update` got no counts, as under a distance that has no means.

    Example:
        >>> x, c = jnp.array([[0.0], [1.0], [8.0]]), jnp.array([[0.0], [9.0]])
        >>> halfway = optax.chain(dk.newton(), optax.scale(0.5))
        >>> state, _ = dk.update(x, dk.init(c, optimizer=halfway), optimizer=halfway)
        >>> state.centroids.tolist()  # Half the way to the means 0.5 and 8.
        [[0.25], [8.5]]

    Source: Bottou & Bengio 1995,
        https://leon.bottou.org/papers/bottou-bengio-95
    """

    def init(params: Any) -> tuple[()]:
        del params
        return ()  # A plain tuple, which jax.export can write without being told.

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        counts: Float[Array, " k"] | None = None,
        shifts: Float[Array, "k d"] | None = None,
        **extra: Any,
    ) -> tuple[Any, tuple[()]]:
        del params, extra
        counts = _require("newton", counts)
        of_each = jax.tree.map(lambda _: counts, updates)
        return _steps(updates, shifts, of_each), state

    return _PerCount(init, update)


@hinted
@cache
def macqueen() -> optax.GradientTransformationExtraArgs:
    """MacQueen's online k-means: a learning rate of 1 / (weight seen) per centroid.

    The update is shifts / counts, with the counts of all passes so far: after any
    number of batches each centroid is the mean of all the points it was ever given, as
    in Sculley's mini-batch k-means. On one and the same batch the steps shrink like
    1/t. The update is differentiable in the gradient and in the counts.

    Returns:
        An optax transformation, the same object at every call; its state holds the
        running counts, and its `update` needs `counts`, [k], in the unit of the
        weights, and reads `shifts` as `newton` does.

    Raises:
        ValueError: `update` got no counts, as under a distance that has no means.

    Example:
        >>> state = dk.init(jnp.array([[5.0]]), optimizer=dk.macqueen())
        >>> for batch in (jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])):
        ...     state, _ = dk.update(batch, state, optimizer=dk.macqueen())
        >>> state.centroids.tolist()  # The mean of all four.
        [[3.0]]

    Source: MacQueen 1967, https://projecteuclid.org/euclid.bsmsp/1200512992;
        Sculley 2010, https://doi.org/10.1145/1772690.1772862
    """

    def init(params: Any) -> MacQueenState:
        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape[:1], accumulation_dtype(p)), params
        )
        return MacQueenState(zeros)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        counts: Float[Array, " k"] | None = None,
        shifts: Float[Array, "k d"] | None = None,
        **extra: Any,
    ) -> tuple[Any, MacQueenState]:
        del params, extra
        new = _require("macqueen", counts)
        seen = jax.tree.map(lambda old: old + new.astype(old.dtype), state.counts)
        return _steps(updates, shifts, seen), MacQueenState(seen)

    return _PerCount(init, update)


def ema(
    decay: float | optax.Schedule = 0.99,
) -> optax.GradientTransformationExtraArgs:
    """Moving averages of counts N and sums m: the codebook update of the VQ-VAE.

    With γ the decay, n the counts and s the sums of the points of a batch,
    N ← γN + (1 − γ)n, m ← γm + (1 − γ)s, and the centroid is m/N. As it is that before
    the step too, the update is (1 − γ) shifts / N, with the new N, and needs no m. A
    cluster without any count starts at N = n: so on constant counts every step is
    1 − γ of Newton's, and with γ = 0 all of it. Under `cosine`, where every step ends
    on the sphere, m is N times the unit centroid, and sums are those of unit rows. The
    update has an exact gradient in shifts, counts, running counts, and what a schedule
    closes over. With a decay from 0 to 1 mini-batches come to rest: `fit_minibatch`.

    Args:
        decay: What is kept of the averages at a step, γ, at least 0 and below 1;
            static, no unit. Or a schedule: a function of the number of updates so far,
            static by identity; where it returns an array outside 0 and 1 the step is
            NaN: a fit ends with NON_FINITE, and `update` leaves the state as it was.

    Returns:
        An optax transformation, the same object for the same number; its state holds
        the running counts, and the number of updates if there is a schedule. Its
        `update` needs `counts`, [k], in the unit of the weights, and reads `shifts` as
        `newton` does.

    Raises:
        TypeError: `decay` is neither a number nor a function, or a schedule returns no
            real number.
        ValueError: `decay` is not in range, or what a schedule returns no scalar, or a
            number out of range; or `update` got no counts, as where there are no means.

    Example:
        >>> codebook = dk.ema(0.75)
        >>> state = dk.init(jnp.array([[0.0]]), optimizer=codebook)
        >>> state, _ = dk.update(jnp.array([[3.0], [5.0]]), state, optimizer=codebook)
        >>> state.centroids.tolist()  # A quarter of the way to the mean, 4.
        [[1.0]]

    Source: van den Oord, Vinyals & Kavukcuoglu 2017 (appendix A.1),
        https://arxiv.org/abs/1711.00937
    """
    if callable(decay):
        return _ema(decay)
    try:
        usable = bool(0 <= decay < 1)
    except (TypeError, ValueError):
        expected = "a number or a schedule (a function of the step)"
        raise TypeError(f"decay must be {expected}, got {shown(decay)}") from None
    if not usable:
        raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
    return _constant_ema(float(decay))


def _ema(decay: float | optax.Schedule) -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> EmaState:
        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape[:1], accumulation_dtype(p)), params
        )
        return EmaState(zeros, jnp.zeros((), jnp.int32) if callable(decay) else None)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        counts: Float[Array, " k"] | None = None,
        shifts: Float[Array, "k d"] | None = None,
        **extra: Any,
    ) -> tuple[Any, EmaState]:
        del params, extra
        new = _require("ema", counts)
        share = _scheduled(decay, state.step, new) if callable(decay) else decay
        left = 1 - share

        def average(old: jax.Array) -> jax.Array:
            n = new.astype(old.dtype)
            return jnp.where(old == 0, n, share * old + left * n).astype(old.dtype)

        kept = jax.tree.map(average, state.counts)
        steps = _steps(updates, shifts, kept)
        steps = jax.tree.map(lambda u: (left * u).astype(u.dtype), steps)
        return steps, EmaState(kept, None if state.step is None else state.step + 1)

    return _PerCount(init, update)


_constant_ema = cache(_ema)


def _scheduled(schedule: optax.Schedule, step: jax.Array, like: jax.Array) -> jax.Array:
    """The decay at a step, NaN where it is none."""
    value = as_scalar("decay", given := schedule(step), like, zero=True)
    if isinstance(given, int | float) and given > 1:
        raise ValueError(f"decay must be at most 1, got {given} of its schedule")
    return jnp.where((value >= 0) & (value <= 1), value, jnp.nan)
