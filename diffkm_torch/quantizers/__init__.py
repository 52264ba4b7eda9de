"""Mirrors `diffkm_jax.quantizers`, by autograd."""

from diffkm_torch.quantizers._finite_scalar import (
    ScalarQuantized,
    finite_scalar_quantize,
    finite_scalar_values,
)
from diffkm_torch.quantizers._lookup_free import (
    LookupFreeQuantized,
    lookup_free_quantize,
    lookup_free_values,
)
from diffkm_torch.quantizers._nsvq import diveq, nsvq
from diffkm_torch.quantizers._quantize import (
    Method,
    Quantized,
    quantize,
    rotation_trick,
    straight_through_vector,
)
from diffkm_torch.quantizers._residual import product_quantize, residual_quantize

__all__ = [
    "LookupFreeQuantized",
    "Method",
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
