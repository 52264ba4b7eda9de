"""Layers: the loss and the quantizers as `nn.Module`, thin over the functions.

Under `torch.compile` work as one graph (`fullgraph=True`), with their gradients: both
modules, in training and in eval mode, the distances, `pairwise`, `statistics`,
`assign`, the losses, `quantize`, `nsvq`, `init`, `update`, the maps from logits to
rows, and the estimators but for three. With graph breaks only, and the same values and
gradients: the estimators `rebar`, `blackbox` and `implicit_mle`, which differentiate
the cost themselves; `update` with `empty="farthest"`; and `fit`, which looks at values
to know when to stop. Not at all: second derivatives through a compiled function, which
torch does not have; compile a `torch.func.hessian` instead. A temperature that changes
is best a tensor: a number may be a program per value. Build `ema(...)` outside.

Under `torch.autocast` distances, statistics, losses and fits, and their gradients, are
those outside it: float32 or wider. What you hand in as a function (a distance, an
estimator of a gradient, a cost) runs under the autocast that it is called in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffkm_torch._checks import (
    as_real,
    as_rows,
    check_callable,
    check_floating,
    check_scalar,
    check_shape,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import shown
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.distances._forms import WITH_MEANS, form_of
from diffkm_torch.fitting._codebook import averaged
from diffkm_torch.fitting._processes import check_group
from diffkm_torch.losses import kmeans_loss, soft_kmeans_loss
from diffkm_torch.optimizers import ema
from diffkm_torch.quantizers import (
    Method,
    Quantized,
    nsvq,
    quantize,
    straight_through_vector,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["KMeansLoss", "VectorQuantizer"]


class KMeansLoss(nn.Module):
    """The k-means loss of points, to centroids that are a parameter.

    It is `kmeans_loss`, or at a temperature `soft_kmeans_loss`. The gradient is exact:
    if squared −2 shifts in the centroids, so that any optimizer does k-means, and if
    hard, 2 w (x − c) in a point; by the total weight if "mean".

    Args:
        centroids: Where to start, [k, d], real, in data units; copied.
        temperature: None for the hard loss, or a positive scalar, in the unit of the
            distance. An attribute: change it between steps to anneal. As an
            `nn.Parameter` it is learned, moved and saved with the layer; else not.
        distance: A function of points and centroids, as `squared_euclidean`.
        reduction: "sum" over the points, or "mean" by total weight, NaN if that is 0.

    Returns:
        From `forward(points, *, weights=None)`, of points [..., d] and non-negative
        weights [...], the loss, [], float32 or wider, in the unit of the distance.

    Raises:
        TypeError: `centroids`, `points` or `weights` is not real, or `distance` is
            not a function.
        ValueError: `centroids` is not [k, d], `points` not [..., d], either has no row,
            `weights` is not [...], `temperature` is not a scalar, or a number and not
            positive, or `reduction` is another word.

    Example:
        >>> layer = dt.KMeansLoss(torch.tensor([[0.0], [10.0]]))
        >>> loss = layer(torch.tensor([[0.0], [1.0], [9.0], [10.0]]))
        >>> loss.backward()
        >>> loss.item(), layer.centroids.grad.tolist()
        (2.0, [[-2.0], [2.0]])

    Source: Bottou & Bengio 1995,
    https://papers.nips.cc/paper/989-convergence-properties-of-the-k-means-algorithms
    """

    def __init__(
        self,
        centroids: Tensor,
        *,
        temperature: float | Tensor | None = None,
        distance: Distance = squared_euclidean,
        reduction: str = "sum",
    ) -> None:
        """Checks its arguments and copies the centroids."""
        super().__init__()
        centroids = _as_centroids(centroids)
        if temperature is not None:
            dtype = accumulation_dtype(centroids)
            check_scalar("temperature", temperature, dtype)
        check_callable("distance", distance)
        if reduction not in ("sum", "mean"):
            raise ValueError(
                f"reduction must be 'sum' or 'mean', got {shown(reduction)}"
            )
        self.centroids = nn.Parameter(centroids.detach().clone())
        self.temperature = temperature
        self.distance = distance
        self.reduction = reduction

    def forward(self, points: Tensor, *, weights: Tensor | None = None) -> Tensor:
        """The loss of points [..., d] with weights [...]."""
        x, w = as_rows(points, weights, self.centroids)
        c, options = self.centroids, {"weights": w, "distance": self.distance}
        if self.temperature is None:
            loss = kmeans_loss(x, c, **options)
        else:
            loss = soft_kmeans_loss(x, c, temperature=self.temperature, **options)
        if self.reduction == "sum":
            return loss
        return loss / (len(x) if w is None else w.to(loss.dtype).sum())

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        options = f"temperature={self.temperature}, distance={_name(self.distance)}"
        return f"{_sizes(self.centroids)}, {options}, reduction={self.reduction!r}"


class VectorQuantizer(nn.Module):
    """A codebook: every point becomes its nearest centroid, with a declared gradient.

    It is `quantize`, or `nsvq`. The gradient of the values in the points is that of
    `method`, biased by design; in the centroids it is zero, but under `nsvq`. Without
    `decay` the centroids are a parameter that trains by `codebook_loss`, a sum as is
    `commitment_loss`: add both to a network's loss.

    With `decay` the centroids are a buffer without gradient, and so are the moving
    averages `counts`, [k]: a call in training mode, once it has its values, does one
    `update(points, state, optimizer=ema(decay), distance=distance)`; under `cosine` the
    codebook is of unit rows then, from the start. Points and weights that are not
    finite have no part in it (a call with no others changes nothing), but stay in the
    losses, which say so.

    Where `torch.distributed` is initialized, that update is by the points of all
    processes, so that codebooks which start alike stay equal. They exchange counts and
    shifts, never points, and wait for each other: all must call the layer as often, in
    the same mode and with the same dtypes, but each with any number of points.

    Args:
        centroids: Where to start, [k, d], real, in data units; copied. With
            `decay`, float32 or wider: moving averages stand still in less.
        method: `straight_through_vector`, `rotation_trick`, a function of points and
            nearest centroids, both [n, d], to values [n, d]; or `nsvq`, which adds
            noise to points in training mode, or where it is given, and else is nearest.
        decay: None, or the share that moving averages keep, at least 0 and below 1.
        distance: A function of points and centroids, as `squared_euclidean`, of which a
            mean is the minimizer if there is a `decay`.
        process_group: Of the processes that share the updates of `decay`; None is all.
            A group of one, `torch.distributed.new_subgroups(1)[0]`, leaves it alone.

    Returns:
        From `forward(points, *, weights=None, noise=None)`, of points [..., d], weights
        [...] of losses and update, and for `nsvq` normal noise [..., d], drawn if None:
        a `Quantized` of values [..., d], labels [...] and two losses, as of `quantize`.

    Raises:
        TypeError: A tensor is not real, `noise` is not floating, `method` or
            `distance` is not a function, `decay` no number, or `process_group` no
            group that the process is in.
        ValueError: `centroids` is not [k, d], `points` not [..., d], either has no row,
            `weights` is not [...], `noise` is not of the shape of the points or is for
            another method, `decay` is out of range or the distance has no mean for it,
            or `method` changes the shape.

    Example:
        >>> layer = dt.VectorQuantizer(torch.tensor([[0.0], [9.0]]), decay=0.75)
        >>> layer(torch.tensor([[4.0], [8.0]])).values.tolist()
        [[0.0], [9.0]]
        >>> layer.centroids.tolist()  # After a quarter of the way to 4 and to 8.
        [[1.0], [8.75]]

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, https://arxiv.org/abs/1711.00937
    """

    centroids: Tensor
    counts: Tensor

    def __init__(
        self,
        centroids: Tensor,
        *,
        method: Method | Callable[..., Quantized] = straight_through_vector,
        decay: float | None = None,
        distance: Distance = squared_euclidean,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Checks its arguments and copies the centroids."""
        super().__init__()
        centroids = _as_centroids(centroids)
        check_callable("method", method)
        check_callable("distance", distance)
        check_group(process_group)
        start = centroids.detach().clone()
        if callable(decay):
            raise TypeError(
                f"decay must be None or a number, got {_name(decay)}: for a schedule "
                "call update(points, state, optimizer=ema(decay)) beside the layer"
            )
        if decay is not None:
            start = _as_codebook(start, distance)
        self._optimizer = None if decay is None else ema(decay)
        if self._optimizer is None:
            self.centroids = nn.Parameter(start)
        else:
            self.register_buffer("centroids", start)
            self.register_buffer("counts", self._optimizer.init(start).counts)
        self.method: Callable = method
        self.decay = decay
        self.process_group = process_group
        self.distance = distance

    def forward(
        self,
        points: Tensor,
        *,
        weights: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Quantized:
        """Points [..., d] as values of the codebook, which may be updated after."""
        x, w = as_rows(points, weights, self.centroids)
        v = self._noise(points, noise)
        options: dict[str, Any] = {"weights": w, "distance": self.distance}
        if v is not None:
            out = nsvq(x, self.centroids, v.reshape(x.shape), **options)
        else:
            method = straight_through_vector if self.method is nsvq else self.method
            out = quantize(x, self.centroids, method=method, **options)
        if self._optimizer is not None and self.training:
            self._update(x, w, self._optimizer)
        labels = out.labels.reshape(points.shape[:-1])
        return out._replace(values=out.values.reshape(points.shape), labels=labels)

    def _noise(self, points: Tensor, noise: Tensor | None) -> Tensor | None:
        if noise is not None:
            if self.method is not nsvq:
                name = _name(self.method)
                raise ValueError(f"noise must be None for method {name}, got a tensor")
            check_floating("noise", noise)
            check_shape("noise", noise, tuple(points.shape), "[..., d] as points")
        elif self.method is nsvq and self.training:
            dtype = accumulation_dtype(points)
            noise = torch.randn(points.shape, dtype=dtype, device=points.device)
        return noise

    def _update(self, x: Tensor, w: Tensor | None, optimizer: Any) -> None:
        held = self.centroids, self.counts
        new = averaged(x, w, *held, optimizer, self.distance, self.process_group)
        for buffer, values in zip(held, new, strict=True):
            buffer.copy_(values)

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        sizes = _sizes(self.centroids)
        shown = f"{sizes}, method={_name(self.method)}, decay={self.decay}"
        if self.distance is squared_euclidean:
            return shown
        return f"{shown}, distance={_name(self.distance)}"


def _as_centroids(centroids: Tensor) -> Tensor:
    centroids = as_real("centroids", centroids)
    check_shape("centroids", centroids, (None, None), "[k, d]")
    if len(centroids) == 0:
        shape = tuple(centroids.shape)
        raise ValueError(f"centroids must have at least one row, got shape {shape}")
    return centroids


def _as_codebook(centroids: Tensor, distance: Distance) -> Tensor:
    """Centroids as moving averages keep them: of unit length, if cosine."""
    form = form_of(distance)
    if form is None:
        expected = f"one that has means for decay ({WITH_MEANS})"
        raise ValueError(f"distance must be {expected}, got {_name(distance)}")
    return form.retract(centroids, centroids)


def _sizes(centroids: Tensor) -> str:
    return "k={}, d={}".format(*centroids.shape)


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)
