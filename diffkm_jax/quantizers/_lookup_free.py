"""Lookup-free quantization: the signs of coordinates, and the entropies of codes."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from diffkm_jax._blocks import fill_inert, fill_rows, finite_costs, weigh
from diffkm_jax._checks import as_real, as_scalar, check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import hinted
from diffkm_jax._numerics import quotient, unit_of
from diffkm_jax.quantizers._finite_scalar import as_float_dtype, as_labels
from diffkm_jax.quantizers._leading import flattened
from diffkm_jax.quantizers._lines import lines_of_signs
from diffkm_jax.quantizers._vector_maps import straight_through_vector

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike
    from jaxtyping import Array, Float, Int

# 2²⁴ probabilities of codes take 64 MB in float32.
MOST_BITS = 24


class LookupFreeQuantized(NamedTuple):
    """Points replaced by their signs, and the losses that train an encoder.

    Attributes:
        values: −1 or 1 for every coordinate, [..., d], no unit.
        labels: Index among the 2^d codes, [...], int32: coordinate i, from 0, adds 2^i
            where it is positive.
        commitment_loss: Σ w ‖x − q‖², [], which moves points to their codes.
        entropy_loss: `sample_entropy` − diversity_weight `batch_entropy`, [], in nats.
        sample_entropy: E H(p(x)), [], in nats: small where codes are certain.
        batch_entropy: H(E p(x)), [], in nats: large where all codes are used.
    """

    values: Float[Array, "*batch d"]
    labels: Int[Array, "*batch"]
    commitment_loss: Float[Array, ""]
    entropy_loss: Float[Array, ""]
    sample_entropy: Float[Array, ""]
    batch_entropy: Float[Array, ""]

    def __repr__(self) -> str:
        return lines_of_signs(self)


export.register_namedtuple_serialization(
    LookupFreeQuantized, serialized_name="diffkm.LookupFreeQuantized"
)


@hinted
def lookup_free_quantize(
    points: Float[ArrayLike, "*batch d"],
    *,
    temperature: ArrayLike = 0.01,
    diversity_weight: ArrayLike = 1.0,
    weights: Float[ArrayLike, "*batch"] | None = None,
    group_size: int | None = None,
) -> LookupFreeQuantized:
    """Replaces every coordinate by its sign: a codebook of 2^d without parameters.

    The gradient of the values is that of the point itself, biased by design, reverse
    mode only. Those of the losses are exact, to all orders. Their probabilities are
    p(x) = softmax(−‖x − q‖²/temperature) over the 2^d codes q: coordinates are
    independent, each positive with probability σ(4 x/temperature). So the entropy of
    one point is a sum over coordinates; that of the mean over points is not, and takes
    a product of two matrices of n rows and about 2^(d/2) columns, and 2^d numbers.

    Args:
        points: Data, [..., d], real, no unit: of the size of 1.
        temperature: Positive scalar, in squared units of `points`; may be traced.
        diversity_weight: Scalar, not negative, no unit, of the entropy of the batch;
            may be traced.
        weights: Non-negative, [...], any unit: of the losses, which for entropies are
            means by weight; a row of weight 0 is inert, and what is not finite in it
            is taken to be its code. None is ones.
        group_size: Coordinates in a group, static, at most 24; divides d. The entropy
            of the batch is the sum of those of groups then, which is no less than the
            one of all, and as much where groups are independent. None is all d.

    Returns:
        A `LookupFreeQuantized`: values in the dtype of `points`, −1 for 0 and NaN;
        labels; and losses, [], float64 if points or weights are, else float32. Without
        any weight they are 0.

    Raises:
        TypeError: An array is not real, `group_size` is no integer, or forward mode is
            asked for.
        ValueError: A shape does not fit, `points` has no row, or no coordinate, or more
            than 31; a scalar is none, or a number out of range; `group_size` is out of
            range, does not divide d, or is None for more than 24.

    Example:
        >>> x = jnp.array([[0.3, -0.2], [-0.1, -0.4], [0.2, 0.3]])
        >>> q = dk.lookup_free_quantize(x, temperature=0.1)
        >>> q.values[0].tolist(), q.labels.tolist()
        ([1.0, -1.0], [1, 0, 3])
        >>> bool(q.sample_entropy < q.batch_entropy)
        True

    Source: Yu et al. 2023, https://arxiv.org/abs/2310.05737; groups as in Zhao, Xiong &
    Krähenbühl 2024, https://arxiv.org/abs/2406.07548
    """
    points = as_real("points", points)
    *batch, d = points.shape or (0,)
    if points.ndim == 0 or not 1 <= d <= 31:
        found = f"got shape {points.shape}"
        raise ValueError(f"points must be [..., d] with d from 1 to 31, {found}")
    w = None if weights is None else as_real("weights", weights)
    rows, w = flattened(points, w)
    size = _as_group_size(group_size, d)
    temperature = as_scalar("temperature", temperature, points, w)
    factor = as_scalar("diversity_weight", diversity_weight, points, w, zero=True)
    positive = points > 0
    codes = jnp.where(positive, 1, -1).astype(points.dtype)
    places = jnp.int32(1) << lax.broadcasted_iota(jnp.int32, points.shape, len(batch))
    labels = jnp.sum(jnp.where(positive, places, 0), axis=-1, dtype=jnp.int32)
    given = rows, codes.reshape(rows.shape), w, temperature
    commitment_loss, one, all_of_them = _losses(size, *given)
    return LookupFreeQuantized(
        straight_through_vector(points, codes),
        labels,
        commitment_loss,
        one - factor * all_of_them,
        one,
        all_of_them,
    )


@hinted
def lookup_free_values(
    labels: Int[ArrayLike, "*batch"], *, d: int, dtype: DTypeLike | None = None
) -> Float[Array, "*batch d"]:
    """The values that `lookup_free_quantize` gives the labels: its inverse.

    They are constant: there is no gradient in labels.

    Args:
        labels: Indices of codes, [...], integers from 0 to 2^d, exclusive, no unit.
        d: Number of coordinates, from 1 to 31, static.
        dtype: Of the result, floating; None is the default float.

    Returns:
        Values, [..., d], −1 or 1.

    Raises:
        TypeError: `labels` are no integers, `d` is no integer, or `dtype` is not
            floating.
        ValueError: `d` is out of range.

    Example:
        >>> dk.lookup_free_values(jnp.arange(4), d=2).tolist()
        [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]

    Source: Yu et al. 2023, https://arxiv.org/abs/2310.05737
    """
    labels = as_labels(labels)
    check_integer("d", d, minimum=1, maximum=31)
    found = as_float_dtype(dtype)
    shape = (*labels.shape, d)
    bits = labels[..., None] >> lax.broadcasted_iota(jnp.int32, shape, labels.ndim)
    return jnp.where(bits % 2 == 1, 1, -1).astype(found)


def _as_group_size(group_size: int | None, d: int) -> int:
    if group_size is None:
        if d > MOST_BITS:
            most = f"at most {MOST_BITS}, and a divisor of d = {d}"
            raise ValueError(f"group_size must be given: {most}; got None")
        return d
    check_integer("group_size", group_size, minimum=1, maximum=MOST_BITS)
    if d % group_size:
        raise ValueError(f"group_size must divide d = {d}, got {group_size}")
    return int(group_size)


@partial(jax.jit, static_argnums=0)
def _losses(
    size: int,
    points: jax.Array,
    codes: jax.Array,
    weights: jax.Array | None,
    temperature: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The commitment loss, the mean entropy, and the entropy of the mean."""
    n, d = points.shape
    acc = accumulation_dtype(points, weights)
    w = None if weights is None else weights.astype(acc)
    codes = codes.astype(acc)
    x = fill_inert(points.astype(acc), w, codes)
    x = fill_rows(x, w, jnp.sum(_entropies(x, temperature), axis=-1), codes)
    costs = jnp.sum((x - codes) ** 2, axis=-1)
    commitment_loss = jnp.sum(weigh(w, finite_costs(costs, w)))
    # Means do not depend on the unit of the weights, but what underflows does.
    if w is not None:
        w = w / unit_of(lax.stop_gradient(jnp.max(w)))
    total = jnp.asarray(n, acc) if w is None else jnp.sum(w)
    total = jnp.where(total == 0, 1, total)
    one = jnp.sum(weigh(w, jnp.sum(_entropies(x, temperature), axis=-1))) / total
    # Of independent coordinates the probabilities of codes are products.
    bits = jnp.exp(_log_bits(x, temperature)).reshape(n, d // size, size, 2)
    low, high = _products(bits[:, :, : size // 2]), _products(bits[:, :, size // 2 :])
    low = weigh(w, low)
    sums = jnp.einsum("nga,ngb->gba", low, high, precision=lax.Precision.HIGHEST)
    # By their own sum, which is that of the weights: one code alone has entropy 0 then.
    mass = jnp.sum(jnp.sum(sums, axis=2, keepdims=True), axis=1, keepdims=True)
    return commitment_loss, one, _entropy(sums / jnp.where(mass == 0, 1, mass))


def _entropy(p: jax.Array) -> jax.Array:
    """The entropy of probabilities; those of about 10⁻¹⁸ or less in float32 are none.

    Small ones in a unit in which their powers to the fourth, by which derivatives are
    divided, are normal numbers.
    """
    exponent = jnp.finfo(p.dtype).maxexp * 15 // 64
    # What is NaN is used.
    used, small = ~(p < 2.0 ** (-2 * exponent)), p < 2.0**-exponent
    scaled = jnp.where(used, jnp.where(small, 2.0**exponent * p, p), 1)
    log_p = jnp.log(scaled) - jnp.where(small, exponent * math.log(2), 0)
    return -jnp.sum(jnp.where(used, p, 0) * log_p)


def _log_bits(x: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logarithms of the probabilities of −1 and 1, [n, d, 2]."""
    # Beyond are zeros and ones, of which no logarithm is infinite then.
    z = jnp.clip(4 * quotient(x, temperature), -1000, 1000)
    return jnp.stack([jax.nn.log_sigmoid(-z), jax.nn.log_sigmoid(z)], axis=-1)


def _entropies(x: jax.Array, temperature: jax.Array) -> jax.Array:
    """The entropies of coordinates, [n, d]."""
    log_p = _log_bits(x, temperature)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _products(bits: jax.Array) -> jax.Array:
    """Probabilities of codes of s coordinates, [n, g, 2^s], of [n, g, s, 2]."""
    n, g, size, _ = bits.shape
    found = jnp.ones((n, g, 1), bits.dtype)
    for i in range(size):
        parts = [found * bits[:, :, i, j, None] for j in range(2)]
        found = jnp.concatenate(parts, axis=-1)
    return found
