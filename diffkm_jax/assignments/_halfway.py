"""ReinMax averaged over relaxed draws given the discrete one: less variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from diffkm_jax._checks import as_logits, as_noise, as_scalar
from diffkm_jax._numerics import quotient
from diffkm_jax.assignments._conditional import below_draw, first_draw
from diffkm_jax.assignments._declared import declared
from diffkm_jax.assignments._softmax import relaxed
from diffkm_jax.assignments._straight_through import (
    chosen,
    covariance,
    perturbed,
    second_order,
)

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def reinmax_rao(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "draws *batch k"],
    *,
    tau: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a cluster for every row, with ReinMax's gradient averaged given the draw.

    The value is the one-hot D of argmax(logits + noise[0]). With p = softmax(logits)
    and θ = log((p + D)/2), the other rows of `noise` make m samples s of
    softmax((θ + Gumbel noise)/tau) of which D is the argmax, and the gradient in
    `logits` of a cotangent g is 2 mean(J(s) g)/tau − J(p) g / 2: `reinmax` with the
    first of its terms by Gumbel-Rao, of less variance; biased, for quadratic costs too;
    reverse mode only. The gradient in `noise` and `tau` is zero.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [1 + m, ..., k], floating, no unit, m at least 1:
            row 0 draws, the others are for the m samples given the draw.
        tau: Positive scalar, in the unit of `logits`; shapes the gradient only, and
            may be traced.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` not real, or forward mode
            is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` does not fit; `tau`
            is not a scalar, or a number and not positive.

    Example:
        >>> noise = jax.random.gumbel(jax.random.key(0), (1 + 8, 2))
        >>> row, pullback = jax.vjp(lambda z: dk.reinmax_rao(z, noise), jnp.zeros(2))
        >>> row.tolist() == dk.hard(noise[0]).tolist()
        True
        >>> np.allclose(sum(pullback(jnp.array([1.0, 0.0]))[0]), 0, atol=1e-6)
        True

    Source: Wang & Bui 2026, https://arxiv.org/abs/2603.08257
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=2)
    tau = as_scalar("tau", tau, logits, noise)
    return declared(first_draw, _rao_rule, logits, noise, tau)


def _rao_rule(
    cotangent: jax.Array, logits: jax.Array, noise: jax.Array, tau: jax.Array
) -> tuple[jax.Array, None, None]:
    g = cotangent.astype(tau.dtype)
    _, averaged = _midway(g, logits, noise, tau)
    p = relaxed(logits, jnp.ones_like(tau))
    gradient = 2 * averaged - 0.5 * covariance(p, g)
    gradient = jnp.where(jnp.isneginf(logits), 0, gradient)
    return gradient.astype(logits.dtype), None, None


def _midway(
    g: jax.Array, logits: jax.Array, noise: jax.Array, tau: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Halfway logits θ = log((p + D)/2), and the mean of J(s) g/tau given the draw."""
    z, drawn = logits.astype(tau.dtype), chosen(logits, noise[0])
    log_p = jnp.where(jnp.isneginf(z), -jnp.inf, jax.nn.log_softmax(z))
    halfway = jnp.logaddexp(log_p, jnp.where(drawn > 0, 0, -jnp.inf)) - jnp.log(2.0)
    rest = lax.stop_gradient(noise[1:])
    entries = below_draw(halfway, drawn, rest, differentiable=False)
    slopes = jax.vmap(lambda s: covariance(relaxed(s, tau), g))(entries)
    return halfway, quotient(jnp.mean(slopes, axis=0), tau)


def reinmax_cv(
    logits: Float[ArrayLike, "*batch k"],
    noise: Float[ArrayLike, "draws *batch k"],
    *,
    tau: ArrayLike = 1.0,
    eta: ArrayLike = 1.0,
) -> Float[Array, "*batch k"]:
    """Draws a cluster for every row, with ReinMax's gradient and a control variate.

    The value is the one-hot D of argmax(logits + noise[0]). With θ and the m samples s
    of `reinmax_rao`, and t = softmax((θ + noise[0])/tau), the gradient in `logits` of a
    cotangent g is that of `reinmax` at tau = 1, plus
    eta (mean(J(s) g) − J(t) g)/tau; reverse mode only. That in `noise`, `tau` and `eta`
    is zero.

    The two terms do not have the same mean: D is the argmax of logits + noise[0], which
    says more than that of θ + noise[0]. So the variate changes the bias too; one of
    mean zero given D could not reduce the variance of `reinmax`, which is a function of
    D.

    Args:
        logits: Unnormalized log-probabilities, [..., k], floating, no unit; −inf is
            never drawn.
        noise: Standard Gumbel noise, [1 + m, ..., k], floating, no unit, m at least 1:
            row 0 draws, the others are for the m samples given the draw.
        tau: Positive scalar, in the unit of `logits`, of the control variate; may be
            traced.
        eta: Scalar, not negative, no unit: the weight of the control variate; may be
            traced.

    Returns:
        One-hot rows, [..., k], in the dtype of `logits`.

    Raises:
        TypeError: `logits` or `noise` is not floating, `tau` or `eta` not real, or
            forward mode is asked for.
        ValueError: `logits` is a scalar or has no cluster; `noise` does not fit; `tau`
            or `eta` is not a scalar, or a number out of range.

    Example:
        >>> noise = jax.random.gumbel(jax.random.key(0), (1 + 8, 4))
        >>> def slope(draw, *noise, **settings):
        ...     return jax.grad(lambda z: draw(z, *noise, **settings)[0])(jnp.zeros(4))
        >>> of_reinmax = slope(dk.reinmax, noise[0])
        >>> np.allclose(slope(dk.reinmax_cv, noise, eta=0.0), of_reinmax)
        True

    Source: Wang & Bui 2026, https://arxiv.org/abs/2603.08257
    """
    logits = as_logits(logits)
    noise = as_noise(noise, logits, draws=2)
    tau = as_scalar("tau", tau, logits, noise)
    eta = as_scalar("eta", eta, logits, noise, zero=True)
    return declared(first_draw, _cv_rule, logits, noise, tau, eta)


def _cv_rule(
    cotangent: jax.Array,
    logits: jax.Array,
    noise: jax.Array,
    tau: jax.Array,
    eta: jax.Array,
) -> tuple[jax.Array, None, None, None]:
    g = cotangent.astype(tau.dtype)
    gradient = second_order(g, logits, chosen(logits, noise[0]), jnp.ones_like(tau))
    halfway, averaged = _midway(g, logits, noise, tau)
    soft = relaxed(perturbed(halfway, lax.stop_gradient(noise[0])), tau)
    gradient += eta * (averaged - quotient(covariance(soft, g), tau))
    gradient = jnp.where(jnp.isneginf(logits), 0, gradient)
    return gradient.astype(logits.dtype), None, None, None
