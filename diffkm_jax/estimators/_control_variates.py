"""Estimators with control variates: what is subtracted has a known mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import diffkm_jax.assignments as maps
from diffkm_jax._checks import as_array, as_real, check_callable
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax.assignments._conditional import below_draw
from diffkm_jax.assignments._straight_through import chosen, perturbed
from diffkm_jax.estimators._attach import attach
from diffkm_jax.estimators._cost import Cost
from diffkm_jax.estimators._estimator import Estimator, HashablePartial, setting
from diffkm_jax.estimators._score_function import score, weighted, wide

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def rebar(*, tau: ArrayLike = 0.5, eta: ArrayLike = 1.0) -> Estimator:
    """REINFORCE with the relaxed cost as a control variate.

    With y = softmax((logits + noise)/tau) and y' the same given the draw, the gradient
    is (f(D) − eta f(y')) (D − p) + eta ∂f(y) − eta ∂f(y'), derivatives in the logits
    and through the conditional sampler: unbiased for any tau and eta, which may so be
    tuned by gradient descent on the variance, as `dk.tune` does: where the relaxed cost
    is far from the cost, the defaults have a larger variance than REINFORCE. The cost
    is evaluated at relaxed rows too, and must be differentiable there. The value is the
    cost at the draw, unbiased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        eta: Scalar, not negative, no unit: the weight of the control variate; may be
            traced.

    Returns:
        An `Estimator`: logits [..., k], noise [2, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` or `eta` is not a scalar, or a number out of range.

    Example:
        >>> def cost(z, eta):  # A constant cost; eta = 0 is REINFORCE.
        ...     record = es.rebar(eta=eta)
        ...     noise = record.draw(jax.random.key(0), z.shape)
        ...     return record.expect(lambda row: 9 + 0 * row[0], z, noise)
        >>> [abs(float(jax.grad(cost)(jnp.zeros(2), eta)[0])) for eta in (0.0, 1.0)]
        [4.5, 0.0]

    Source: Tucker et al. 2017, https://arxiv.org/abs/1703.07370
    """
    settings = {"tau": setting("tau", tau), "eta": setting("eta", eta)}
    return Estimator("rebar", _rebar, settings, num_draws=2)


def _rebar(
    f: Cost, logits: jax.Array, noise: jax.Array, *, tau: jax.Array, eta: jax.Array
) -> jax.Array:
    drawn = chosen(logits, noise[0])

    def free(z: jax.Array) -> jax.Array:
        return f(maps.gumbel_softmax(z, noise[0], tau=tau))

    def given_the_draw(z: jax.Array) -> jax.Array:
        entries = below_draw(z, drawn, noise[1], differentiable=True)
        return f(maps.softmax(entries, tau=tau).astype(z.dtype))

    return _controlled(f(drawn), logits, drawn, free, given_the_draw, eta)


def _controlled(
    costs: jax.Array,
    logits: jax.Array,
    drawn: jax.Array,
    free: Cost,
    given_the_draw: Cost,
    eta: jax.Array,
) -> jax.Array:
    """Costs with the estimate (f − eta c) (D − p) + eta (∂c free − ∂c given D)."""
    (_, from_free), (control, from_given) = (
        (out, pullback(jnp.ones_like(out))[0])
        for out, pullback in (jax.vjp(g, logits) for g in (free, given_the_draw))
    )
    signal = wide(costs)
    signal = signal - eta.astype(signal.dtype) * control.astype(signal.dtype)
    direction = score(logits, drawn)
    correction = (from_free - from_given).astype(direction.dtype)
    estimate = weighted(signal, direction) + eta.astype(direction.dtype) * correction
    return attach(costs, logits, jnp.where(jnp.isneginf(logits), 0, estimate))


def relax(control: Callable[..., jax.Array], params: Any) -> Estimator:
    """REINFORCE with a control variate of your own, learned: RELAX.

    With z = logits + noise the perturbed logits, z' the same given the draw and c the
    control variate, the gradient is (f(D) − c(z')) (D − p) + ∂c(z) − ∂c(z'),
    derivatives in the logits and through the conditional sampler: unbiased for any c,
    whose parameters may so be trained on the variance, as `dk.tune` does, or by the
    gradient of the squared estimate in them, step by step. The cost need not be
    differentiable. The value is the cost at the draw, unbiased.

    Args:
        control: Function (params, z) of perturbed logits [*batch, *rows, k], −inf where
            the logits are, to costs [*batch], in the unit of the cost, differentiable;
            static by identity, so defined once.
        params: Its parameters, a tree of floating arrays of any shape and unit, which
            it gets in the dtype of the perturbed logits.

    Returns:
        An `Estimator`: logits [..., k], noise [2, ..., k], costs [*batch].

    Raises:
        TypeError: `control` is no function, or `params` holds what is not real.
        ValueError: When it is used: `control` returns another shape than the cost.

    Example:
        >>> def control(params, z):
        ...     return jax.nn.softmax(z) @ params
        >>> def estimate(params):
        ...     record = es.relax(control, params)
        ...     noise = record.draw(jax.random.key(0), (2,))
        ...     f = lambda row: row @ jnp.array([3.0, 3.0])
        ...     return jax.grad(lambda z: record.expect(f, z, noise))(jnp.zeros(2))
        >>> bool(jnp.abs(estimate(jnp.zeros(2))[0]) > 1)  # REINFORCE,
        True
        >>> np.allclose(estimate(jnp.array([3.0, 3.0])), 0, atol=1e-5)  # and the best.
        True

    Source: Grathwohl et al. 2018, https://arxiv.org/abs/1711.00123
    """
    check_callable("control", control)
    dtype = jax.dtypes.canonicalize_dtype(float)
    params = jax.tree.map(lambda a: as_real("params", a).astype(dtype), params)
    rule = HashablePartial(_relax, control)
    return Estimator("relax", rule, {"params": params}, num_draws=2)


def _relax(
    control: Callable[..., jax.Array],
    f: Cost,
    logits: jax.Array,
    noise: jax.Array,
    *,
    params: Any,
) -> jax.Array:
    drawn = chosen(logits, noise[0])
    costs = f(drawn)
    dtype = accumulation_dtype(logits, noise)
    params = jax.tree.map(lambda a: a.astype(dtype), params)

    def of(z: jax.Array) -> jax.Array:
        found = as_array("the costs of control", control(params, z))
        if found.shape != costs.shape:
            raise ValueError(
                f"control must return costs of the shape of those of f {costs.shape}, "
                f"got shape {found.shape}"
            )
        return found

    def free(z: jax.Array) -> jax.Array:
        return of(perturbed(z, noise[0]))

    def given_the_draw(z: jax.Array) -> jax.Array:
        return of(maps.conditional_gumbel(z, drawn, noise[1], differentiable=True))

    one = jnp.ones((), costs.dtype)
    return _controlled(costs, logits, drawn, free, given_the_draw, one)
