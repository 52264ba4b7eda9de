"""What every pass over the points is given, but for the centroids.

`_checks.as_problem` makes it from the arguments of a public function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffkm_torch._dtypes import accumulation_dtype


class Problem(NamedTuple):
    """What is clustered, and by which distance.

    Attributes:
        points: [n, d].
        weights: [n], or None for ones.
        active: Mask of the clusters that exist, [k], or None for all.
        temperature: Positive scalar, or None for the hard assignment.
        distance: Function of two tensors [..., d].
        block_size: Points in a block; None chooses it by shape.
        remainder: What rounding took of the centroids, [k, d], constant, or None.
        unit: What the weights are multiples of, [], or None for 1.
    """

    points: Tensor
    weights: Tensor | None
    active: Tensor | None
    temperature: float | Tensor | None
    distance: Callable[[Tensor, Tensor], Tensor]
    block_size: int | None
    remainder: Tensor | None = None
    unit: Tensor | None = None

    def dtype(self, *tensors: Tensor) -> torch.dtype:
        """The accumulation dtype of the problem and of more tensors."""
        held = getattr(self.distance, "precision", None)
        return accumulation_dtype(self.points, self.weights, held, *tensors)
