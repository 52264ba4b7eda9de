"""One problem for all assignment maps, and their gradients on it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from _maps import noise_for, scalar

import diffkm_jax as dk

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)))
COTANGENT = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)))


def mapped(name, value=None, **more):
    """A map of the logits alone, its noise and its scalar fixed."""
    noise = {k: jnp.asarray(v) for k, v in noise_for(name, LOGITS.shape).items()}
    if value is not None and scalar(name):
        more[scalar(name)] = value
    return partial(getattr(dk, name), **noise, **more)


def gradient(f, logits=LOGITS, cotangent=COTANGENT):
    return jax.grad(lambda z: jnp.sum(f(z) * cotangent))(logits)
