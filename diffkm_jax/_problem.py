"""What every pass over the points is given, but for the centroids.

`_checks.as_problem` makes both from the arguments of a public function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Plan(NamedTuple):
    """What is static about a pass; functions count by identity.

    Attributes:
        distance: Function of two arrays [..., d].
        block_size: Points in a block; None chooses it by shape.
        axis_name: Mesh axis over which the points are sharded, or None.
    """

    distance: Callable[..., jax.Array]
    block_size: int | None = None
    axis_name: str | None = None


class Problem(NamedTuple):
    """What is traced about a pass.

    Attributes:
        points: [n, d].
        weights: [n], or None for ones.
        active: Mask of the clusters that exist, [k], or None for all.
        temperature: Scalar in the accumulation dtype, or None for the hard assignment.
        remainder: What rounding took of the centroids, [k, d], constant, or None: the
            pass is at centroids + remainder, which no dtype holds far from the origin.
        unit: What the weights are multiples of, [], or None for 1.
    """

    points: jax.Array
    weights: jax.Array | None = None
    active: jax.Array | None = None
    temperature: Any = None
    remainder: Any = None
    unit: Any = None
