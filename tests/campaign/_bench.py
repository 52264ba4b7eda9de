"""A subject at one dtype: its function, its arrays, and the truth about them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.campaign._judged import largest_change
from tests.campaign._subjects import Subject

Arrays = dict[str, jax.Array]


class Truth(NamedTuple):
    """A tree in float64, and how much of it the rounding of the inputs moves."""

    tree: Any
    floors: list[np.ndarray]


class Programs:
    """The functions of a subject; one object each, so that programs are shared."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.fixed = {
            name: jnp.asarray(a)
            for name, a in subject.arrays.items()
            if a.dtype == bool
        }
        self.jitted = cache(self._jitted)

    def value(self, moved: Arrays) -> Any:
        """What the function returns, of its floating arrays."""
        return self.subject.function(**moved, **self.fixed)

    def smooth(self, moved: Arrays) -> list[jax.Array]:
        """What of that has a derivative."""
        return [x for x in jax.tree.leaves(self.subject.smooth(self.value(moved)))
                if jnp.issubdtype(x.dtype, jnp.floating)]  # fmt: skip

    def scalar(self, moved: Arrays) -> jax.Array:
        """A linear function of that; its cotangents are exact in every dtype."""
        return contracted(self.smooth(moved))

    def of_kind(self, kind: str) -> Callable[[Arrays], Any]:
        """The value, or a derivative."""
        return {
            "value": self.value,
            "grad": jax.grad(self.scalar),
            "jacobian": jax.jacrev(self.smooth),
            "hessian": jax.hessian(self.scalar),
        }[kind]

    def _jitted(self, kind: str) -> Callable[[Arrays], Any]:
        return jax.jit(self.of_kind(kind))


programs = cache(Programs)


class Bench:
    """A subject at a dtype; its arrays times `scale`, to have a second example."""

    def __init__(self, subject: Subject, dtype: str, scale: float = 1.0) -> None:
        self.subject, self.dtype = subject, dtype
        self.programs = programs(subject)
        self.moved = {
            name: jnp.asarray(
                scale * np.asarray(jnp.asarray(a, dtype), np.float64), dtype
            )
            for name, a in subject.arrays.items()
            if a.dtype != bool
        }
        self.truth = cache(self._truth)

    @property
    def copies(self) -> Arrays:
        return {name: jnp.array(a) for name, a in self.moved.items()}

    @property
    def at_float64(self) -> Arrays:
        return {name: a.astype("float64") for name, a in self.moved.items()}

    def _truth(self, kind: str) -> Truth:
        """Eager float64 at the inputs as cast; derivatives but the first in one jit."""
        x = self.at_float64
        program = self.programs.jitted(kind)
        eager = kind in ("value", "grad")
        tree = (self.programs.of_kind(kind) if eager else program)(x)
        # Half precision is computed in float32, and rounded once.
        wide = jnp.promote_types(self.dtype, "float32")
        rng, eps = np.random.default_rng(0), float(jnp.finfo(wide).eps)

        def moved(a: jax.Array) -> jax.Array:
            return a * (1 + eps * rng.choice([-1.0, 1.0], a.shape))

        others = [program({k: moved(a) for k, a in x.items()}) for _ in range(2)]
        stays, narrow = self.subject.stays, wide != self.dtype
        if stays and narrow and kind in ("jacobian", "hessian"):
            # A fit's derivatives are those at its centroids as half precision has them.
            found = self.programs.jitted("value")(x).centroids.astype(self.dtype)
            at = x | {"centroids": found.astype("float64")}
            others.append(programs(stays).jitted(kind)(at))
        return Truth(tree, largest_change(tree, others))

    @cached_property
    def direction(self) -> Arrays:
        """A direction for derivatives along one, entries exact in every dtype."""
        rng = np.random.default_rng(1)
        held = self.subject.held
        return {
            name: jnp.asarray(
                (name not in held) * rng.integers(-4, 5, a.shape) / 4, a.dtype
            )
            for name, a in self.moved.items()
        }

    def difference(self, function: Callable[[Arrays], Any], step: float = 1e-5) -> Any:
        """The central difference of a function of the arrays, along the direction."""
        x, t = self.at_float64, self.direction
        ahead, behind = (
            function({k: x[k] + h * t[k].astype("float64") for k in x})
            for h in (step, -step)
        )
        return jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)


def contracted(outputs: list[jax.Array]) -> jax.Array:
    """The sum of all entries, each times a multiple of 1/4, in float64."""
    rng = np.random.default_rng(2)
    total = jnp.zeros((), "float64")
    for leaf in outputs:
        weight = (2 * rng.integers(0, 4, leaf.shape) - 3) / 4
        total += jnp.sum(leaf.astype("float64") * weight)
    return total


def along(tree: Any, direction: Arrays) -> jax.Array:
    """The inner product of a gradient and a direction, in float64."""
    parts = [
        jnp.sum(tree[k].astype("float64") * direction[k].astype("float64"))
        for k in direction
    ]
    return jnp.sum(jnp.stack(parts))
