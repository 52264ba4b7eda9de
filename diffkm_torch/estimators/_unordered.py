"""Draws without replacement, weighed as a set: by a sum over their orders."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import torch
from torch import Tensor

from diffkm_torch._checks import check_integer
from diffkm_torch.assignments._straight_through import perturbed
from diffkm_torch.estimators._attach import attach
from diffkm_torch.estimators._enumeration import probabilities
from diffkm_torch.estimators._estimator import Cost, Estimator
from diffkm_torch.estimators._score_function import score, wide

MOST = 6


def unordered_set(*, num_samples: int = 3) -> Estimator:
    """Mirrors `diffkm_jax.estimators.unordered_set`, by a sum over all orders.

    Example:
        >>> def mean(z):  # Of all three clusters, in any order.
        ...     noise = torch.tensor([[0.0, 2.0, 1.0]])
        ...     record = es.unordered_set(num_samples=3)
        ...     return record.expect(lambda row: row[0] ** 2, z, noise)
        >>> gradient, value = torch.func.grad_and_value(mean)(torch.zeros(3))
        >>> f"{value:.3f}", [f"{g:.3f}" for g in gradient]
        ('0.333', ['0.222', '-0.111', '-0.111'])
    """
    check_integer("num_samples", num_samples, minimum=2, maximum=MOST)
    rule = partial(_unordered_set, num_samples=num_samples)
    return Estimator("unordered_set", rule)


def _unordered_set(
    f: Cost, logits: Tensor, noise: Tensor, *, num_samples: int
) -> Tensor:
    k = logits.shape[-1]
    if num_samples > k:
        raise ValueError(
            f"num_samples must be at most the number of clusters {k}, got {num_samples}"
        )
    z = perturbed(logits.detach(), noise[0].detach())
    labels = z.topk(num_samples, -1).indices
    draws = [
        torch.nn.functional.one_hot(label, k).to(logits.dtype)
        for label in labels.unbind(-1)
    ]
    found = [f(row) for row in draws]
    shape = tuple(labels.shape[:-1])
    if tuple(found[0].shape) != shape:
        raise ValueError(
            "f must return a cost of every row for unordered_set, of shape "
            f"{shape}, got {tuple(found[0].shape)}"
        )
    p = probabilities(logits)
    of_set = p.gather(-1, labels)
    outside = p.scatter(-1, labels, 0).sum(-1)
    costs = torch.stack([wide(cost) for cost in found])

    def orders(*begun: int) -> Tensor:
        """The sum, over orders that go on after some, of products of 1/(1 − p(before)).

        Of those that begin with `begun`, whose own factors are left out.
        """
        rest = [i for i in range(num_samples) if i not in begun]
        total = torch.zeros_like(outside)
        tiny = torch.finfo(p.dtype).tiny
        for order in permutations(rest):
            product = torch.ones_like(outside)
            for place in range(len(order)):
                left = outside + of_set[..., list(order[place:])].sum(-1)
                product = product / left.clamp_min(tiny)
            total = total + product
        return total

    everything = orders()
    value, estimate = torch.zeros_like(costs[0]), torch.zeros_like(p)
    for s in range(num_samples):
        begun = orders(s)
        weight = begun / everything
        baseline = of_set[..., s] * costs[s]
        for t in range(num_samples):
            if t != s:
                baseline = baseline + orders(s, t) / begun * costs[t]
        # Its derivative in the logits is the estimate, and in the costs the weight.
        value = value + weight.detach() * costs[s]
        signal = (weight * (costs[s] - baseline)).to(p.dtype)
        estimate = estimate + signal[..., None] * score(logits, draws[s])
    estimate = estimate.masked_fill(logits.isneginf(), 0)
    return attach(value.to(found[0].dtype), logits, estimate)
