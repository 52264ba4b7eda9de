"""The Bregman divergence of any convex function, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffkm_jax._checks import as_tree, check_callable
from diffkm_jax._mesh import vary_as
from diffkm_jax.distances._distance import operands
from diffkm_jax.distances._form import Form
from diffkm_jax.distances._linear import inverse_root

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


@partial(jax.tree_util.register_dataclass, data_fields=["phi"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Bregman:
    """What `bregman` returns: a function of x, y [..., d], and a tree.

    Attributes:
        phi: φ, as a tree whose leaves are its arrays.
    """

    phi: Any

    def __call__(self, x: ArrayLike, y: ArrayLike, /) -> jax.Array:
        """The Bregman divergence of `x` from `y`, [...]."""
        x, y = operands(x, y)
        slope = along_rows(jax.grad(self._value))(y)
        value = along_rows(self._value)
        return value(x) - value(y) - jnp.sum(slope * (x - y), axis=-1)

    def hoisted(self, row: jax.Array) -> Bregman:
        """The same, with what φ closes over and is traced as arrays that it holds.

        A rule for derivatives may not close over them, or takes them for constants.
        """
        leaves, tree = jax.tree.flatten(self.phi)

        def value(row: jax.Array, *leaves: Any) -> jax.Array:
            return self._value(row, jax.tree.unflatten(tree, leaves))

        held, closed = jax.closure_convert(value, row, *leaves)
        if not closed:
            return self

        def phi(closed: list, leaves: list, row: jax.Array) -> jax.Array:
            # Inside `jax.shard_map` all have to vary over the same axes.
            given = row, *leaves, *closed
            return held(*vary_as(given, given))

        return Bregman(jax.tree_util.Partial(phi, closed, leaves))

    def _value(self, row: jax.Array, phi: Any = None) -> jax.Array:
        found = (self.phi if phi is None else phi)(row)
        if jnp.shape(found) != ():
            got = f"shape {jnp.shape(found)} for a vector of shape {row.shape}"
            raise ValueError(f"phi must return a scalar, got {got}")
        return jnp.asarray(found, row.dtype)


def along_rows(f: Callable) -> Callable:
    """The function of a vector [d], of every row of an array [..., d]."""

    def of_rows(rows: jax.Array) -> jax.Array:
        found = jax.vmap(f)(rows.reshape(-1, rows.shape[-1]))
        return found.reshape(*rows.shape[:-1], *found.shape[1:])

    return of_rows


def bregman(phi: Callable[[Float[Array, " d"]], Float[Array, ""]]) -> Bregman:
    """Makes the Bregman divergence D(x, y) = φ(x) − φ(y) − ⟨∇φ(y), x − y⟩ of a φ.

    Whatever φ, the point of least total divergence from points is their mean, so that
    `newton` and `ema` serve it, and the pass is one matrix product. The gradient is
    ∇φ(x) − ∇φ(y) in `x` and −∇²φ(y)(x − y) in `y`, both by automatic differentiation of
    φ, and in arrays that φ closes over or holds, as `jax.tree_util.Partial(f, a)` does.
    Two divergences of the same function φ are one program.

    Values are decided to the rounding of φ: in float32 the divergence of two near
    vectors is noise where it is below 10⁻⁷ φ; those that have names here are stable. A
    derivative of a soft fit takes the matrix ∇²φ, [d, d], at every centroid.

    Args:
        phi: A convex function of vectors [d], in data units, to scalars, in any unit,
            that JAX can differentiate twice; static by identity, and its arrays, if it
            is a tree, traced.

    Returns:
        A function of x, y [..., d] that returns divergences [...], in the unit of φ,
        float64 if either is, else float32, and raises what `squared_euclidean` raises.

    Raises:
        TypeError: `phi` is no function.
        ValueError: `phi` does not return a scalar.

    Example:
        >>> logistic = dk.bregman(lambda p: jnp.sum(p * jnp.log(p)
        ...                                         + (1 - p) * jnp.log(1 - p)))
        >>> x, c = jnp.array([[0.2], [0.4], [0.9]]), jnp.array([[0.25], [0.75]])
        >>> result = dk.fit(x, c, distance=logistic)
        >>> [f"{v:.1f}" for v in result.centroids.ravel()]  # Means, as of any φ.
        ['0.3', '0.9']

    Source: Banerjee et al. 2005, https://jmlr.org/papers/v6/banerjee05b.html
    """
    check_callable("phi", phi)
    return Bregman(as_tree(phi))


class BregmanForm(Form):
    """Of a φ that is only known as a function, s = 1."""

    scale = 1.0
    is_invariant = False
    is_metric = False
    domain = "be where phi is finite"
    is_flat = True

    def __init__(self, distance: Bregman) -> None:
        self.divergence = distance
        self.gradient = along_rows(jax.grad(distance._value))

    def dual(self, b: jax.Array, m: jax.Array) -> jax.Array:
        return self.gradient(m + b) - self.gradient(m)

    def offset(self, b: jax.Array, m: jax.Array) -> jax.Array:
        return self.divergence(m, m + b)

    def cost(
        self, x: jax.Array, c: jax.Array, directionless: jax.Array | None = None
    ) -> jax.Array:
        del directionless
        return self.divergence(x, c)

    def hessian(self, c: jax.Array, v: jax.Array) -> jax.Array:
        # Inside `jax.shard_map` both have to vary over the same axes.
        c, v = vary_as(c, v), vary_as(v, c)
        return jax.jvp(self.gradient, (c,), (v,))[1]

    def step_cost(self, c: jax.Array, step: jax.Array) -> jax.Array:
        # ∫ (1 − t) ⟨δ, ∇²φ(c + t δ) δ⟩ dt, to third order in δ, and not the difference
        # of two φ, which is noise near rest.
        return self.size(c + step / 3, step)

    def curvature(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = jnp.linalg.eigvalsh(self._matrices(c))
        return values.min(axis=1, initial=jnp.inf), values.max(axis=1, initial=0)

    def inverse_root(self, c: jax.Array, v: jax.Array) -> jax.Array:
        return inverse_root(self._matrices(c), v)

    def _matrices(self, c: jax.Array) -> jax.Array:
        return jax.vmap(jax.hessian(self.divergence._value))(c)

    def outside(self, rows: Any) -> Any:
        value = along_rows(self.divergence._value)(jnp.asarray(rows))
        return ~jnp.isfinite(value) & jnp.isfinite(rows).all(axis=-1)

    def is_negative(self, x: jax.Array, c: jax.Array) -> jax.Array:
        # Of a φ that is not convex; what its rounding is, nobody knows.
        size = jnp.abs(along_rows(self.divergence._value)(c))
        size += jnp.abs(jnp.sum(self.gradient(c) * (x - c), axis=-1))
        return self.divergence(x, c) < -(float(jnp.finfo(x.dtype).eps) ** 0.5) * size
