"""Vector quantization: the mirror of `diffkm_jax.quantizers`, by detach and autograd.

A declared gradient is a change of value zero, added to the nearest centroid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import (
    as_problem,
    as_real,
    check_callable,
    check_floating,
    check_shape,
    flattened,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._geometry import fill_inert, fill_rows, prepare
from diffkm_torch._hints import hinted
from diffkm_torch._numerics import polar
from diffkm_torch._pass import drawn_labels, labels_of
from diffkm_torch._problem import Problem
from diffkm_torch._products import rows_of, sums_by_label
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.distances._pairwise import evaluate
from diffkm_torch.quantizers._lines import lines_of_quantized

__all__ = [
    "Quantized",
    "quantize",
    "rotation_trick",
    "straight_through_vector",
]

Method = Callable[[Tensor, Tensor], Tensor]


class Quantized(NamedTuple):
    """Mirrors `diffkm_jax.Quantized`: values, labels, two losses, and counts."""

    values: Tensor
    labels: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    counts: Tensor

    @property
    def usage(self) -> Tensor:
        """Share of the k codes that have a point of positive weight, []."""
        return (self.counts > 0).to(self.counts.dtype).mean(-1)

    @property
    def perplexity(self) -> Tensor:
        """exp(−Σ p log p) with p the counts over their sum, []; NaN without any."""
        share = self.counts / self.counts.amax(-1, keepdim=True)
        p = share / share.sum(-1, keepdim=True)
        return torch.special.entr(p).sum(-1).exp()

    def __repr__(self) -> str:
        return lines_of_quantized(self)


def straight_through_vector(points: Tensor, nearest: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.straight_through_vector`, by a change of zero added to it."""
    points, nearest = _as_pair(points, nearest)
    return nearest.detach() + _no_change(points).to(nearest.dtype)


def rotation_trick(points: Tensor, nearest: Tensor) -> Tensor:
    """Mirrors `diffkm_jax.rotation_trick`, by a constant matrix times the point."""
    points, nearest = _as_pair(points, nearest)
    dtype = accumulation_dtype(points, nearest)
    ratio, r, x, q = _rotation(points.detach().to(dtype), nearest.detach().to(dtype))
    # The factor first: so in the backward pass it comes last, and nothing overflows
    # before the gradient does.
    scaled = ratio * points.to(dtype)
    along_r, along_x = ((a * scaled).sum(-1, keepdim=True) for a in (r, x))
    turned = scaled - 2 * r * along_r + 2 * q * along_x
    return nearest.detach() + _no_change(turned).to(nearest.dtype)


def _no_change(x: Tensor) -> Tensor:
    """Zeros that have the derivative of x, whatever x is: NaN, infinite."""
    # A rule for forward mode is what torch.compile refuses, and what it can do without.
    rule = _NoChange if torch.compiler.is_compiling() else _ForwardNoChange
    return rule.apply(x)


