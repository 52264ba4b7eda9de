"""Maps from logits [..., k] to rows of an assignment matrix, each with its gradient."""

from diffkm_jax.assignments._softmax import hard, softmax
from diffkm_jax.assignments._straight_through import straight_through

__all__ = ["hard", "softmax", "straight_through"]
