"""Subsets of a size, each as likely as the product of its exp(logits)."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkm_torch._checks import as_logits, as_noise, as_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._numerics import log_sum
from diffkm_torch.assignments._straight_through import chosen, with_gradient_of
from diffkm_torch.assignments._top_k import best, check_size, scores_of


def subset_marginals(logits: Tensor, *, size: int, tau: float | Tensor = 1.0) -> Tensor:
    """Mirrors `diffkm_jax.subset_marginals`, by sums over what is before and after."""
    logits = as_logits(logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    return marginals(logits, tau, size).to(logits.dtype)


def straight_through_top_k(
    logits: Tensor, *, size: int, tau: float | Tensor = 1.0
) -> Tensor:
    """Mirrors `diffkm_jax.straight_through_top_k`: the best, as marginals move."""
    logits = as_logits(logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits))
    return with_gradient_of(best(logits, size), marginals(logits, tau, size))


def simple(
    logits: Tensor, noise: Tensor, *, size: int, tau: float | Tensor = 1.0
) -> Tensor:
    """Mirrors `diffkm_jax.simple`: a subset cluster by cluster, marginals' gradient."""
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    check_size(size, logits)
    tau = as_scalar("tau", tau, accumulation_dtype(logits, noise))
    soft = marginals(logits, tau, size)
    return with_gradient_of(drawn_subset(size, logits, noise), soft)


def marginals(logits: Tensor, tau: Tensor, size: int) -> Tensor:
    """The rows of `subset_marginals`, in the dtype of tau.

    A cluster is in with r others before it and size − 1 − r after it.
    """
    z, out, certain, wanted, undefined = scores_of(logits.to(tau.dtype), tau, size)
    after = log_sums(z, out, size)
    before = log_sums(z.flip(-1), out.flip(-1), size)[::-1]
    total = after[0].gather(-1, wanted)[..., 0]
    # Of r before and wanted − 1 − r after.
    r = torch.arange(size, device=z.device)
    others = (wanted - 1 - r).clamp(min=0)
    rows = []
    for i in range(z.shape[-1]):
        with_it = before[i][..., :size] + after[i + 1].gather(-1, others)
        with_it = with_it.masked_fill(r >= wanted, -torch.inf)
        log_p = z[..., i] + log_sum(with_it, -1) - total
        rows.append(log_p.masked_fill(out[..., i] | undefined[..., 0], 0).exp())
    p = torch.where(out, certain.to(z.dtype), torch.stack(rows, -1))
    return p.masked_fill(undefined, torch.nan)


def log_sums(z: Tensor, out: Tensor, size: int) -> list[Tensor]:
    """The logarithms of the elementary symmetric polynomials of exp(z).

    Entry i, [..., r], is that of the sum over all subsets of r of the clusters from i
    on, but for those that are out; r from 0 to `size`.
    """
    start = torch.full((*z.shape[:-1], size + 1), -torch.inf, dtype=z.dtype)
    sums = [start.to(z.device).index_fill(-1, torch.tensor(0, device=z.device), 0)]
    for i in reversed(range(z.shape[-1])):
        after = sums[0]
        chosen = z[..., i, None] + after[..., :-1]
        chosen = chosen.masked_fill(out[..., i, None], -torch.inf)
        more = log_sum(torch.stack([after[..., 1:], chosen]), 0)
        sums.insert(0, torch.cat([after[..., :1], more], -1))
    return sums


@torch.no_grad()
def drawn_subset(size: int, logits: Tensor, noise: Tensor) -> Tensor:
    """A subset drawn with the probabilities of `simple`, as rows of the logits."""
    if size == 1:
        return chosen(logits, noise)
    dtype = accumulation_dtype(logits, noise)
    one = torch.ones((), dtype=dtype, device=logits.device)
    z = logits.to(dtype).masked_fill(noise.isneginf(), -torch.inf)
    z, out, certain, wanted, undefined = scores_of(z, one, size)
    sums, wanted = log_sums(z, out, size), wanted[..., 0]
    waiting = (-noise.to(dtype)).exp()
    rows = []
    for i in range(z.shape[-1]):
        fewer = (wanted - 1).clamp(min=0)
        rest = sums[i + 1].gather(-1, fewer[..., None])[..., 0]
        total = sums[i].gather(-1, wanted[..., None])[..., 0]
        impossible = out[..., i] | (wanted == 0) | total.isneginf()
        p = (z[..., i] + rest - total).masked_fill(impossible, -torch.inf).exp()
        # exp(−noise) is an exponential variable, below this with probability p.
        is_in = (waiting[..., i] < -torch.log1p(-p.clamp(max=1))) | (p >= 1)
        wanted = wanted - is_in.to(wanted.dtype)
        rows.append(is_in)
    found = (torch.stack(rows, -1) | certain).to(logits.dtype)
    return torch.where(undefined, best(logits, size), found)
