"""Which distances have a mean for a minimizer, and the form of each."""

from __future__ import annotations

from typing import Any

import jax

from diffkm_jax.distances._bregman import Bregman, BregmanForm
from diffkm_jax.distances._divergences import itakura_saito, kl_divergence
from diffkm_jax.distances._form import Form
from diffkm_jax.distances._linear import CosineForm, MahalanobisForm
from diffkm_jax.distances._mahalanobis import Mahalanobis
from diffkm_jax.distances._metrics import cosine, squared_euclidean
from diffkm_jax.distances._positive import ItakuraSaitoForm, KullbackLeiblerForm

NAMED = {
    squared_euclidean: Form(),
    cosine: CosineForm(),
    kl_divergence: KullbackLeiblerForm(),
    itakura_saito: ItakuraSaitoForm(),
}
WITH_MEANS = ", ".join([*(f.__name__ for f in NAMED), "mahalanobis and bregman"])


def form_of(distance: Any) -> Form | None:
    """The form of a distance, as a tree; None if its minimizer is no mean."""
    if isinstance(distance, Mahalanobis):
        return MahalanobisForm(distance.precision)
    if isinstance(distance, Bregman):
        return BregmanForm(distance)
    return NAMED.get(named(distance))


def named(distance: Any) -> Any:
    """The function that a distance, as a tree, is no more than; or None."""
    if isinstance(distance, jax.tree_util.Partial):
        return None if distance.args or distance.keywords else distance.func
    return None


def embedded(distance: Any, rows: jax.Array) -> jax.Array:
    """Rows, [..., d], where a distance, a tree, takes them from: cosine on a sphere."""
    form = form_of(distance)
    return rows if form is None else form.embed(rows)


def known_form(distance: Any) -> Form:
    """The form of a distance that is known to have means."""
    form = form_of(distance)
    assert form is not None, "the caller asks first"
    return form


def plain(distance: Any) -> Any:
    """A distance as its user gave it, of the tree that was made of it."""
    return distance.func if isinstance(distance, jax.tree_util.Partial) else distance
