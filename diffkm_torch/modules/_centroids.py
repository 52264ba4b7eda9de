"""The centroids of a layer, and how layers print them and functions."""

from __future__ import annotations

from torch import Tensor

from diffkm_torch._checks import as_real, check_shape
from diffkm_torch.distances import Distance
from diffkm_torch.distances._forms import WITH_MEANS, form_of


def as_centroids(centroids: Tensor) -> Tensor:
    """The centroids, checked: floating, [k, d], k at least 1."""
    centroids = as_real("centroids", centroids)
    check_shape("centroids", centroids, (None, None), "[k, d]")
    if len(centroids) == 0:
        shape = tuple(centroids.shape)
        raise ValueError(f"centroids must have at least one row, got shape {shape}")
    return centroids


def as_codebook(centroids: Tensor, distance: Distance) -> Tensor:
    """Centroids as moving averages keep them: of unit length, if cosine."""
    form = form_of(distance)
    if form is None:
        expected = f"one that has means for decay ({WITH_MEANS})"
        raise ValueError(f"distance must be {expected}, got {name_of(distance)}")
    return form.retract(centroids, centroids)


def sizes(centroids: Tensor) -> str:
    """What `print` shows of their shape."""
    return "k={}, d={}".format(*centroids.shape)


def name_of(function: object) -> str:
    """The name of a function, or of the kind of an object."""
    return getattr(function, "__name__", type(function).__name__)
