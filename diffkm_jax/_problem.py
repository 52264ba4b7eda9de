"""What every pass over the points is given, but for the centroids.

`_given.as_problem` makes both from the arguments of a public function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from diffkm_jax._dtypes import accumulation_dtype

# Over which axis points are sharded, as public functions take it.
Axis = str | tuple[str, ...] | NamedSharding | None


class Plan(NamedTuple):
    """What is static about a pass.

    Attributes:
        block_size: Points in a block; None chooses it by shape.
        axis_name: Mesh axis over which the points are sharded, or None.
        mesh: The mesh of that axis where the arrays are whole ones, sharded over it;
            None inside a `jax.shard_map` over the axis.
    """

    block_size: int | None = None
    axis_name: Any = None
    mesh: Any = None


class Problem(NamedTuple):
    """What is traced about a pass.

    Attributes:
        points: [n, d].
        distance: Function of two arrays [..., d] as a tree, whose arrays are leaves.
        weights: [n], or None for ones.
        active: Mask of the clusters that exist, [k], or None for all.
        temperature: Scalar in the accumulation dtype, or None for the hard assignment.
        remainder: What rounding took of the centroids, [k, d], constant, or None: the
            pass is at centroids + remainder, which no dtype holds far from the origin.
        unit: What the weights are multiples of, [], or None for 1.
    """

    points: jax.Array
    distance: Any
    weights: jax.Array | None = None
    active: jax.Array | None = None
    temperature: Any = None
    remainder: Any = None
    unit: Any = None

    def dtype(self, *arrays: jax.Array) -> Any:
        """The accumulation dtype of the problem and of more arrays."""
        held = jax.tree.leaves(self.distance)
        return accumulation_dtype(self.points, self.weights, *held, *arrays)


class Rows(NamedTuple):
    """What is sharded over rows as points are, beside them.

    Attributes:
        array: [n, ...].
    """

    array: jax.Array
