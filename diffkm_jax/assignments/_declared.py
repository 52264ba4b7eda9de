"""A value with a gradient that is not its derivative: one rule for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

Value = Callable[..., jax.Array]
Rule = Callable[..., tuple]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def declared(value: Value, rule: Rule, *arrays: Any) -> jax.Array:
    """`value(*arrays)`, with `rule(cotangent, *arrays)` as its gradient.

    Reverse mode only. A second derivative is that of the rule, in the cotangent and the
    arrays, and of the value by the rule again.

    Args:
        value: Function of the arrays to one array; static, closes over no array.
        rule: Function of a cotangent of the value and the arrays to a tuple, for each
            array its cotangent, in its dtype, or None for zero; static, closes over no
            array.
        *arrays: What both take; any may be None or integer.
    """
    del rule
    return value(*arrays)


def _forward(value: Value, rule: Rule, *arrays: Any) -> tuple[jax.Array, tuple]:
    # The decorated function, so that a second derivative meets the rule again.
    return declared(value, rule, *arrays), arrays


def _backward(value: Value, rule: Rule, arrays: tuple, cotangent: jax.Array) -> tuple:
    del value
    return rule(cotangent, *arrays)


declared.defvjp(_forward, _backward)


def gradient_of(surrogate: Value) -> Rule:
    """The rule that takes the gradient of another function of the same arrays."""

    def rule(cotangent: jax.Array, *arrays: Any) -> tuple:
        soft, pullback = jax.vjp(surrogate, *arrays)
        return pullback(cotangent.astype(soft.dtype))

    return rule
