"""Laws of subsets of a size: how likely each is, and a draw by noise."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffkm_jax._checks import check_integer
from diffkm_jax._dtypes import accumulation_dtype
from diffkm_jax._hints import shown
from diffkm_jax._numerics import log_sum
from diffkm_jax.assignments._straight_through import chosen
from diffkm_jax.assignments._subsets import drawn_subset, log_total
from diffkm_jax.assignments._top_k import best, scores_of

PLACKETT_LUCE, CONDITIONAL = "plackett_luce", "conditional_bernoulli"
# Of subsets whose orders are summed over: 2 to that power.
MOST = 12


class Law(NamedTuple):
    """Of a draw how many clusters it has, and if several, how they are drawn."""

    size: int = 1
    name: str = PLACKETT_LUCE

    def count(self, k: int) -> int:
        """How many draws there are of k clusters."""
        return comb(k, self.size)

    def likeliest(self, logits: jax.Array) -> jax.Array:
        """The draw of the best clusters, [..., k]."""
        return best(logits, self.size)

    def draw(self, logits: jax.Array, noise: jax.Array) -> jax.Array:
        """A draw by the noise of one row, [..., k], in the dtype of the logits."""
        if self.is_conditional:
            return drawn_subset(self.size, logits, noise)
        return chosen(logits, noise, size=self.size)

    @property
    def is_conditional(self) -> bool:
        """Whether of several clusters, in proportion to the product of exp(logits)."""
        return self.size > 1 and self.name == CONDITIONAL

    def row(self, code: jax.Array, k: int, dtype: jnp.dtype) -> jax.Array:
        """The draw of a number in [0, count), [..., k]."""
        if self.size == 1:
            return jax.nn.one_hot(code, k, dtype=dtype)
        members = np.array(list(combinations(range(k), self.size)))
        rows = np.zeros((len(members), k))
        np.put_along_axis(rows, members, 1, axis=-1)
        return jnp.asarray(rows, dtype)[code]

    def log_probability(self, logits: jax.Array, drawn: jax.Array) -> jax.Array:
        """Of a draw, [...], float32 or wider; −∞ where it has an excluded cluster."""
        if self.size > MOST and not self.is_conditional:
            raise ValueError(
                f"size must be at most {MOST} where the probability of a subset under "
                f"{PLACKETT_LUCE!r} is needed, a sum over orders, got {self.size}: "
                f"that under {CONDITIONAL!r} has no limit"
            )
        one = jnp.ones((), accumulation_dtype(logits))
        scores = scores_of(logits.astype(one.dtype), one, self.size)
        if self.is_conditional:
            of_draw = jnp.sum(jnp.where(drawn > 0, scores.z, 0), axis=-1)
            log_p = of_draw - log_total(scores, self.size)
        else:
            labels = jnp.moveaxis(lax.top_k(drawn, self.size)[1], -1, 0)
            log_p = log_completions_of(logits, labels)[1][0]
        # Exactly those that are certain, and none that is excluded.
        possible = (scores.certain == (scores.out & (drawn > 0))).all(-1)
        log_p = jnp.where(possible, log_p, -jnp.inf)
        return jnp.where(scores.undefined[..., 0], jnp.nan, log_p)


CATEGORICAL = Law()


def as_law(size: int, law: str) -> Law:
    """A checked law, the same for all of a single cluster."""
    check_integer("size", size, minimum=1)
    if law not in (PLACKETT_LUCE, CONDITIONAL):
        raise ValueError(
            f"law must be {PLACKETT_LUCE!r} or {CONDITIONAL!r}, got {shown(law)}"
        )
    return Law(size, law) if size > 1 else CATEGORICAL


def log_completions_of(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of the clusters [m, ...] of a set: log-probabilities, and `_completions`."""
    one = jnp.ones((), accumulation_dtype(logits))
    scores = scores_of(logits.astype(one.dtype), one, len(labels))
    z = jnp.where(scores.out, -jnp.inf, scores.z)
    is_in = jax.nn.one_hot(labels, z.shape[-1], dtype=bool).any(0)
    members = jnp.stack([_at(z, label) for label in labels])
    found = _completions(members, log_sum(jnp.where(is_in, -jnp.inf, z), -1))
    # What is certain comes before all else.
    count = jnp.sum(scores.certain, axis=-1).astype(z.dtype)
    certain = jnp.stack([_at(scores.certain, label) for label in labels])
    everyone = log_sum(z, -1)
    everyone = jnp.where(jnp.isneginf(everyone), jnp.nan, everyone)
    log_p = jnp.where((count > 0)[None], -jnp.inf, members - everyone[None])
    return jnp.where(certain, -jnp.log(jnp.maximum(count, 1))[None], log_p), found


def _at(z: jax.Array, label: jax.Array) -> jax.Array:
    return jnp.take_along_axis(z, label[..., None], axis=-1)[..., 0]


def _completions(members: jax.Array, others: jax.Array) -> jax.Array:
    """Of a set drawn without replacement, log P(the rest of it comes next | a part).

    By a recursion over the parts: of a part A it is the sum, over the t of the set that
    are left, of p_t/(1 − p(A)) times that of A and t. What is −∞ need not come.

    Args:
        members: Log-scores of the set, [m, ...].
        others: The logarithm of the sum of exp(scores) of all else, [...].

    Returns:
        Log-probabilities, [2**m, ...], at i that given the part of the bits of i.
    """
    m = len(members)
    parts = np.arange(2**m)
    left = (parts[:, None] >> np.arange(m)) % 2 == 0
    sizes = m - left.sum(axis=1)
    found = jnp.zeros((2**m, *others.shape), others.dtype)
    for size in reversed(range(m)):
        of_size = parts[sizes == size]
        following = np.array([np.flatnonzero(left[part]) for part in of_size])
        scores = members[following]
        everyone = jnp.broadcast_to(others, (len(of_size), 1, *others.shape))
        rest = log_sum(jnp.concatenate([scores, everyone], axis=1), 1)
        is_done = jnp.isneginf(scores).all(1)
        rest = jnp.where(jnp.isneginf(rest), 0, rest)
        grown = found[of_size[:, None] | (1 << following)]
        total = log_sum(scores - rest[:, None] + grown, 1)
        found = found.at[of_size].set(jnp.where(is_done, 0, total))
    return found
