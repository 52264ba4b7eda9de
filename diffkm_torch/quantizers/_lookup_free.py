"""Lookup-free quantization: the signs of coordinates, and the entropies of codes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffkm_torch._checks import as_real, as_scalar, check_integer, flattened
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._geometry import fill_inert, fill_rows
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import quotient
from diffkm_torch.quantizers._finite_scalar import as_float_dtype, as_labels
from diffkm_torch.quantizers._lines import lines_of_signs
from diffkm_torch.quantizers._quantize import straight_through_vector

MOST_BITS = 24


class LookupFreeQuantized(NamedTuple):
    """Mirrors `diffkm_jax.LookupFreeQuantized`: signs, labels, losses, entropies."""

    values: Tensor
    labels: Tensor
    commitment_loss: Tensor
    entropy_loss: Tensor
    sample_entropy: Tensor
    batch_entropy: Tensor

    def __repr__(self) -> str:
        return lines_of_signs(self)


@hinted
def lookup_free_quantize(
    points: Tensor,
    *,
    temperature: float | Tensor = 0.01,
    diversity_weight: float | Tensor = 1.0,
    weights: Tensor | None = None,
    group_size: int | None = None,
) -> LookupFreeQuantized:
    """Mirrors `diffkm_jax.lookup_free_quantize`, by enumeration of all codes."""
    points = as_real("points", points)
    shape = tuple(points.shape)
    if points.ndim == 0 or not 1 <= shape[-1] <= 31:
        found = f"got shape {shape}"
        raise ValueError(f"points must be [..., d] with d from 1 to 31, {found}")
    rows, w = flattened(points, weights)
    (n, d), acc = rows.shape, accumulation_dtype(rows, w)
    w = None if w is None else w.to(acc)
    size = _as_group_size(group_size, d)
    t = as_scalar("temperature", temperature, acc)
    factor = as_scalar("diversity_weight", diversity_weight, acc, zero=True)
    bits = points.detach() > 0
    codes = bits.to(points.dtype) * 2 - 1
    places = 2 ** torch.arange(d, device=points.device)
    labels = (bits * places).sum(-1)
    fixed = codes.reshape(n, d).to(acc)
    x = fill_inert(rows.to(acc), w, fixed)
    w = x.new_ones(n) if w is None else w
    with torch.no_grad():
        costs = _entropies(x, t).sum(-1) + ((x - fixed) ** 2).sum(-1)
    x = fill_rows(x, w, costs, fixed)
    commitment_loss = (w * ((x - fixed) ** 2).sum(-1)).sum()
    w = w / _or_one(w.detach().max())
    one = (w * _entropies(x, t).sum(-1)).sum() / _or_one(w.sum())
    groups = [_probabilities(part, t) for part in x.split(size, dim=1)]
    sums = [(w[:, None] * p).sum(0) for p in groups]
    whole = torch.stack([_entropy(a / _or_one(a.sum())) for a in sums]).sum()
    values = straight_through_vector(points, codes)
    return LookupFreeQuantized(
        values, labels, commitment_loss, one - factor * whole, one, whole
    )


@hinted
def lookup_free_values(
    labels: Tensor, *, d: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Mirrors `diffkm_jax.lookup_free_values`: the bits of labels, as −1 and 1."""
    labels = as_labels(labels)
    check_integer("d", d, minimum=1, maximum=31)
    places = torch.arange(d, device=labels.device)
    bits = labels[..., None] >> places & 1
    return bits.to(as_float_dtype(dtype)) * 2 - 1


def _as_group_size(group_size: int | None, d: int) -> int:
    if group_size is None:
        if d > MOST_BITS:
            most = f"at most {MOST_BITS}, and a divisor of d = {d}"
            raise ValueError(f"group_size must be given: {most}; got None")
        return d
    check_integer("group_size", group_size, minimum=1, maximum=MOST_BITS)
    if d % group_size:
        raise ValueError(f"group_size must divide d = {d}, got {group_size}")
    return int(group_size)


def _or_one(x: Tensor) -> Tensor:
    """The number, or 1 for 0, to divide by."""
    return torch.where(x == 0, 1, x)


def _log_odds(x: Tensor, temperature: Tensor) -> Tensor:
    return (4 * quotient(x, temperature)).clamp(-1000, 1000)


def _probabilities(x: Tensor, temperature: Tensor) -> Tensor:
    """Those of all codes, [n, 2^s], of points [n, s]."""
    found = x.new_ones(len(x), 1)
    for z in _log_odds(x, temperature).unbind(1):
        p = logsigmoid(torch.stack([-z, z])).exp()[..., None]
        found = torch.cat([found * p[0], found * p[1]], dim=1)
    return found


def _entropies(x: Tensor, temperature: Tensor) -> Tensor:
    """The entropies of coordinates, [n, d]."""
    z = _log_odds(x, temperature)
    log_p = logsigmoid(torch.stack([-z, z]))
    return -(log_p.exp() * log_p).sum(0)


def _entropy(p: Tensor) -> Tensor:
    """The entropy of probabilities, small ones in a unit in which p⁴ is normal."""
    exponent = round(math.log2(torch.finfo(p.dtype).max)) * 15 // 64
    # What is NaN is used.
    used, small = ~(p < 2.0 ** (-2 * exponent)), p < 2.0**-exponent
    scaled = torch.where(used, torch.where(small, 2.0**exponent * p, p), 1)
    log_p = scaled.log() - torch.where(small, exponent * math.log(2), 0)
    return -(torch.where(used, p, 0) * log_p).sum()
