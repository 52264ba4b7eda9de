"""The sizes that clusters may have: checked arguments, and whether they can be met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._checks import as_real
from diffkm_jax._given import is_read

if TYPE_CHECKING:
    from jax.typing import ArrayLike


class Bounds(NamedTuple):
    """The least and the largest size of every cluster, [k] each, `high` may be ∞."""

    low: jax.Array
    high: jax.Array


def as_bounds(
    min_size: ArrayLike | None,
    max_size: ArrayLike | None,
    weights: ArrayLike | None,
    shape: tuple[int, int],
    dtype: Any,
    *,
    hard: bool,
) -> Bounds:
    """The bounds of n points and k clusters; numbers that can be read are checked."""
    n, k = shape
    if hard and min_size is None and max_size is None:
        min_size = 1
    if hard:
        _check_counted(weights)
    total = None if weights is None else _read(weights)
    total = float(n) if weights is None else None if total is None else total.sum()
    given = {"min_size": min_size, "max_size": max_size}
    arrays = {name: _as_sizes(name, value, k) for name, value in given.items()}
    read = {name: _read(value) for name, value in given.items()}
    for name, sizes in read.items():
        if sizes is not None:
            _check_sizes(name, np.broadcast_to(sizes, (k,)), total, hard=hard)
    low, high = (None if s is None else np.broadcast_to(s, (k,)) for s in read.values())
    if low is not None and high is not None and (low > high).any():
        j = int((low > high).argmax())
        raise ValueError(
            f"min_size must be at most max_size, got {low[j]} and {high[j]} of "
            f"cluster {j}"
        )
    found = arrays["min_size"], arrays["max_size"]
    filled = (f if a is None else a for f, a in zip((0, np.inf), found, strict=True))
    return Bounds(*(jnp.broadcast_to(jnp.asarray(a, dtype), (k,)) for a in filled))


def is_feasible(
    bounds: Bounds, weights: jax.Array, slack: float, *, hard: bool
) -> jax.Array:
    """Whether some assignment meets the bounds, to a relative slack, [], bool."""
    low, high, total = *bounds, weights.sum()
    found = (low <= high).all() & (low >= 0).all() & (total > 0)
    found &= (low.sum() <= (1 + slack) * total) & (high.sum() >= (1 - slack) * total)
    if hard:
        found &= ((weights == 0) | (weights == 1)).all()
    return found


def _as_sizes(name: str, value: ArrayLike | None, k: int) -> jax.Array | None:
    if value is None:
        return None
    sizes = as_real(name, value)
    if sizes.shape not in ((), (k,)):
        got = f"got shape {sizes.shape}"
        raise ValueError(f"{name} must be a scalar or [k] with k = {k}, {got}")
    return sizes


def _read(value: Any) -> np.ndarray | None:
    """The numbers of an argument, if they are here to be read."""
    if isinstance(value, int | float | np.generic) or is_read(value):
        return np.asarray(value, np.float64)
    return None


def _check_counted(weights: ArrayLike | None) -> None:
    read = None if weights is None else _read(weights)
    if read is not None and not np.isin(read, (0, 1)).all():
        bad = read[~np.isin(read, (0, 1))].flat[0]
        raise ValueError(
            f"weights must be 0 or 1 where sizes are numbers of points, got {bad}: "
            "other weights need a temperature"
        )


def _check_sizes(
    name: str, sizes: np.ndarray, total: float | None, *, hard: bool
) -> None:
    """Raises ValueError unless sizes alone could be those of clusters."""
    upper = name == "max_size"
    if not (sizes >= 0).all():
        raise ValueError(f"{name} must not be negative, got {sizes.min()}")
    finite = sizes[np.isfinite(sizes)]
    if hard and (finite != np.round(finite)).any():
        bad = finite[finite != np.round(finite)][0]
        raise ValueError(
            f"{name} must be a number of points, got {bad}: other sizes need a "
            "temperature"
        )
    if total is None:
        return
    # Sizes of weights are sums that were rounded.
    slack = 0 if hard else 1e-5 * total
    of = f"{total:g} ({'the points' if hard else 'the sum of weights'})"
    if not upper and not sizes.sum() <= total + slack:
        raise ValueError(f"{name} must add up to at most {of}, got {sizes.sum():g}")
    if upper and not sizes.sum() >= total - slack:
        raise ValueError(f"{name} must add up to at least {of}, got {sizes.sum():g}")
