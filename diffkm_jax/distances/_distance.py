"""What a distance is, and what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_real
from diffkm_jax._dtypes import accumulation_dtype

if TYPE_CHECKING:
    from jax.typing import ArrayLike


class Distance(Protocol):
    """A function of two arrays [..., d] that returns distances [...].

    One of your own is exact, in blocks of points, and has every derivative; but it is
    evaluated for every pair, several times as slow as the functions of this module.
    """

    def __call__(self, x: ArrayLike, y: ArrayLike, /) -> jax.Array:
        """The distance of `x` and `y` over the last axis."""
        ...


def operands(x: ArrayLike, y: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The two, checked, in the accumulation dtype and with as many axes each."""
    x, y = as_real("x", x), as_real("y", y)
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-1]:
        shapes = f"{x.shape} and {y.shape}"
        raise ValueError(f"x and y must share their last axis d, got shapes {shapes}")
    dtype = accumulation_dtype(x, y)
    try:
        ndim = len(jnp.broadcast_shapes(x.shape, y.shape))
    except ValueError as error:
        shapes = f"{x.shape} and {y.shape}"
        raise ValueError(f"x and y must broadcast, got shapes {shapes}") from error
    # Not broadcast, so that what depends on one alone is not computed for every pair.
    x, y = (jnp.expand_dims(a, tuple(range(ndim - a.ndim))) for a in (x, y))
    return x.astype(dtype), y.astype(dtype)