class _NoChange(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        return cotangent


class _ForwardNoChange(_NoChange):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        return tangent


def _rotation(points: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The factor [..., 1] and the vectors r, x̂, q̂ [..., d] of the map."""
    limits = torch.finfo(points.dtype)
    x_scale, x_length, x = polar(points)
    q_scale, q_length, q = polar(nearest)
    usable = (x_scale > 0) & x_length.isfinite()
    x_scale, lengths = torch.where(usable, x_scale, 1), q_length / x_length
    ratio = q_scale / x_scale
    # A quotient out of range may be times a small one.
    ratio = torch.where(ratio.isinf(), q_scale * lengths / x_scale, ratio * lengths)
    ratio = torch.where(usable, ratio.clamp(max=limits.max), 1)
    x, q = (torch.where(usable, a, 0) for a in (x, q))
    squared = ((x + q) ** 2).sum(-1, keepdim=True)
    dropped = ~usable | (squared < limits.eps)
    r = torch.where(dropped, 0, (x + q) / torch.where(dropped, 1, squared).sqrt())
    return ratio, r, x, q


@hinted
def quantize(
    points: Tensor,
    centroids: Tensor,
    *,
    method: Method = straight_through_vector,
    distance: Distance = squared_euclidean,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    temperature: float | Tensor | None = None,
    noise: Tensor | None = None,
    block_size: int | None = None,
) -> Quantized:
    """Mirrors `diffkm_jax.quantize`: centroids, a method's gradient, losses."""
    check_callable("method", method, 2)
    rows, of_rows, shape = as_rows(points, weights, centroids)
    if temperature is None and noise is not None:
        raise ValueError("temperature must be given with noise, got None")
    if noise is None and temperature is not None:
        raise ValueError("noise must be given with temperature, got None")
    problem, centroids = as_problem(
        rows,
        centroids,
        distance=distance,
        weights=of_rows,
        active=active,
        temperature=temperature,
        block_size=block_size,
    )
    leading, k = shape[:-1], len(centroids)
    if noise is not None:
        check_floating("noise", noise)
        expected = f"[..., k] with k = {k}, as points {shape}"
        check_shape("noise", noise, (*leading, k), expected)
        noise = noise.reshape(-1, k)
    x, codes, labels, *others = encode(problem, centroids, noise)
    codes = codes.detach().to(centroids.dtype)
    x = x.to(problem.points.dtype).reshape(shape)
    values = applied(method, x, codes.reshape(shape))
    return Quantized(values, labels.reshape(leading), *others)


def applied(method: Method, points: Tensor, codes: Tensor) -> Tensor:
    """The values of a method, whose shape is checked."""
    values = method(points, codes)
    if values.shape != points.shape:
        shapes = f"{tuple(values.shape)} for points {tuple(points.shape)}"
        raise ValueError(f"method must keep the shape of the points, got {shapes}")
    return values


def as_rows(
    points: Tensor, weights: Tensor | None, centroids: Tensor
) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    """Points [n, d] and weights [n] of any leading axes, and the shape of the points.

    Those that are [n, d] are left to the checks of every pass.
    """
    points = as_real("points", points)
    shape = tuple(points.shape)
    if len(shape) == 2:
        return points, weights, shape
    rows, weights = flattened(points, weights)
    centroids, d = as_real("centroids", centroids), shape[-1]
    layout = f"[k, d] with d = {d} as in points {shape}"
    check_shape("centroids", centroids, (None, d), layout)
    return rows, weights, shape


def encode(
    problem: Problem, centroids: Tensor, noise: Tensor | None
) -> tuple[Tensor, ...]:
    """Points and codes [n, d], labels [n], the two losses [], and counts [k]."""
    x, c, w, _ = prepare(problem, centroids)
    filled = problem._replace(points=x)
    if noise is None:
        labels = labels_of(filled, centroids)
    else:
        labels = drawn_labels(filled, centroids, noise)
    codes = rows_of(c, labels)
    fixed = codes.detach()
    # What is not finite where the weight is zero becomes the value itself.
    x = fill_inert(problem.points.to(c.dtype), problem.weights, fixed)

    def cost(x: Tensor, y: Tensor) -> Tensor:
        return evaluate(problem.distance, x, y)

    with torch.no_grad():
        costs = cost(x, fixed)
    inert = fill_rows(x, w, costs, fixed)
    codebook_loss = (w * cost(inert.detach(), codes)).sum()
    commitment_loss = (w * cost(inert, fixed)).sum()
    # Without what is not finite, of which the losses say so.
    taken = torch.where(costs.isfinite() & w.isfinite(), w, 0).detach()
    (counts,) = sums_by_label(labels, len(c), taken)
    return x, codes, labels, codebook_loss, commitment_loss, counts


def _as_pair(points: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    points, nearest = as_real("points", points), as_real("nearest", nearest)
    shape = tuple(points.shape)
    if not shape or shape[-1] == 0:
        found = f"got shape {shape}"
        raise ValueError(f"points must be [..., d] with d at least 1, {found}")
    check_shape("nearest", nearest, shape, f"[..., d] as points {shape}")
    return points, nearest
