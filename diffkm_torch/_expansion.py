"""A problem as a pass by matrix products takes it: its form, its expanded centroids."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from diffkm_torch._geometry import fill_inactive
from diffkm_torch._problem import Problem
from diffkm_torch.distances._form import Expansion, Form
from diffkm_torch.distances._forms import form_of


class Given(NamedTuple):
    """What points are compared with, in the accumulation dtype.

    Attributes:
        form: Of the distance.
        centroids: [k, d], the inactive ones filled.
        rows: The same, embedded.
        anchor: m, [1, d]: a row that stands for what is not finite.
    """

    form: Form
    centroids: Tensor
    rows: Tensor
    anchor: Tensor


def given(problem: Problem, centroids: Tensor) -> Given | None:
    """The centroids of a problem, if its distance has a form."""
    form, active = form_of(problem.distance), problem.active
    if form is None:
        return None
    c = centroids.to(problem.dtype(centroids))
    m = form.anchor(form.embed(c), active)
    c = fill_inactive(c, active, m)
    return Given(form, c, form.embed(c), m)


def expand(problem: Problem, form: Form, rows: Tensor, m: Tensor) -> Expansion:
    """Embedded centroids about m, with what rounding took of them."""
    b = rows - m
    if problem.remainder is not None and form.is_invariant:
        b = b + problem.remainder.to(b.dtype)
    return form.expand(rows, b, m)
