"""The assignment maps, with the noise that each takes: for both packages."""

import numpy as np

DETERMINISTIC = ["hard", "softmax", "sparsemax", "entmax15", "straight_through"]
ONE_DRAW = [
    "sampled_straight_through",
    "gumbel_softmax",
    "decoupled_gumbel_softmax",
    "gapped_straight_through",
    "reinmax",
    "implicit_mle",
]
SEVERAL_DRAWS = ["gumbel_rao", "perturbed_argmax"]
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
