"""Vector quantization: the mirror of `diffkm_jax.quantizers`, by detach and autograd."""

from diffkm_torch.quantizers._quantize import (
    Method,
    Quantized,
    nsvq,
    quantize,
    rotation_trick,
    straight_through_vector,
)

__all__ = [
    "Method",
    "Quantized",
    "nsvq",
    "quantize",
    "rotation_trick",
    "straight_through_vector",
]
