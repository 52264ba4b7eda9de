"""The record of an estimator: what it is, what a cost and a setting of it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffkm_jax._checks import (
    as_floating,
    as_logits,
    check_key,
    check_scalar,
    check_shape,
)
from diffkm_jax._hints import shown
from diffkm_jax.estimators._cost import CheckedCost, Cost, HashablePartial
from diffkm_jax.estimators._laws import PLACKETT_LUCE, Law, as_law

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike
    from jaxtyping import Array, Float

Rule = Callable[..., jax.Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["settings"],
    meta_fields=["name", "rule", "num_draws", "discrete", "size", "law"],
)
@dataclass(frozen=True, eq=False)
class Estimator:
    """How to estimate the gradient of E f(D), the expected cost of D ~ softmax(logits).

    Or of a subset D of the clusters, a row of `size` ones, by a `law` of the logits.

    A pytree: its settings are leaves, the rest is static. So it is an argument of a
    jitted function, which compiles once for each estimator and never for a setting;
    `jax.vmap` maps over settings, and `jax.grad` differentiates in them.

    Your own is a record too, its rule a function at module level, as in the example. A
    rule that is differentiable as it stands returns `f(rows)`. One of hard rows that
    does neither has gradient zero.

    Attributes:
        name: What to call it in a table.
        rule: Function (f, logits, noise, **settings) to costs, [*batch]; static by
            identity, so defined once, at module level.
        settings: Its hyperparameters by name, each an array, a number, None or a tree
            of arrays.
        num_draws: Rows of noise that one estimate takes.
        discrete: Whether the noise matters only through argmax(logits + noise[i]), or
            the subset that is drawn, so that `evaluate` may enumerate the draws;
            `is_discrete` tests it.
        size: How many clusters a draw has, 1 for one of softmax(logits).
        law: Of a draw of several, "plackett_luce" (the largest of logits + noise, one
            after the other without replacement, as `dk.gumbel_top_k` draws) or
            "conditional_bernoulli" (in proportion to ∏ exp(logits), as `dk.simple`).

    Raises:
        TypeError: `size` is no Python integer.
        ValueError: `size` is below 1, or `law` neither.

    Example:
        >>> def my_reinforce(f, logits, noise, *, scale):
        ...     row = dk.hard(logits + noise[0])
        ...     costs = f(row)
        ...     score = row - jax.nn.softmax(logits)
        ...     estimate = scale * es.over_rows(costs, row) * score
        ...     return es.attach(costs, logits, estimate)
        >>> mine = es.Estimator("mine", my_reinforce, {"scale": 1.0}, discrete=True)
        >>> problem = jax.random.key(0), lambda row: row[0], jnp.zeros(2)
        >>> bool(dk.is_discrete(*problem, mine))
        True
    """

    name: str
    rule: Rule
    settings: dict[str, Any] = field(default_factory=dict)
    num_draws: int = 1
    discrete: bool = False
    size: int = 1
    law: str = PLACKETT_LUCE

    def __post_init__(self) -> None:
        """Checks what is drawn."""
        as_law(self.size, self.law)

    def draw(
        self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
    ) -> Float[Array, "draws ..."]:
        """The noise of one estimate: standard Gumbel, without a gradient.

        Row i is the same for every estimator that draws it from the same key.

        Args:
            key: A random key.
            shape: That of the logits, [*batch, *rows, k].
            dtype: Floating; the noise is float32 or wider.

        Returns:
            Noise, [num_draws, *shape].

        Raises:
            TypeError: `key` is no random key, or `dtype` is not floating.
        """
        check_key(key)
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype must be floating, got {dtype}")
        return draw_gumbel(key, self.num_draws, shape, dtype)

    def expect(
        self,
        f: Cost,
        logits: Float[ArrayLike, "*batch_rows k"],
        noise: Float[ArrayLike, "draws *batch_rows k"] | None = None,
    ) -> Float[Array, "*batch"]:
        """The cost at a draw; its gradient in the logits is the estimate.

        That gradient is linear in its cotangent: a mean over the batch, or a weight of
        an example, scales the estimate and changes nothing else. Arrays that `f` closes
        over have the gradient of the cost as it was evaluated.

        Args:
            f: Cost, from rows [*batch, *rows, k] to costs [*batch]. Axes that it keeps
                are separate problems: a cost depends on the rows of its own problem. A
                scalar is one problem.
            logits: Unnormalized log-probabilities, [*batch, *rows, k], floating, no
                unit; −inf is never drawn.
            noise: Standard Gumbel noise, [num_draws, *batch, *rows, k], as from `draw`;
                None for an estimator without any.

        Returns:
            Costs, [*batch], in the dtype that `f` returns: an unbiased estimate of the
            expected cost wherever `f` is evaluated at draws.

        Raises:
            TypeError: `logits`, `noise` or the costs are not floating, or `f` is no
                function.
            ValueError: `logits` is a scalar or has fewer than two clusters or than a
                draw, `noise` does not fit, the shape of the costs is no prefix of that
                of the logits, or a rule of your own returns another.
        """
        logits = as_choices(logits)
        law_of(self, logits)
        shape = (self.num_draws, *logits.shape)
        if noise is None:
            if self.num_draws:
                raise ValueError(f"noise must be {shape} for {self.name}, got None")
            noise = jnp.zeros(shape, logits.dtype)
        noise = as_floating("noise", noise)
        check_shape("noise", noise, shape, f"{shape}, a row per draw of {self.name}")
        cost = CheckedCost(f)
        costs = self.rule(cost, logits, noise, **self.settings)
        expected = cost.shape(logits)
        if jnp.shape(costs) != expected:
            raise ValueError(
                f"the rule of {self.name} must return costs of the shape of those of f "
                f"{expected}, got shape {jnp.shape(costs)}"
            )
        return costs


def law_of(record: Estimator, logits: jax.Array) -> Law:
    """The law of what a record draws of the logits."""
    law = as_law(record.size, record.law)
    if law.size > logits.shape[-1]:
        raise ValueError(
            f"size must be at most the number of clusters {logits.shape[-1]}, got "
            f"{law.size}"
        )
    return law


def draw_gumbel(
    key: jax.Array, num_draws: int, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Standard Gumbel noise, [num_draws, *shape], in float32 or float64."""
    dtype = jnp.float64 if dtype == jnp.float64 else jnp.float32
    if not num_draws:
        return jnp.zeros((0, *shape), dtype)

    def row(i: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, i), shape, dtype)

    return jax.vmap(row)(jnp.arange(num_draws))


