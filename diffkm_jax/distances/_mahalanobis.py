"""The squared Mahalanobis distance, with its precision as an array to differentiate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_floating, check_shape
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._geometry import matmul
from diffkm_jax.distances._distance import operands

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


@partial(jax.tree_util.register_dataclass, data_fields=["precision"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """What `mahalanobis` returns: a function of x, y [..., d], and a tree of arrays.

    Attributes:
        precision: P, [d, d], in inverse squared data units.
    """

    precision: Float[Array, "d d"]

    def __call__(self, x: ArrayLike, y: ArrayLike, /) -> jax.Array:
        """The squared Mahalanobis distance of `x` and `y`, [...]."""
        x, y = operands(x, y)
        self.check_size(x.shape[-1])
        p = self.precision
        dtype = accumulation_dtype(x, p)
        e = (x - y).astype(dtype)
        return jnp.sum(matmul(e, p.astype(dtype)) * e, axis=-1)

    def check_size(self, size: int) -> None:
        """Raises ValueError unless P is for vectors of that size."""
        if self.precision.shape[0] != size:
            found = f"{self.precision.shape} for vectors of size {size}"
            raise ValueError(f"precision must be [d, d], got shape {found}")


def mahalanobis(precision: Float[ArrayLike, "d d"]) -> Mahalanobis:
    """Makes the squared Mahalanobis distance, (x − y)ᵀ P (x − y), of a precision P.

    The gradient is (P + Pᵀ)(x − y) in `x`, its negative in `y`, and the outer product
    of x − y with itself in `precision`, which may be traced. A clustering by it takes
    means, as by the squared Euclidean distance, and has a gradient in `precision` too.
    Two such functions are one program: P is an array like others, not a constant.

    Args:
        precision: The inverse covariance P, [d, d], floating, in inverse squared data
            units; symmetric and positive semi-definite for a distance.

    Returns:
        A function of x, y [..., d] that returns distances [...], no unit, and raises
        what `squared_euclidean` raises. It is a tree with the leaf `precision`.

    Raises:
        TypeError: `precision` is not floating.
        ValueError: `precision` is not square, or does not fit the vectors it is given.

    Example:
        >>> distance = dk.mahalanobis(jnp.diag(jnp.array([1.0, 0.25])))
        >>> x, c = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros((1, 2))
        >>> distance(x, c).tolist(), float(dk.kmeans_loss(x, c, distance=distance))
        ([1.0, 1.0], 2.0)
        >>> loss = lambda p: dk.kmeans_loss(x, c, distance=dk.mahalanobis(p))
        >>> jax.grad(loss)(jnp.eye(2)).tolist()  # Of every point its outer product.
        [[1.0, 0.0], [0.0, 4.0]]

    Source: Mahalanobis 1936; Xing et al. 2002 (learning P for clustering),
        https://proceedings.neurips.cc/paper/2002/hash/c3e4035af2a1cde9f21e1ae1951ac80b-Abstract.html
    """
    precision = as_floating("precision", precision)
    d = precision.shape[0] if precision.ndim else 0
    check_shape("precision", precision, (d, d), "square, [d, d]")
    return Mahalanobis(precision)
