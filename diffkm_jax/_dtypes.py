"""The dtype in which sums, losses and softmaxes are computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def accumulation_dtype(*arrays: jax.Array | None) -> jnp.dtype:
    """Float64 if any of the arrays is, else float32: the dtype of sums and losses."""
    wide = any(a is not None and a.dtype == jnp.float64 for a in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)