def as_choices(logits: ArrayLike) -> jax.Array:
    """The logits as an array: floating, [..., k], k at least 2."""
    logits = as_logits(logits)
    if logits.shape[-1] == 1:
        raise ValueError(
            "logits must be [..., k] with k at least 2 (one cluster is no choice), got "
            f"shape {logits.shape}: those of Bernoulli variables are made by "
            "estimators.bernoulli(f, log_odds)"
        )
    return logits


def check_estimator(record: object, *, name: str = "estimator") -> None:
    """Raises TypeError unless `record` is an `Estimator`."""
    if not isinstance(record, Estimator):
        raise TypeError(
            f"{name} must be an Estimator, as dk.estimators.reinmax() returns it (a "
            f"map such as dk.reinmax is none), got {shown(record)}"
        )


# Of a setting that is a number in range: whether it may be zero.
RANGES = {
    "tau": False,
    "tau_backward": False,
    "strength": False,
    "gap": True,
    "eta": True,
}


def check_setting(name: str, value: ArrayLike) -> None:
    """Raises unless a setting is a real scalar and, if a plain number, in range."""
    # In float32, for logits may be that.
    check_scalar(name, value, jnp.float32, zero=RANGES[name])


def setting(name: str, value: ArrayLike) -> jax.Array:
    """A checked scalar as a leaf, always of one dtype, so that no value recompiles."""
    check_setting(name, value)
    return jnp.asarray(value).astype(jax.dtypes.canonicalize_dtype(float))


def through(assignment: Callable[..., jax.Array], **static: Any) -> Rule:
    """The rule that differentiates the cost at the rows of an assignment map.

    A map of several draws takes their noise as it is, [num_draws, ..., k]; one of a
    single draw takes it without that axis, one without a draw takes none.
    """
    return HashablePartial(_through, assignment, **static)


def _through(
    assignment: Callable[..., jax.Array],
    f: Cost,
    logits: jax.Array,
    noise: jax.Array,
    **options: Any,
) -> jax.Array:
    draws = (noise,) if len(noise) > 1 else tuple(noise)
    return f(assignment(logits, *draws, **options))
