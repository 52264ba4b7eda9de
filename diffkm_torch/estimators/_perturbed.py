"""Perturbation estimators: the choice less the choice at logits of a lower cost."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from diffkm_torch._checks import as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.assignments._perturbed import to_target
from diffkm_torch.assignments._straight_through import chosen
from diffkm_torch.estimators._attach import attach, value_and_gradient
from diffkm_torch.estimators._estimator import Cost, Estimator, setting
from diffkm_torch.estimators._laws import PLACKETT_LUCE, as_law

Scalar = float | Tensor


def blackbox(*, strength: Scalar = 1.0) -> Estimator:
    """Mirrors `diffkm_jax.estimators.blackbox`.

    The slope of the cost is by autograd: `torch.func` cannot transform it.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [9.0, 0.0]], requires_grad=True)
        >>> costs = es.blackbox(strength=2.0).expect(lambda rows: rows[:, 0], logits)
        >>> costs.mean().backward()
        >>> logits.grad.tolist()  # 0.5 / 2
        [[0.25, -0.25], [0.0, 0.0]]
    """
    settings = {"strength": setting("strength", strength)}
    return Estimator("blackbox", _blackbox, settings, num_draws=0, discrete=True)


def _blackbox(f: Cost, logits: Tensor, noise: Tensor, *, strength: Scalar) -> Tensor:
    del noise
    return _to_target(f, logits, None, strength, scaled=True)


def implicit_mle(
    *, strength: Scalar = 1.0, scaled: bool = False, size: int = 1
) -> Estimator:
    """Mirrors `diffkm_jax.estimators.implicit_mle`.

    The slope of the cost is by autograd: `torch.func` cannot transform it.

    Example:
        >>> record, noise = es.implicit_mle(strength=2.0), torch.tensor([[1.0, 0.0]])
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> (0.25 * record.expect(lambda row: row[0], logits, noise)).backward()
        >>> logits.grad.tolist()  # The map would give zero.
        [0.25, -0.25]
    """
    settings = {"strength": setting("strength", strength)}
    of = as_law(size, PLACKETT_LUCE)
    rule = partial(_implicit_mle, scaled=bool(scaled), size=size)
    name = "implicit_mle_scaled" if scaled else "implicit_mle"
    return Estimator(name, rule, settings, 1, False, *of)


def _implicit_mle(
    f: Cost, logits: Tensor, noise: Tensor, *, strength: Scalar, **static: Any
) -> Tensor:
    return _to_target(f, logits, noise[0], strength, **static)


def _to_target(
    f: Cost,
    logits: Tensor,
    noise: Tensor | None,
    strength: Scalar,
    *,
    scaled: bool,
    size: int = 1,
) -> Tensor:
    costs, g = value_and_gradient(f, chosen(logits, noise, size))
    strength = as_scalar("strength", strength, accumulation_dtype(logits, noise))
    gradient = to_target(logits, noise, strength, g, scaled, size)
    return attach(costs, logits, gradient)
