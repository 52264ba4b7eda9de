"""Vector quantization: the nearest centroid as a value, with a declared gradient.

The nearest centroid of a point is constant between ties, so that a loss of it tells an
encoder nothing. `quantize` takes the rule that puts a gradient there as a function;
what moves the centroids is their own loss, which is k-means'.
"""

from diffkm_jax.quantizers._finite_scalar import (
    ScalarQuantized,
    finite_scalar_quantize,
    finite_scalar_values,
)
from diffkm_jax.quantizers._lookup_free import (
    LookupFreeQuantized,
    lookup_free_quantize,
    lookup_free_values,
)
from diffkm_jax.quantizers._nsvq import diveq, nsvq
from diffkm_jax.quantizers._quantize import quantize
from diffkm_jax.quantizers._quantized import Quantized
from diffkm_jax.quantizers._residual import product_quantize, residual_quantize
from diffkm_jax.quantizers._vector_maps import rotation_trick, straight_through_vector

__all__ = [
    "LookupFreeQuantized",
    "Quantized",
    "ScalarQuantized",
    "diveq",
    "finite_scalar_quantize",
    "finite_scalar_values",
    "lookup_free_quantize",
    "lookup_free_values",
    "nsvq",
    "product_quantize",
    "quantize",
    "residual_quantize",
    "rotation_trick",
    "straight_through_vector",
]
