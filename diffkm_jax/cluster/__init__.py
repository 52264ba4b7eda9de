"""K-means with scikit-learn's interface."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        'diffkm_jax.cluster needs scikit-learn: pip install "diffkm[sklearn]"'
    ) from error

from diffkm_jax.cluster._kmeans import KMeans

__all__ = ["KMeans"]
