"""What a fit to a stream returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diffkm_jax.fitting import State, Status

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class StreamResult(NamedTuple):
    """What `fit_stream` returns; nothing in it has a gradient.

    Attributes:
        centroids: [k, d], in the dtype of the centroids given (of the points, if a
            `State` was), in data units.
        loss: If steps are of passes, the loss of all points at these centroids, [],
            accumulation dtype, but after Ctrl-C or a bad batch that of the last whole
            pass, before the last step, or NaN; else the sum of the losses in `history`.
        counts: Weight of every cluster, [k]: there, or as batches were met.
        residual: As in `FitResult`, of all points there, or of the last batch, [].
        history: If steps are of passes, the loss after t steps, [num_steps + 1]; else
            that of every batch before its step, [num_steps].
        num_steps: Steps taken in this call, a Python integer.
        status: Flags of `Status`.
        state: The `State` at the end, to go on from.
    """

    centroids: Float[Array, "k d"]
    loss: Float[Array, ""]
    counts: Float[Array, " k"]
    residual: Float[Array, ""]
    history: Float[Array, " steps"]
    num_steps: int
    status: Status
    state: State
