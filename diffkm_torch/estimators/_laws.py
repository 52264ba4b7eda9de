"""Laws of subsets of a size: how likely each is, and a draw by noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import check_integer
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import shown
from diffkm_torch._numerics import log_sum
from diffkm_torch.assignments._straight_through import chosen
from diffkm_torch.assignments._subsets import drawn_subset, log_sums, marginals
from diffkm_torch.assignments._top_k import scores_of

PLACKETT_LUCE, CONDITIONAL = "plackett_luce", "conditional_bernoulli"
# Of subsets whose orders are summed over: 2 to that power.
MOST = 12


class Law(NamedTuple):
    """Of a draw how many clusters it has, and if several, how they are drawn."""

    size: int = 1
    name: str = PLACKETT_LUCE

    @property
    def is_conditional(self) -> bool:
        """Whether of several clusters, in proportion to the product of exp(logits)."""
        return self.size > 1 and self.name == CONDITIONAL

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """A draw by the noise of one row, [..., k], in the dtype of the logits."""
        if self.is_conditional:
            return drawn_subset(self.size, logits, noise)
        return chosen(logits, noise, self.size)

    def log_probability(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """Of a draw, [...], float32 or wider; −∞ where it has an excluded cluster."""
        if self.size > MOST and not self.is_conditional:
            raise ValueError(
                f"size must be at most {MOST} where the probability of a subset under "
                f"{PLACKETT_LUCE!r} is needed, a sum over orders, got {self.size}: "
                f"that under {CONDITIONAL!r} has no limit"
            )
        one = torch.ones((), dtype=accumulation_dtype(logits), device=logits.device)
        scores = scores_of(logits.to(one.dtype), one, self.size)
        z, out, certain, wanted, undefined = scores
        if self.is_conditional:
            sums = log_sums(z, out, self.size)[0]
            log_p = (z * (drawn > 0)).sum(-1) - sums.gather(-1, wanted)[..., 0]
        else:
            log_p = _over_orders(z.masked_fill(out, -torch.inf), drawn, self.size)
        # Exactly those that are certain, and none that is excluded.
        possible = (certain == (out & (drawn > 0))).all(-1)
        log_p = log_p.masked_fill(~possible, -torch.inf)
        return log_p.masked_fill(undefined[..., 0], torch.nan)

    def score(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """The derivative in the logits of log P(D) of several, float32 or wider."""
        acc = accumulation_dtype(logits)
        if self.is_conditional:
            one = torch.ones((), dtype=acc, device=logits.device)
            found = drawn.to(acc) - marginals(logits, one, self.size)
        else:
            found = torch.func.grad(lambda z: self.log_probability(z, drawn).sum())(
                logits.to(acc)
            )
        return found.masked_fill(logits.isneginf(), 0)


CATEGORICAL = Law()


def as_law(size: int, law: str) -> Law:
    """A checked law, the same for all of a single cluster."""
    check_integer("size", size, minimum=1)
    if law not in (PLACKETT_LUCE, CONDITIONAL):
        raise ValueError(
            f"law must be {PLACKETT_LUCE!r} or {CONDITIONAL!r}, got {shown(law)}"
        )
    return Law(size, law) if size > 1 else CATEGORICAL


def _over_orders(z: Tensor, drawn: Tensor, size: int) -> Tensor:
    """The log-probability that the clusters of a draw come first, in any order.

    By a recursion: the last of a part came with p/(1 − what came before it). What is
    −∞ need not come.
    """
    labels = drawn.sort(dim=-1, descending=True, stable=True).indices[..., :size]
    members = z.gather(-1, labels).unbind(-1)
    outside = z.masked_fill(drawn > 0, -torch.inf)
    log_p: dict[frozenset[int], Tensor] = {frozenset(): torch.zeros_like(members[0])}
    for _ in range(size):
        grown: dict[frozenset[int], list[Tensor]] = {}
        for part, before in log_p.items():
            left = [i for i in range(size) if i not in part]
            scores = torch.stack([*(members[i] for i in left), *outside.unbind(-1)])
            rest = log_sum(scores, 0)
            rest = rest.masked_fill(rest.isneginf(), 0)
            done = torch.stack([members[i].isneginf() for i in left]).all(0)
            for i in left:
                step = members[i] - rest
                # What need not come does so in one order.
                step = step.masked_fill(done, 0 if i == left[0] else -torch.inf)
                grown.setdefault(part | {i}, []).append(before + step)
        log_p = {part: log_sum(torch.stack(t), 0) for part, t in grown.items()}
    return log_p[frozenset(range(size))]
