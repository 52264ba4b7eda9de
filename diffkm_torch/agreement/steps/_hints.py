"""Why two optimizers part: known differences, each tested on the numbers of the step.

What an optimizer did is read off both sides: its state, and u, the change of the
parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffkm_torch.agreement._diagnosis import likeness
from diffkm_torch.agreement.steps._scene import (
    FIT,
    SIDES,
    Scene,
    factor_of,
    is_close,
    spread,
)
from diffkm_torch.agreement.steps._state_hints import CLIP, CLIP_EPS, hints_of_state

# Half a unit in the last place of float32.
FLOAT32 = float(np.finfo(np.float32).eps) / 2
# An eps fits a side where it is the same in all entries but for this share, or where
# there is none but for this share of the root.
SAME_EPS, NO_EPS = 0.01, 1e-10


def hints(scene: Scene) -> Iterator[str]:
    """What explains the first array that parts."""
    kind, _, path = scene.keys[0]
    if kind == "gradient":
        if path in scene.without_gradient:
            yield "torch has no gradient for it: unused, or requires_grad is off"
        ours, theirs = (np.asarray(r[scene.keys[0]], float) for r in scene.base)
        num_patterns = int((~np.isfinite(ours - theirs)).sum())
        yield likeness(("jax", "torch"), ours, theirs, num_patterns)
    elif kind == "state":
        yield from hints_of_state(scene, {k[1] for k in scene.keys if k[0] == "state"})
    elif path in scene.without_gradient:
        yield (
            "torch skips a parameter whose gradient is None, with its decay and its "
            "momentum; optax takes the gradient as 0"
        )
    else:
        yield next(_of_step(scene), "")


def _of_step(scene: Scene) -> Iterator[str]:
    lr = float(scene.group.get("lr", 0))
    if not lr:
        return
    if "momentum_decay" in scene.group:
        yield _nadam(scene)
    yield from _nesterov(scene, lr)
    yield from _bias(scene, lr)
    yield from _whole_factor(scene)
    yield from _decay(scene, lr)
    yield from _places_of_eps(scene, lr)


def _nadam(scene: Scene) -> str:
    ours, theirs = scene.changes()
    if np.abs(theirs - ours).max() > 8 * FLOAT32 * np.abs(ours).max():
        return "torch's NAdam warms its momentum up by momentum_decay, optax's does not"
    return "torch's NAdam keeps mu_product in float32"


def _nesterov(scene: Scene, lr: float) -> Iterator[str]:
    momentum = scene.group.get("momentum")
    if not momentum:
        return
    buffer = scene.pair("state", "trace")[1]
    if not buffer.size:
        return
    changes, ahead = scene.changes(), scene.gradient + momentum * buffer
    for i, name in enumerate(SIDES):
        if is_close(changes[i], -lr * ahead) and is_close(changes[1 - i], -lr * buffer):
            yield f"{name}'s momentum is Nesterov's, {SIDES[1 - i]}'s is not"


def _bias(scene: Scene, lr: float) -> Iterator[str]:
    """Of Adam's step −lr m / (√v + ε) with and without the correction of m and v."""
    m, v = scene.pair("state", "mu")[1], scene.pair("state", "nu")[1]
    if "betas" not in scene.group or m.size != scene.gradient.size or m.size != v.size:
        return
    b1, b2 = scene.group["betas"]
    eps, t = scene.group["eps"], scene.step
    raw = -lr * m / (np.sqrt(v) + eps)
    corrected = -lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    decoupled = scene.group.get("decoupled_weight_decay")
    decay = lr * scene.group["weight_decay"] if decoupled else 0.0
    changes = [u + decay * p for u, p in zip(scene.changes(), scene.old(), strict=True)]
    for i, name in enumerate(SIDES):
        if is_close(changes[i], raw) and is_close(changes[1 - i], corrected):
            yield f"{name}'s moments are not corrected for bias"


def _whole_factor(scene: Scene) -> Iterator[str]:
    factor = factor_of(*scene.changes())
    if factor is None:
        return
    off = abs(factor - 1)
    if scene.max_norm is not None and off < CLIP_EPS:
        yield CLIP
    elif off <= FLOAT32:
        yield (
            f"the whole step is off by {off:.2g}, a rounding to float32: some "
            "schedules of optax compute in it"
        )
    else:
        yield (
            f"torch's whole step is {factor:.6g} times JAX's: the learning rate, a "
            "schedule that is a step off, or clipping"
        )


def _decay(scene: Scene, lr: float) -> Iterator[str]:
    """A step by −lr λ p more on one side."""
    ours, theirs = scene.changes()
    share = factor_of(scene.old()[0], theirs - ours)
    if share is None:
        return
    more = -share / lr
    what = "weight decay decoupled from the gradient is"
    if not scene.group.get("decoupled_weight_decay"):
        side = "torch" if more > 0 else "JAX"
        yield f"{what} {abs(more):.6g} more in {side}"
        return
    there = scene.group["weight_decay"]
    here = there - more
    here = here if abs(here) > FIT * abs(more) else 0.0
    yield f"{what} {here:.6g} in JAX, {there:.6g} in torch"


def _places_of_eps(scene: Scene, lr: float) -> Iterator[str]:
    """Of u = −lr m / (√v + ε) or −lr m / √(v + ε) the ε that fits each side."""
    m, v = _moments(scene)
    if m is None or v is None or m.size != v.size:
        return
    said = []
    for change in scene.changes():
        usable = (change != 0) & (v > 0)
        if usable.sum() < 2:
            return
        root, second = lr * np.abs(m[usable] / change[usable]), v[usable]
        outside, inside = root - np.sqrt(second), root**2 - second
        if np.abs(outside / root).max() < NO_EPS:
            said.append("√v")
        elif min(spread(outside), spread(inside)) > SAME_EPS:
            return
        elif spread(outside) < spread(inside):
            said.append(f"√v + {np.median(outside):.3g}")
        else:
            said.append(f"√(v + {np.median(inside):.3g})")
    if said[0] != said[1]:
        yield f"JAX divides by {said[0]}, torch by {said[1]}: the place or size of eps"


def _moments(scene: Scene) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What the step is along, and what it is divided by: m and v."""
    for field in ("nu", "sum_of_squares"):
        v = scene.pair("state", field)[1]
        if v.size and "betas" not in scene.group:
            return scene.gradient, v
        m = scene.pair("state", "mu")[1]
        if v.size and m.size:
            b1, b2 = scene.group["betas"]
            return m / (1 - b1**scene.step), v / (1 - b2**scene.step)
    return None, None
