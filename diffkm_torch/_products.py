"""Products and sums over points: in the dtype of their operands, to its rounding.

A sum of n numbers one after another, which is what an index or a product over n points
does, forward or in its derivative, may lose n ε. Here it is made of sums of pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

_PIECE = 64


def rows_of(centroids: Tensor, labels: Tensor) -> Tensor:
    """The rows centroids[labels], [n, d], with a derivative summed in pieces."""
    if not (torch.is_grad_enabled() and centroids.requires_grad):
        return centroids.index_select(0, labels)
    k, d = centroids.shape
    index, pieces = _in_pieces(labels, k, d)
    copies = centroids.expand(pieces, k, d).reshape(pieces * k, d)
    return copies.index_select(0, index)


def sums_by_label(labels: Tensor, k: int, *values: Tensor) -> tuple[Tensor, ...]:
    """The sums of values, each [n, ...], over the points of every label, [k, ...]."""
    index, pieces = _in_pieces(labels, k, max(a[0].numel() for a in values))

    def total(a: Tensor) -> Tensor:
        sums = a.new_zeros(pieces * k, *a.shape[1:]).index_add(0, index, a)
        # Not reshaped: the default backend of torch.compile, in torch 2.13, loses the
        # last piece then, where it fuses these sums with what else reads the labels.
        return sums if pieces == 1 else torch.stack(sums.split(k)).sum(0)

    return tuple(map(total, values))


def _in_pieces(labels: Tensor, k: int, d: int) -> tuple[Tensor, int]:
    """Labels as indices of copies of k rows, one for each piece, [n], and how many.

    The copies take a 16th of what scores [n, k] and values [n, d] do, or less.
    """
    n, size = len(labels), max(_PIECE, 16 * k * d // max(1, k + d))
    if n <= size:
        return labels, 1
    pieces = -(-n // size)
    first = k * torch.arange(pieces, device=labels.device)[:, None]
    return labels + first.expand(pieces, size).reshape(-1)[:n], pieces


def rows_product(x: Tensor, c: Tensor) -> Tensor:
    """The product x cᵀ, [n, k], of [n, d] and [k, d]; derivatives in pieces."""
    pieces = _split(x)
    products = product(pieces, c.expand(len(pieces), *c.shape).mT)
    return products.reshape(-1, len(c))[: len(x)]


def product_of_rows(a: Tensor, b: Tensor) -> Tensor:
    """The product aᵀ b over rows, [k, d] of [n, k] and [n, d], summed in pieces."""
    return product(_split(a).mT, _split(b)).sum(0)


def _split(x: Tensor) -> Tensor:
    """Rows [n, d] as pieces, zeros added, [n / size, size, d]."""
    rows = pad(x, (0, 0, 0, -len(x) % _PIECE))
    return rows.reshape(-(-len(x) // _PIECE), _PIECE, x.shape[1])


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b, [..., m, n], in their dtype under autocast.

    So are its derivatives. To switch autocast off around `a @ b` would not reach them:
    a backward pass runs under the autocast it finds, a compiled one under that of its
    forward pass.
    """
    device = a.device.type
    available = torch.amp.is_autocast_available(device)
    if not (available and torch.is_autocast_enabled(device)):
        return a @ b
    # A rule for forward mode is what torch.compile refuses, and what it can do without.
    rule = _Product if torch.compiler.is_compiling() else _ForwardProduct
    return rule.apply(a, b)


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        return product(cotangent, b.mT), product(a.mT, cotangent)


class _ForwardProduct(_Product):
    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor, b_tangent: Tensor) -> Tensor:  # type: ignore[override]
        a, b = ctx.saved_tensors
        return product(a_tangent, b) + product(a, b_tangent)
