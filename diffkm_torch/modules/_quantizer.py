"""A codebook as a layer, that trains by its loss or by moving averages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffkm_torch._checks import (
    as_rows,
    check_callable,
    check_floating,
    check_scalar,
    check_shape,
)
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.fitting._codebook import averaged
from diffkm_torch.fitting._processes import check_group
from diffkm_torch.modules._centroids import as_centroids, as_codebook, name_of, sizes
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


class VectorQuantizer(nn.Module):
    """A codebook: every point becomes its nearest centroid, with a declared gradient.

    It is `quantize`, or `nsvq`. The gradient of the values in the points is that of
    `method`, biased by design; in the centroids it is zero, but under `nsvq`. Without
    `decay` the centroids are a parameter that trains by `codebook_loss`, a sum as is
    `commitment_loss`: add both to a network's loss.

    With `decay` the centroids are a buffer without gradient, and so are the moving
    averages `counts`, [k]: a call in training mode, once it has its values, does one
    `update(points, state, optimizer=ema(decay), distance=distance)`, of the codes that
    were drawn if it draws; under `cosine` the codebook is of unit rows then, from the
    start. With `min_count` too it then sets codes whose moving count is below that, as
    one is at 0 until it has a first point, to random rows of the batch, other ones
    each, as `reassign` does: at most half as many as there are rows, and they begin
    with a count of twice `min_count`.

    Points and weights that are not finite have no part in that, and are no rows to be
    set to: a call with no others changes nothing, without an error or a warning. What
    says so is what the call returns: losses that are not finite, and `counts` without
    them, zeros if there are no others. The value of such a point is that of some code,
    under `nsvq` NaN.

    Where `torch.distributed` is initialized, that update is by the points of all
    processes, so that codebooks which start alike stay equal. They exchange counts and
    shifts, of points only the rows that become codes, and wait for each other: all must
    call the layer as often, in the same mode and with the same dtypes, but each with
    any number of points. What is returned is of the points of the process.

    Args:
        centroids: Where to start, [k, d], real, in data units; copied. With
            `decay`, float32 or wider: moving averages stand still in less.
        method: `straight_through_vector`, `rotation_trick`, a function of points and
            their centroids, both [..., d], to values [..., d]; or `nsvq`, which adds
            noise to points in training mode, or where it is given, and else is nearest.
        decay: None, or the share that moving averages keep, at least 0 and below 1.
        min_count: None, or a non-negative scalar in the unit of the weights, if there
            is a `decay`: what codes must have of a batch not to be set anew. A quarter
            of the mean, points of a batch / k, is a good start.
        sample_temperature: None, or a positive scalar in the unit of the distance: in
            training mode, or where noise is given, codes are drawn from
            softmax(−distance / `sample_temperature`), and else nearest. An attribute:
            change it between steps to anneal.
        distance: A function of points and centroids, as `squared_euclidean`, of which a
            mean is the minimizer if there is a `decay`.
        process_group: Of the processes that share the updates of `decay`; None is all.
            A group of one, `torch.distributed.new_subgroups(1)[0]`, leaves it alone.

    Returns:
        From `forward(points, *, weights=None, noise=None)`, of points [..., d], weights
        [...] of losses and update, and noise, drawn if None: normal [..., d] for
        `nsvq`, Gumbel [..., k] for drawn codes. It is a `Quantized` of values [..., d],
        labels [...], two losses and counts [k], as of `quantize`.

    Raises:
        TypeError: A tensor is not real, `noise` is not floating, `method` or
            `distance` is not a function, `decay` no number, or `process_group` no
            group that the process is in.
        ValueError: `centroids` is not [k, d], `points` not [..., d], either has no row,
            `weights` is not [...], `noise` does not fit or is for another method,
            `decay`, `min_count` or `sample_temperature` is out of range, the distance
            has no mean for a `decay`, there is a `min_count` without one, or a
            `sample_temperature` for `nsvq`, or `method` changes the shape.

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
        min_count: float | Tensor | None = None,
        sample_temperature: float | Tensor | None = None,
        distance: Distance = squared_euclidean,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Checks its arguments and copies the centroids."""
        super().__init__()
        centroids = as_centroids(centroids)
        check_callable("method", method)
        check_callable("distance", distance, 2)
        check_group(process_group)
        start = centroids.detach().clone()
        if callable(decay):
            raise TypeError(
                f"decay must be None or a number, got {name_of(decay)}: for a schedule "
                "call update(points, state, optimizer=ema(decay)) beside the layer"
            )
        if decay is not None:
            start = as_codebook(start, distance)
        dtype = accumulation_dtype(centroids)
        if min_count is not None:
            if decay is None:
                got = f"got {min_count}"
                raise ValueError(f"min_count must be None without decay, {got}")
            check_scalar("min_count", min_count, dtype, zero=True)
        if sample_temperature is not None:
            if method is nsvq:
                got = f"got {sample_temperature}"
                raise ValueError(f"sample_temperature must be None for nsvq, {got}")
            check_scalar("sample_temperature", sample_temperature, dtype)
        self._optimizer = None if decay is None else ema(decay)
        if self._optimizer is None:
            self.centroids = nn.Parameter(start)
        else:
            self.register_buffer("centroids", start)
            self.register_buffer("counts", self._optimizer.init(start).counts)
        self.method: Callable = method
        self.decay = decay
        self.min_count = min_count
        self.sample_temperature = sample_temperature
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
        options: dict[str, Any] = {"weights": weights, "distance": self.distance}
        if self.method is nsvq and v is not None:
            out = nsvq(points, self.centroids, v, **options)
        else:
            if v is not None:
                options |= {"temperature": self.sample_temperature, "noise": v}
            method = straight_through_vector if self.method is nsvq else self.method
            out = quantize(points, self.centroids, method=method, **options)
        if self._optimizer is not None and self.training:
            drawn = None if self.sample_temperature is None else out.labels.reshape(-1)
            self._update(x, w, drawn, self._optimizer)
        return out

    def _noise(self, points: Tensor, noise: Tensor | None) -> Tensor | None:
        """The noise given, checked, or drawn where there is to be some."""
        is_normal = self.method is nsvq
        if not is_normal and self.sample_temperature is None:
            if noise is not None:
                name = name_of(self.method)
                raise ValueError(f"noise must be None for method {name}, got a tensor")
            return None
        size = points.shape[-1] if is_normal else len(self.centroids)
        shape = *points.shape[:-1], size
        if noise is not None:
            check_floating("noise", noise)
            layout = "[..., d] as points" if is_normal else "[..., k] as points"
            check_shape("noise", noise, shape, layout)
            return noise
        if not self.training:
            return None
        noise = torch.empty(
            shape, dtype=accumulation_dtype(points), device=points.device
        )
        if is_normal:
            return noise.normal_()
        # Gumbel: −log of an exponential, which is positive.
        return -noise.exponential_().log()

    def _update(
        self, x: Tensor, w: Tensor | None, drawn: Tensor | None, optimizer: Any
    ) -> None:
        held = self.centroids, self.counts
        new = averaged(
            x,
            w,
            *held,
            optimizer=optimizer,
            distance=self.distance,
            process_group=self.process_group,
            labels=drawn,
            min_count=self.min_count,
        )
        for buffer, values in zip(held, new, strict=True):
            buffer.copy_(values)

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        options = f"method={name_of(self.method)}, decay={self.decay}"
        shown = f"{sizes(self.centroids)}, {options}"
        if self.min_count is not None:
            shown += f", min_count={self.min_count}"
        if self.sample_temperature is not None:
            shown += f", sample_temperature={self.sample_temperature}"
        if self.distance is squared_euclidean:
            return shown
        return f"{shown}, distance={name_of(self.distance)}"
