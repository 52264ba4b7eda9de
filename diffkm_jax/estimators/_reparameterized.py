"""Gumbel-softmax estimators: a draw as a function of noise, differentiated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import diffkm_jax.assignments as maps
from diffkm_jax._checks import check_integer
from diffkm_jax.estimators._estimator import Estimator, setting, through

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def gumbel_softmax(*, tau: ArrayLike = 1.0, hard: bool = False) -> Estimator:
    """Gumbel-softmax: the cost at relaxed rows, or at their one-hot if `hard`.

    The gradient is that of the cost through softmax((logits + noise)/tau): biased, less
    as `tau` falls, at a variance that grows like 1/tau. The value is the cost at the
    relaxed rows, biased; if `hard`, the cost at the draw, unbiased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        hard: Whether the cost sees one-hot rows (straight-through Gumbel-softmax).

    Returns:
        An `Estimator`: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` is not a scalar, or a number and not positive.

    Example:
        >>> logits, noise = jnp.zeros(2), jnp.array([[0.0, 0.0]])
        >>> records = es.gumbel_softmax(), es.gumbel_softmax(hard=True)
        >>> [float(record.expect(jnp.max, logits, noise)) for record in records]
        [0.5, 1.0]

    Source: Jang, Gu & Poole 2017, https://arxiv.org/abs/1611.01144
    """
    settings = {"tau": setting("tau", tau)}
    name = "gumbel_softmax_hard" if hard else "gumbel_softmax"
    return Estimator(name, through(maps.gumbel_softmax, hard=bool(hard)), settings)


def decoupled_gumbel_softmax(
    *, tau: ArrayLike = 1.0, tau_backward: ArrayLike = 1.0
) -> Estimator:
    """Gumbel-softmax with one softness for the value and one for the gradient.

    The gradient is that of the cost at softmax((logits + noise)/tau), through
    softmax((logits + noise)/tau_backward): biased. The value is the cost at the relaxed
    rows, biased.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        tau_backward: Positive scalar, in the unit of the logits; may be traced.

    Returns:
        An `Estimator`: logits [..., k], noise [1, ..., k], costs [*batch].

    Raises:
        ValueError: `tau` or `tau_backward` is not a scalar, or a number and not
            positive.

    Example:
        >>> logits, noise = jnp.zeros(2), jnp.zeros((1, 2))
        >>> def first(z, tau):
        ...     record = es.decoupled_gumbel_softmax(tau=0.1, tau_backward=tau)
        ...     return record.expect(lambda row: row[0], z, noise)
        >>> curve = jax.vmap(jax.grad(first), (None, 0))  # Over settings.
        >>> curve(logits, jnp.array([0.5, 1.0])).tolist()
        [[0.5, -0.5], [0.25, -0.25]]

    Source: Shah, Yan, Mozer & Liu 2024, https://arxiv.org/abs/2410.13331
    """
    rule = through(maps.decoupled_gumbel_softmax)
    settings = {
        "tau": setting("tau", tau),
        "tau_backward": setting("tau_backward", tau_backward),
    }
    return Estimator("decoupled_gumbel_softmax", rule, settings)


def gumbel_rao(*, tau: ArrayLike = 1.0, num_samples: int = 10) -> Estimator:
    """Gumbel-Rao: straight-through Gumbel-softmax averaged given the draw.

    The gradient is that of the cost at the draw, through the mean of `num_samples`
    relaxed rows conditioned on it: the bias of `gumbel_softmax(hard=True)` at less
    variance. The value is the cost at the draw, unbiased; the cost is evaluated once.

    Args:
        tau: Positive scalar, in the unit of the logits; may be traced.
        num_samples: Conditional samples m, at least 1; static.

    Returns:
        An `Estimator`: logits [..., k], noise [1 + m, ..., k], costs [*batch].

    Raises:
        TypeError: `num_samples` is no integer.
        ValueError: `num_samples` is below 1; `tau` is not a scalar, or a number and not
            positive.

    Example:
        >>> record, logits = es.gumbel_rao(num_samples=3), jnp.zeros((5, 2))
        >>> noise = record.draw(jax.random.key(0), logits.shape)
        >>> costs = record.expect(lambda rows: rows.max(-1), logits, noise)
        >>> noise.shape, costs.tolist()
        ((4, 5, 2), [1.0, 1.0, 1.0, 1.0, 1.0])

    Source: Paulus, Maddison & Krause 2021, https://arxiv.org/abs/2010.04838
    """
    check_integer("num_samples", num_samples, minimum=1)
    rule, settings = through(maps.gumbel_rao), {"tau": setting("tau", tau)}
    return Estimator("gumbel_rao", rule, settings, num_draws=1 + num_samples)
