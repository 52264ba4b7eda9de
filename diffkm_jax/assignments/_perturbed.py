"""Gradients by perturbation: of an argmax as a solver, and of its smoothed mean."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_noise, as_scalar
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._declared import declared
from diffkm_jax.assignments._softmax import decided
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.assignments._top_k import check_size

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def blackbox(
    logits: Float[ArrayLike, "*batch k"], *, strength: ArrayLike = 1.0, size: int = 1
) -> Float[Array, "*batch k"]:
    """Assigns every row to its best cluster, with the slope to a perturbed solution.

    The value is the one-hot y of the argmax, or the row of the `size` best. The
    gradient in `logits` of a cotangent g is (y(logits) − y(logits −
    strength·g))/strength: the gradient of a piecewise linear interpolation of the cost,
    zero unless the perturbation changes the choice. It is not linear in g, has no
    second derivative, and is reverse mode only; in `strength` it is zero.

    Args:
        logits: Scores, [..., k], floating, no unit; the largest wins, a tie goes to
            the lowest index.
        strength: Positive scalar λ, in the unit of `logits` per unit of the cotangent;
            may be traced. Larger interpolates further.
        size: How many clusters to choose, from 1 to k; static.

    Returns:
        Rows of `size` ones and else zeros, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` is not floating, `strength` not real, `size` no Python
            integer, or forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `strength` is not a scalar,
            or a number and not positive; `size` is out of range.

    Example:
        >>> def slope(strength):
        ...     return jax.grad(lambda z: dk.blackbox(z, strength=strength)[0])
        >>> [slope(s)(jnp.array([1.0, 0.0])).tolist() for s in (0.5, 2.0)]
        [[0.0, 0.0], [0.5, -0.5]]

    Source: Vlastelica et al. 2020, https://arxiv.org/abs/1912.02175
    """
    logits = as_logits(logits)
    check_size(size, logits)
    strength = as_scalar("strength", strength, logits)
    value, rule = partial(chosen, size=size), partial(_target_rule, True, size)
    return declared(value, rule, logits, None, strength)


def implicit_mle(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "*batch k"],
    *,
    strength: ArrayLike = 1.0,
    scaled: bool = False,
    size: int = 1,
) -> Float[Array, "*batch k"]:
    """Draws a cluster for every row, with the difference to a draw from better logits.

    The value is the one-hot y of argmax(logits + noise), or the row of its `size`
    largest, drawn without replacement as by `gumbel_top_k`. The gradient in `logits` of
    a cotangent g is y(logits) − y(logits − strength·g), under the same noise: implicit
    maximum likelihood, towards a target that the loss prefers. `scaled` divides it by
    `strength`, so that its size does not grow with it. Biased, not linear in g, without
    a second derivative, reverse mode only; in `noise` and `strength` it is zero.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [..., k], floating, no unit.
        strength: Positive scalar λ, in the unit of `logits` per unit of the cotangent;
            may be traced.
        scaled: Whether to divide by `strength`; static.
        size: How many clusters to draw, from 1 to k; static.

    Returns:
        Rows of `size` ones and else zeros, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `strength` not real, `size` no
            Python integer, or forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` has not its shape;
            `strength` is not a scalar, or a number and not positive; `size` is out of
            range.

    Example:
        >>> noise = jnp.array([1.0, 0.0])
        >>> def first(z, scaled):
        ...     return dk.implicit_mle(z, noise, strength=2.0, scaled=scaled)[0]
        >>> [jax.grad(first)(jnp.zeros(2), scaled).tolist() for scaled in (False, True)]
        [[1.0, -1.0], [0.5, -0.5]]

    Source: Niepert, Minervini & Franceschi 2021, https://arxiv.org/abs/2106.01798
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits)
    check_size(size, logits)
    strength = as_scalar("strength", strength, logits, noise)
    value, rule = partial(chosen, size=size), partial(_target_rule, bool(scaled), size)
    return declared(value, rule, logits, noise, strength)


