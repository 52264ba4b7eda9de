"""Several codebooks for one point: residual and product quantization, by loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_real,
    check_block_size,
    check_callable,
    check_shape,
    check_tensor,
    flattened,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._geometry import fill_inert
from diffkm_torch._hints import hinted
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.quantizers._quantize import (
    Method,
    Quantized,
    applied,
    quantize,
    straight_through_vector,
)


@hinted
def residual_quantize(
    points: Tensor,
    codebooks: Tensor,
    *,
    method: Method = straight_through_vector,
    distance: Distance = squared_euclidean,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Mirrors `diffkm_jax.residual_quantize`: codes of what the stages before left."""
    check_callable("method", method, 2)
    rows, w = flattened(points, weights)
    *leading, d = shape = tuple(points.shape)
    codebooks = as_real("codebooks", codebooks)
    layout = f"[s, k, d] with d = {d} as in points {shape}"
    check_shape("codebooks", codebooks, (None, None, d), layout)
    _check_options(codebooks, active, distance, block_size)
    options = {"distance": distance, "weights": w, "block_size": block_size}
    x, total, found = _residual(rows, codebooks, active, options)
    values = applied(method, x.to(rows.dtype).reshape(shape), total.reshape(shape))
    labels = found.labels.reshape(*leading, len(codebooks))
    return found._replace(values=values, labels=labels)


@hinted
def product_quantize(
    points: Tensor,
    codebooks: Tensor,
    *,
    method: Method = straight_through_vector,
    distance: Distance = squared_euclidean,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Mirrors `diffkm_jax.product_quantize`: a codebook for every group."""
    check_callable("method", method, 2)
    rows, w = flattened(points, weights)
    *leading, d = shape = tuple(points.shape)
    codebooks = as_real("codebooks", codebooks)
    found = tuple(codebooks.shape)
    if len(found) not in (3, 4) or found[0] * found[-1] != d:
        layout = f"[g, k, e] or [g, s, k, e] with g e = {d} as in points {shape}"
        raise ValueError(f"codebooks must be {layout}, got shape {found}")
    _check_options(codebooks, active, distance, block_size)
    g, width, staged = found[0], found[-1], len(found) == 4
    options = {"distance": distance, "weights": w, "block_size": block_size}
    groups = []
    for i, part in enumerate(rows.reshape(-1, g, width).unbind(1)):
        own = codebooks[i] if staged else codebooks[i][None]
        exist = None if active is None else active[i].reshape(own.shape[:-1])
        groups.append(_residual(part, own, exist, options))
    x, total = (torch.stack([group[j] for group in groups], 1) for j in (0, 1))
    each = (*leading, g, width)
    values = applied(method, x.to(rows.dtype).reshape(each), total.reshape(each))
    parts = Quantized(*map(_stack, zip(*(q for _, _, q in groups), strict=True)))
    # From [g, n, s].
    labels = parts.labels.movedim(0, 1)
    labels = labels.reshape(*leading, *(labels.shape[1:] if staged else (g,)))
    return parts._replace(
        values=values.reshape(shape),
        labels=labels,
        codebook_loss=parts.codebook_loss.sum(),
        commitment_loss=parts.commitment_loss.sum(),
        counts=parts.counts if staged else parts.counts[:, 0],
    )


def _residual(
    points: Tensor, codebooks: Tensor, active: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Quantized]:
    """Points and sums of codes, [n, d], and what the stages found, but for values."""
    weights = options["weights"]
    x = points.to(accumulation_dtype(points, codebooks, weights))
    total, stages = torch.zeros_like(x), []
    for i, codebook in enumerate(codebooks):
        exist = None if active is None else active[i]
        stages.append(quantize(x - total, codebook, active=exist, **options))
        total = total + stages[-1].values.detach().to(x.dtype)
    found = Quantized(*map(_stack, zip(*stages, strict=True)))
    found = found._replace(
        values=total,
        labels=found.labels.T,
        codebook_loss=found.codebook_loss.sum(),
        commitment_loss=found.commitment_loss.sum(),
    )
    return fill_inert(x, weights, total), total.to(codebooks.dtype), found


def _stack(tensors: Any) -> Tensor:
    return torch.stack(list(tensors))


def _check_options(
    codebooks: Tensor,
    active: Tensor | None,
    distance: Distance,
    block_size: int | None,
) -> None:
    """Raises unless the options fit the codebooks."""
    check_callable("distance", distance, 2)
    check_block_size(block_size)
    *shape, _ = whole = tuple(codebooks.shape)
    if 0 in shape:
        raise ValueError(
            f"codebooks must have at least one row each, got shape {whole}"
        )
    if active is not None:
        check_tensor("active", active)
        if active.dtype != torch.bool:
            raise TypeError(f"active must be bool, got dtype {active.dtype}")
        check_shape(
            "active", active, tuple(shape), f"{tuple(shape)} as codebooks {whole}"
        )
