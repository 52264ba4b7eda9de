"""A problem as a pass by matrix products takes it: its form, its expanded centroids."""

from __future__ import annotations

from typing import NamedTuple

import jax

from diffkm_jax._geometry import about, fill_inactive
from diffkm_jax._problem import Problem
from diffkm_jax.distances._form import Expansion, Form
from diffkm_jax.distances._forms import known_form


class Expanded(NamedTuple):
    """What a block of points is compared with, in the accumulation dtype.

    Attributes:
        form: Of the distance.
        given: The centroids, [k, d], the inactive ones filled.
        rows: The same, embedded.
        expansion: The same, expanded about an anchor in the data.
    """

    form: Form
    given: jax.Array
    rows: jax.Array
    expansion: Expansion

    @property
    def anchor(self) -> jax.Array:
        """The anchor, [1, d]: a row that stands for what is not finite."""
        return self.expansion.anchor


def expand(problem: Problem, centroids: jax.Array) -> Expanded:
    """The centroids of a problem whose distance has a form."""
    form, active = known_form(problem.distance), problem.active
    c = centroids.astype(problem.dtype(centroids))
    m = form.anchor(form.embed(c), active)
    c = fill_inactive(c, active, m)
    rows = form.embed(c)
    b = about(m, rows, problem.remainder if form.is_invariant else None)
    return Expanded(form, c, rows, form.expand(rows, b, m))
