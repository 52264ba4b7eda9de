"""Norms of a difference, squares of norms, and the cosine distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from diffkm_jax._numerics import polar, safe_sqrt
from diffkm_jax.distances._distance import operands

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def squared_euclidean(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The squared Euclidean distance, Σ (x − y)², from the differences themselves.

    The gradient is 2 (x − y) in `x` and its negative in `y`.

    Args:
        x: Vectors, [..., d], real, in data units.
        y: Vectors, [..., d], real, in data units; broadcasts against `x`.

    Returns:
        Distances, [...], in squared data units, float64 if either argument is, else
        float32.

    Raises:
        TypeError: `x` or `y` is not real.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([3.0, 4.0]), jnp.zeros(2)
        >>> value, gradient = jax.value_and_grad(dk.squared_euclidean)(x, y)
        >>> float(value), gradient.tolist()
        (25.0, [6.0, 8.0])

    Source: Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489
    """
    x, y = operands(x, y)
    return jnp.sum((x - y) ** 2, axis=-1)


def euclidean(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The Euclidean distance, ‖x − y‖.

    The gradient is the unit vector (x − y)/‖x − y‖ in `x` and its negative in `y`;
    at x = y, where there is none, it is zero.

    Args:
        x: Vectors, [..., d], real, in data units.
        y: Vectors, [..., d], real, in data units; broadcasts against `x`.

    Returns:
        Distances, [...], in data units, float64 if either argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not real.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> points = jnp.array([[0.0, 2.0], [0.0, 0.0]])  # The second is at y.
        >>> slope = jax.grad(lambda x: jnp.sum(dk.euclidean(x, jnp.zeros(2))))
        >>> slope(points).tolist()
        [[0.0, 1.0], [0.0, 0.0]]

    Source: Bradley, Mangasarian & Street 1996, on clustering by sums of norms,
        https://proceedings.neurips.cc/paper_files/paper/1996/hash/f4573fc71c731d5c362f0d7860945b88-Abstract.html
    """
    return safe_sqrt(squared_euclidean(x, y))


def manhattan(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The Manhattan or L1 distance, Σ |x − y|.

    The gradient is sign(x − y) in `x` and its negative in `y`; it is zero in a
    coordinate in which the two are equal.

    Args:
        x: Vectors, [..., d], real, in data units.
        y: Vectors, [..., d], real, in data units; broadcasts against `x`.

    Returns:
        Distances, [...], in data units, float64 if either argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not real.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> x, y = jnp.array([3.0, -4.0, 0.0]), jnp.zeros(3)
        >>> value, gradient = jax.value_and_grad(dk.manhattan)(x, y)
        >>> float(value), gradient.tolist()
        (7.0, [1.0, -1.0, 0.0])

    Source: Bradley, Mangasarian & Street 1996 (k-medians),
        https://proceedings.neurips.cc/paper_files/paper/1996/hash/f4573fc71c731d5c362f0d7860945b88-Abstract.html
    """
    x, y = operands(x, y)
    difference = x - y
    # Not abs: its gradient at 0 is 1 here and 0 in torch.
    return jnp.sum(difference * lax.stop_gradient(jnp.sign(difference)), axis=-1)


def cosine(
    x: Float[ArrayLike, "*batch d"], y: Float[ArrayLike, "*batch d"]
) -> Float[Array, "*batch"]:
    """The cosine distance, 1 − x·y / (‖x‖ ‖y‖).

    With unit vectors x̂, ŷ it is ½ ‖x̂ − ŷ‖². The gradient in `x` is
    −(ŷ − (x̂·ŷ) x̂)/‖x‖, and likewise in `y`. A zero vector has distance 1 to
    everything, and gradient zero. A clustering by it is spherical k-means: its means
    are those of unit vectors, normalized; half of squared Euclidean on unit vectors.

    Args:
        x: Vectors, [..., d], real, any unit.
        y: Vectors, [..., d], real, any unit; broadcasts against `x`.

    Returns:
        Distances, [...], between 0 and 2 up to rounding, no unit, float64 if either
        argument is, else float32.

    Raises:
        TypeError: `x` or `y` is not real.
        ValueError: The last axes differ, or the others do not broadcast.

    Example:
        >>> y = jnp.array([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> dk.cosine(jnp.array([2.0, 0.0]), y).tolist()  # Lengths do not matter.
        [0.0, 1.0, 2.0]

    Source: Dhillon & Modha 2001 (spherical k-means),
        https://doi.org/10.1023/A:1007612920971
    """
    (x_scale, _, x), (y_scale, _, y) = map(polar, operands(x, y))
    # Not 1 − x̂·ŷ, which is left with nothing but rounding where the two are close.
    distance = 0.5 * jnp.sum((x - y) ** 2, axis=-1)
    zero = (x_scale == 0) | (y_scale == 0)
    # A NaN in the other vector stays one.
    return jnp.where(zero[..., 0], 1 + (distance - distance), distance)
