"""What a fit to a stream returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diffkm_jax.fitting import State, Status
from diffkm_jax.fitting._lines import lines_of_fit
from diffkm_jax.fitting._status import flags_of, is_converged

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class StreamResult(NamedTuple):
    """What `fit_stream` returns; nothing in it has a gradient.

    Printed, it is five lines, as a `FitResult` is.

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

    @property
    def converged(self) -> bool:
        """Whether `status` has CONVERGED, as of a fit that stopped by its rule.

        Returns:
            A Python bool; of a result that is traced an array, [].

        Example:
            >>> x = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> dk.fit_stream([x], x[:2], passes=9).converged
            True
        """
        return is_converged(self.status)

    @property
    def flags(self) -> Status:
        """The `Status`, also of a result that came out of a program.

        Returns:
            A `Status`.

        Raises:
            ValueError: The result is traced; `converged` may be.

        Example:
            >>> x = np.array([[0.0], [1.0], [9.0], [10.0]])
            >>> print(dk.fit_stream([x], x[:2], passes=9).flags)
            CONVERGED
        """
        return flags_of(self.status)

    def __repr__(self) -> str:
        return lines_of_fit(self, "fit_stream(batches, result.state, ...)")
