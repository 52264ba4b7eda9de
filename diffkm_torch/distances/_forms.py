"""Which distances have a mean for a minimizer, and the form of each."""

from __future__ import annotations

from diffkm_torch.distances._bregman import Bregman, BregmanForm
from diffkm_torch.distances._distance import Distance
from diffkm_torch.distances._divergences import itakura_saito, kl_divergence
from diffkm_torch.distances._form import Form
from diffkm_torch.distances._linear import CosineForm, MahalanobisForm
from diffkm_torch.distances._mahalanobis import Mahalanobis
from diffkm_torch.distances._metrics import cosine, squared_euclidean
from diffkm_torch.distances._positive import ItakuraSaitoForm, KullbackLeiblerForm

NAMED = {
    squared_euclidean: Form(),
    cosine: CosineForm(),
    kl_divergence: KullbackLeiblerForm(),
    itakura_saito: ItakuraSaitoForm(),
}
WITH_MEANS = ", ".join([*(f.__name__ for f in NAMED), "mahalanobis and bregman"])


def form_of(distance: Distance) -> Form | None:
    """The form of a distance; None if its minimizer is no mean."""
    if isinstance(distance, Mahalanobis):
        return MahalanobisForm(distance.precision)
    if isinstance(distance, Bregman):
        return BregmanForm(distance)
    # By identity: a user's function need not be hashable.
    return next((form for f, form in NAMED.items() if f is distance), None)
