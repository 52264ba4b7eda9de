"""Why the states of two optimizers part, tested on the numbers of the step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffkm_torch.agreement.steps._scene import FIT, Scene, factor_of, spread

# So far from 1 may be what torch's clip_grad_norm_ does by dividing by norm + 1e-6.
CLIP_EPS = 1e-3
CLIP = "clip_grad_norm_ divides by the norm + 1e-6, optax by the norm"
SECOND = "nu", "sum_of_squares", "e_g"


def hints_of_state(scene: Scene, fields: set[str]) -> Iterator[str]:
    """What explains the fields that part: clipping, decays, starts."""
    first = next((f for f in ("trace", "mu") if f in fields), None)
    if first is not None:
        factor = factor_of(*scene.pair("state", first))
        if factor is not None and _is_clipped(scene, factor, first):
            yield clip_hint(scene, factor)
            return
        if scene.step == 1:
            yield from _decay_in_gradient(scene, first)
            yield from _moment(scene, first)
        if first == "trace" and scene.step == 2 and scene.group.get("dampening"):
            damp = scene.group["dampening"]
            yield f"torch's dampening is {damp:g}, optax's trace has none"
    for field in SECOND:
        if field in fields and scene.step == 1:
            yield from _second_start(scene, field)
            yield from _moment(scene, field)
    if "nu_max" in fields and not fields & {"mu", "nu"}:
        yield (
            "torch keeps the largest second moment as it is, optax corrects its bias "
            "before: two algorithms"
        )


def clip_hint(scene: Scene, factor: float) -> str:
    """What is said of gradients of which torch's is so many times JAX's."""
    if scene.max_norm is not None and abs(factor - 1) < CLIP_EPS:
        return CLIP
    which = f"{factor:.6g} times as long"
    return f"torch's gradient is {which}: clipped on one side, or to another norm"


def _is_clipped(scene: Scene, factor: float, field: str) -> bool:
    """Whether the gradients were scaled alike, by a factor that is no decay's."""
    if field == "trace":
        return factor > 0 and not scene.group.get("dampening")
    square = factor_of(*scene.pair("state", "nu"))
    return square is not None and abs(square / factor**2 - 1) < FIT


def _decay_in_gradient(scene: Scene, field: str) -> Iterator[str]:
    """At the first step a moment is (1 − b)(g + λ p), where decay is coupled."""
    b = (_decay_of(scene, field) or 0.0) if field == "mu" else 0.0
    ours, theirs = scene.pair("state", field)
    for name, other, moment in (("torch", "JAX", theirs), ("JAX", "torch", ours)):
        share = factor_of(scene.old()[0], moment / (1 - b) - scene.gradient)
        if share is not None:
            yield (
                f"{name}'s moment has {share:.6g} p in it, {other}'s not: weight decay "
                "coupled with the gradient (L2), against decoupled or none"
            )


def _moment(scene: Scene, field: str) -> Iterator[str]:
    """At the first step a moment is (1 − b) times a power of the gradient."""
    b, factor = _decay_of(scene, field), factor_of(*scene.pair("state", field))
    if factor is not None and factor > 0 and b is not None:
        which = {"mu": "b1", "nu": "b2"}.get(field, "decay")
        name = which if "betas" in scene.group else "decay"
        yield f"{name} is {1 - (1 - b) / factor:.6g} in JAX, {b:g} in torch"


def _decay_of(scene: Scene, field: str) -> float | None:
    """Torch's decay of a moment, None if there is none."""
    if "betas" in scene.group:
        return scene.group["betas"][0 if field == "mu" else 1]
    return scene.group.get({"nu": "alpha", "e_g": "rho"}.get(field, ""))


def _second_start(scene: Scene, field: str) -> Iterator[str]:
    """A second moment that does not start at 0 is off by the same everywhere."""
    ours, theirs = scene.pair("state", field)
    gap, b = ours - theirs, _decay_of(scene, field)
    if spread(gap) <= FIT:
        start = float(np.median(gap)) / (1 if b is None else b)
        setting = "initial_accumulator_value" if b is None else "initial_scale"
        yield f"it starts {start:.6g} higher in JAX: optax's {setting}"
