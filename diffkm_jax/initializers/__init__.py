"""Where a fit starts: rows of the data, drawn at random."""

from diffkm_jax.initializers._kmeans_parallel import kmeans_parallel
from diffkm_jax.initializers._kmeans_plus_plus import kmeans_plus_plus
from diffkm_jax.initializers._random_points import random_points

__all__ = ["kmeans_parallel", "kmeans_plus_plus", "random_points"]
