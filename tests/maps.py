"""The assignment maps, the noise that each takes, and one problem for all of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk

DETERMINISTIC = [
    *("hard", "softmax", "sparsemax", "entmax15", "entmax"),
    "straight_through",
]
ONE_DRAW = [
    "sampled_straight_through",
    "gumbel_softmax",
    "decoupled_gumbel_softmax",
    "gapped_straight_through",
    "reinmax",
    "implicit_mle",
]
SEVERAL_DRAWS = ["gumbel_rao", "reinmax_rao", "reinmax_cv", "perturbed_argmax"]
MAPS = [*DETERMINISTIC, "sinkhorn", "blackbox", *ONE_DRAW, *SEVERAL_DRAWS]

# The scalar that softens each; `hard` has none.
SCALAR = {
    "blackbox": "strength",
    "implicit_mle": "strength",
    "perturbed_argmax": "scale",
}
# Exact one-hots, in every dtype.
DISCRETE = [
    "hard",
    "straight_through",
    "sampled_straight_through",
    "gapped_straight_through",
    "reinmax",
    "gumbel_rao",
    "reinmax_rao",
    "reinmax_cv",
    "implicit_mle",
    "blackbox",
]
SOFT = [name for name in MAPS if name not in DISCRETE]
# Reverse mode only.
RULED = [*DISCRETE[1:], "decoupled_gumbel_softmax"]


def scalar(name):
    """The name of the positive scalar of a map, or None."""
    return None if name == "hard" else SCALAR.get(name, "tau")


def gumbel(shape, seed=0, dtype=np.float64):
    """Standard Gumbel noise."""
    noise = np.random.default_rng(seed).gumbel(size=shape)
    return noise.astype(dtype)


def noise_for(name, shape, seed=0, dtype=np.float64):
    """The noise of a map, as keyword arguments."""
    if name in ONE_DRAW:
        return {"noise": gumbel(shape, seed, dtype)}
    if name in SEVERAL_DRAWS:
        return {"noise": gumbel((4, *shape), seed, dtype)}
    return {}


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
