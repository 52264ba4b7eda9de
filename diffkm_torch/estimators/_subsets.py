"""Estimators of draws of several clusters, biased and of one evaluation of the cost."""

from __future__ import annotations

from torch import Tensor

import diffkm_torch.assignments as maps
from diffkm_torch.estimators._estimator import Estimator, setting, through
from diffkm_torch.estimators._laws import CONDITIONAL, PLACKETT_LUCE, as_law

Scalar = float | Tensor


def gumbel_top_k(*, size: int, tau: Scalar = 1.0, hard: bool = False) -> Estimator:
    """Mirrors `diffkm_jax.estimators.gumbel_top_k`.

    Example:
        >>> f, noise = lambda row: row[0] * row[1], torch.tensor([[2.0, 1.0, 0.0]])
        >>> es.gumbel_top_k(size=2, hard=True).expect(f, torch.zeros(3), noise).item()
        1.0
    """
    of = as_law(size, PLACKETT_LUCE)
    rule = through(maps.gumbel_top_k, size=of.size, hard=bool(hard))
    name = "gumbel_top_k_hard" if hard else "gumbel_top_k"
    return Estimator(name, rule, {"tau": setting("tau", tau)}, 1, False, *of)


def simple(*, size: int, tau: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.simple`.

    Example:
        >>> record, noise = es.simple(size=2), torch.tensor([[-2.0, 3.0, 1.0]])
        >>> def first(z):  # The draw is of the other two.
        ...     return record.expect(lambda row: row[0], z, noise)
        >>> [f"{g:.3f}" for g in torch.func.grad(first)(torch.zeros(3))]
        ['0.222', '-0.111', '-0.111']
    """
    of = as_law(size, CONDITIONAL)
    rule = through(maps.simple, size=of.size)
    return Estimator("simple", rule, {"tau": setting("tau", tau)}, 1, True, *of)
