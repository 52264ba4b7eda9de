"""What a quantizer returns, and how much of its codebook that uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jax import export

from diffkm_jax._numerics import unit_of
from diffkm_jax.quantizers._lines import lines_of_quantized

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Quantized(NamedTuple):
    """Points replaced by values of a codebook, and the losses that train it.

    Both losses sum over the points; at nearest centroids their value is `kmeans_loss`.
    A code is a centroid of the codebook. Of several codebooks, as of
    `residual_quantize` and `product_quantize`, labels have their axes last, [..., s],
    and counts, usage and perplexity first, [s, k] and [s].

    Attributes:
        values: What stands for the points, [..., d], in data units.
        labels: Index of the code of every point, [...], int32.
        codebook_loss: Σ w distance(x, c), if squared ‖x − c‖², [], in the unit of the
            distance; its gradient moves the centroids and not the points.
        commitment_loss: The same, []; its gradient moves the points and not the
            centroids.
        counts: Weight of the points of every code, [k], accumulation dtype, in the unit
            of the weights, without gradient. A point whose weight, or distance to its
            code, is not finite has no part in it: where their sum is below the total
            weight, there are such points, and both losses say so.
    """

    values: Float[Array, "*batch d"]
    labels: Int[Array, "*batch"]
    codebook_loss: Float[Array, ""]
    commitment_loss: Float[Array, ""]
    counts: Float[Array, " k"]

    @property
    def usage(self) -> Float[Array, ""]:
        """Share of the k codes that have a point of positive weight, [].

        Inactive clusters are among the k: times k / `active.sum()` it is of the others.
        """
        return jnp.mean(self.counts > 0, axis=-1, dtype=self.counts.dtype)

    @property
    def perplexity(self) -> Float[Array, ""]:
        """exp(−Σ p log p) with p the counts over their sum, [], from 1 to k.

        The number of codes that, used evenly, would have this entropy. NaN where no
        point has weight.
        """
        # A sum of weights may leave the range of its dtype.
        share = self.counts / unit_of(jnp.max(self.counts, axis=-1, keepdims=True))
        p = share / jnp.sum(share, axis=-1, keepdims=True)
        return jnp.exp(-jnp.sum(p * jnp.log(jnp.where(p == 0, 1, p)), axis=-1))

    def __repr__(self) -> str:
        return lines_of_quantized(self)


export.register_namedtuple_serialization(Quantized, serialized_name="diffkm.Quantized")