def _target_rule(
    scaled: bool,
    size: int,
    cotangent: jax.Array,
    logits: jax.Array,
    noise: jax.Array | None,
    strength: jax.Array,
) -> tuple[jax.Array, None, None]:
    given = logits, noise, strength, cotangent
    gradient = to_target(*given, scaled=scaled, size=size)
    return gradient.astype(logits.dtype), None, None


def to_target(
    logits: jax.Array,
    noise: jax.Array | None,
    strength: jax.Array,
    g: jax.Array,
    *,
    scaled: bool,
    size: int,
) -> jax.Array:
    """The choice less the choice at logits − strength·g, in the dtype of strength."""
    better = logits.astype(strength.dtype) - strength * g.astype(strength.dtype)
    choice = chosen(logits, noise, size=size).astype(strength.dtype)
    difference = choice - chosen(better, noise, size=size)
    return difference / strength if scaled else difference


def perturbed_argmax(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "draws *batch k"],
    *,
    scale: ArrayLike = 1.0,
    distribution: str = "gumbel",
    size: int = 1,
) -> Float[Array, "*batch k"]:
    """The mean of m draws at perturbed logits: an argmax made smooth.

    The value is the mean over m of the one-hot y_m of argmax(logits + scale·noise_m),
    or of the row of its `size` largest: in expectation a smooth map, with one and of
    Gumbel noise softmax(logits/scale). Its derivatives are those of that map in
    expectation, of every order and in both modes, by the density of the noise: the
    Jacobian is the mean of y_m (1 − exp(−noise_m))ᵀ/scale, or y_m noise_mᵀ/scale of
    normal noise, at a variance like 1/(m·scale²). The gradient in `noise` and `scale`
    is zero.

    Args:
        logits: Scores, [..., k], floating, no unit; −inf is never chosen.
        noise: Standard noise, [m, ..., k], floating, no unit, m at least 1.
        scale: Positive scalar, in the unit of `logits`; may be traced.
        distribution: Of the noise, "gumbel" or "normal"; static.
        size: How many clusters to choose, from 1 to k; static.

    Returns:
        Rows that sum to `size`, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `scale` not real, or `size` no
            Python integer.
        ValueError: `logits` is a scalar or has no cluster; `noise` does not fit;
            `scale` is not a scalar, or a number and not positive; `distribution` is
            neither; `size` is out of range.

    Example:
        >>> logits = jnp.array([1.0, 0.0])
        >>> noise = jnp.array([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [2.0, 1.0]])
        >>> [dk.perturbed_argmax(logits, noise, scale=s).tolist() for s in (1.0, 0.1)]
        [[0.75, 0.25], [1.0, 0.0]]

    Source: Berthet et al. 2020, https://arxiv.org/abs/2002.08676; Cordonnier et al.
        2021 (the best several), https://arxiv.org/abs/2104.03059
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=1)
    if distribution not in ("gumbel", "normal"):
        raise ValueError(
            f"distribution must be 'gumbel' or 'normal', got {distribution!r}"
        )
    check_size(size, logits)
    dtype = accumulation_dtype(logits, noise)
    scale = lax.stop_gradient(as_scalar("scale", scale, logits, noise))
    noise = lax.stop_gradient(noise.astype(dtype))
    z = jnp.broadcast_to(logits, noise.shape).astype(dtype)
    z = decided(z) if size == 1 else z
    excluded = jnp.isneginf(z)
    draws = chosen(z, scale * noise, size=size)
    z = jnp.where(jnp.isinf(z), 0, z)
    # Noise that would make the same perturbed logits: its density carries the gradient.
    move = (lax.stop_gradient(z) - z) / scale
    g = jnp.where(jnp.isinf(noise), 0, noise) + move
    if distribution == "normal":
        log_density = jnp.where(jnp.isinf(noise), 0, -0.5 * g**2)
    else:
        # At noise of +inf only the first term is left, at −inf there is no limit.
        log_density = jnp.where(jnp.isposinf(noise), -move, -g - jnp.exp(-g))
    log_density = jnp.where(excluded | jnp.isneginf(noise), 0, log_density)
    log_density = jnp.sum(log_density, axis=-1, keepdims=True)
    ratio = jnp.exp(log_density - lax.stop_gradient(log_density))
    return jnp.mean(ratio * draws, axis=0).astype(logits.dtype)
