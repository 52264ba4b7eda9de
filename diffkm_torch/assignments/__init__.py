"""Maps from logits [..., k] to rows: the mirror of `diffkm_jax.assignments`."""

from diffkm_torch.assignments._softmax import hard, softmax
from diffkm_torch.assignments._straight_through import straight_through

__all__ = ["hard", "softmax", "straight_through"]
