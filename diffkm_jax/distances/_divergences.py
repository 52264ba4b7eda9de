"""Bregman divergences of positive vectors, which are not symmetric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkm_jax.distances._distance import operands
from diffkm_jax.distances._ratios import sum_itakura_saito, sum_kullback_leibler

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def kl_divergence(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The generalized Kullback–Leibler divergence, Σ x log(x/y) − x + y.

    On probability vectors it is the Kullback–Leibler divergence of `x` from `y`, in
    nats. The gradient is log(x/y) in `x` and 1 − x/y in `y`; a coordinate with x = 0
    contributes y, and its gradient in `x` (truly −∞) is zero. The mean of points that
    are all 0 there is 0 too, and is a legal `y`: there x > 0 is infinitely far. Starts
    drawn from sparse data have such zeros: smooth them.

    Args:
        x: Non-negative vectors, [..., d], real, any unit; the points.
        y: Non-negative vectors, [..., d], real, in the unit of `x`; the centroids.

    Returns:
        Divergences, [...], in nats times the unit of `x`, float64 if either argument
        is, else float32; infinite where y = 0 < x.

    Raises:
        TypeError: `x` or `y` is not real.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
        >>> print(f"{dk.kl_divergence(x, y):.3f}")  # log 2
        0.693
        >>> jax.grad(dk.kl_divergence, argnums=1)(x, y).tolist()
        [-1.0, 1.0]

    Source: Banerjee et al. 2005, https://jmlr.org/papers/v6/banerjee05b.html
    """
    return sum_kullback_leibler(*operands(x, y))


def itakura_saito(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The Itakura–Saito divergence, Σ x/y − log(x/y) − 1.

    The gradient is 1/y − 1/x in `x` and (y − x)/y² in `y`.

    Args:
        x: Positive vectors, [..., d], real, any unit; the points (power spectra).
        y: Positive vectors, [..., d], real, in the unit of `x`; the centroids.

    Returns:
        Divergences, [...], no unit, float64 if either argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not real.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([[2.0], [200.0]]), jnp.array([[1.0], [100.0]])
        >>> [f"{v:.3f}" for v in dk.itakura_saito(x, y)]  # 1 - log 2, at any scale
        ['0.307', '0.307']

    Source: Banerjee et al. 2005, https://jmlr.org/papers/v6/banerjee05b.html
    """
    return sum_itakura_saito(*operands(x, y))
