"""What is measured of points about centroids, and how it moves when they do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import jax
import numpy as np
import torch

import diffkm_jax as dk
import diffkm_torch as dt

TEMPERATURE = 0.3
MAX_STEPS = 20
# How each field changes with its problem: by the power of a scale; as rows of points or
# clusters; moved and turned as points are, or turned only.
POWER = {
    "loss": 2,
    "residual": 2,
    "margin": 2,
    "critical_temperature": 2,
    "codebook_loss": 2,
    "commitment_loss": 2,
    "centroids": 1,
    "values": 1,
    "shifts": 1,
    "d_points": 1,
    "d_centroids": 1,
    "gradient_norm": 1,
    "distance": 1,
    "d_weights": 2,
}
OF_POINTS = {"labels", "values", "margin", "d_points", "d_weights"}
OF_CLUSTERS = {"counts", "shifts", "centroids", "d_centroids"}
MOVED = {"centroids", "values"}
TURNED = {*MOVED, "shifts", "d_points", "d_centroids"}
Fields = dict[str, np.ndarray]


def _loss(f: Callable, x: Any, c: Any, w: Any, **options: Any) -> dict:
    return {"loss": f(x, c, weights=w, **options)}


def _fields(f: Callable, names: str, x: Any, c: Any, w: Any, **options: Any) -> dict:
    found = f(x, c, weights=w, **options)._asdict()
    return {name: found[name] for name in names.split()}


def _assign(f: Callable, x: Any, c: Any, w: Any, **options: Any) -> dict:
    del w
    return {"labels": f(x, c, **options)}


def measured(module: ModuleType) -> dict[str, Callable[..., dict]]:
    """The functions of either package, of (points, centroids, weights)."""
    hard, soft = {}, {"temperature": TEMPERATURE}
    found = {"assign": partial(_assign, module.assign)}
    found["kmeans_loss"] = partial(_loss, module.kmeans_loss)
    found["soft_kmeans_loss"] = partial(_loss, module.soft_kmeans_loss, **soft)
    assigned = partial(module.assigned_loss, assignment=module.softmax, **soft)
    found["assigned_loss"] = partial(_loss, assigned)
    names = "codebook_loss commitment_loss values labels"
    found["quantize"] = partial(_fields, module.quantize, names)
    for label, options in {"": hard, "soft ": soft}.items():
        names = "loss counts shifts"
        call = partial(_fields, module.statistics, names, **options)
        found[f"{label}statistics"] = call
        names = "centroids loss counts labels"
        fit = partial(module.fit, max_steps=MAX_STEPS, tol=0.0, **options)
        found[f"{label}fit"] = partial(_fields, fit, names)
    return found


def only_jax() -> dict[str, Callable[..., dict]]:
    """The diagnostics, and fits and draws by a key."""
    names = "margin residual gradient_norm distance critical_temperature"
    return {
        "certificate": partial(_fields, dk.certificate, names),
        "soft certificate": partial(
            _fields,
            partial(dk.certificate, temperature=TEMPERATURE),
            "residual gradient_norm critical_temperature",
        ),
    }


def _initializer(name: str, x: Any, w: Any) -> dict:
    return {"centroids": getattr(dk, name)(jax.random.key(0), x, 3, weights=w)}


INITIALIZERS = {
    name: partial(_initializer, name)
    for name in ("kmeans_parallel", "kmeans_plus_plus", "random_points")
}
IN_JAX = measured(dk) | only_jax()
IN_TORCH = measured(dt)
LOSSES = "kmeans_loss", "soft_kmeans_loss", "assigned_loss"
WITH_BLOCKS = [n for n in IN_JAX if n not in ("assigned_loss",)]


@cache
def _program(name: str, options: tuple) -> Callable:
    function = partial(IN_JAX[name], **dict(options))
    if name not in LOSSES:
        return jax.jit(function)

    @jax.jit
    def with_gradients(x: Any, c: Any, w: Any) -> dict:
        def loss(*arrays: Any) -> Any:
            return function(*arrays)["loss"]

        arguments = (0, 1) if w is None else (0, 1, 2)
        value, grads = jax.value_and_grad(loss, arguments)(x, c, w)
        names = "d_points", "d_centroids", "d_weights"
        return {"loss": value} | dict(zip(names, grads, strict=False))

    return with_gradients


def in_jax(name: str, x: Any, c: Any, w: Any, **options: Any) -> Fields:
    """The fields of a function, and the gradients of a loss."""
    found = _program(name, tuple(options.items()))(x, c, w)
    return {k: np.asarray(a) for k, a in found.items()}


def in_torch(name: str, x: Any, c: Any, w: Any) -> Fields:
    tensors = [None if a is None else torch.tensor(a) for a in (x, c, w)]
    given = [t.requires_grad_(name in LOSSES) for t in tensors if t is not None]
    found = IN_TORCH[name](*tensors)
    if name in LOSSES:
        names = "d_points", "d_centroids", "d_weights"
        grads = torch.autograd.grad(found["loss"], given)
        found |= dict(zip(names, grads, strict=False))
    return {k: a.detach().numpy() for k, a in found.items()}


def drawn(name: str, x: Any, w: Any) -> Fields:
    """The centroids of an initializer, always from the same key."""
    return {k: np.asarray(a) for k, a in _draw(name)(x, w).items()}


@cache
def _draw(name: str) -> Callable:
    return jax.jit(INITIALIZERS[name])


def problem(rng: np.random.Generator, n: int, k: int, d: int) -> tuple:
    """Points about k groups, centroids near them, weights; far from ties.

    Entries are multiples of 1/16, so that a shift by 2¹⁹ is exact in float32.
    """
    groups = 4.0 * rng.permutation(4**d)[:k, None] // 4.0 ** np.arange(d) % 4
    groups = 4 * groups
    x = groups[np.arange(n) % k] + rng.integers(-8, 9, (n, d)) / 16
    c = groups + rng.integers(-8, 9, (k, d)) / 16
    w = rng.integers(1, 9, n) / 8
    return x, c, w


def as_arrays(dtype: str, *arrays: Any) -> tuple:
    return tuple(None if a is None else np.asarray(a, dtype) for a in arrays)


def assert_same(
    found: Fields, expected: Fields, eps: float, *, moved: float = 1.0
) -> None:
    """Raises where fields differ by more than 2000 ε of their largest entry, or of 1.

    With centroids that moved away from the origin, what is measured at them as they are
    rounded there may be off by so much more.
    """
    assert found.keys() == expected.keys()
    fitted = {"centroids", "counts"} <= found.keys()
    for name, a in found.items():
        b = expected[name]
        assert a.shape == b.shape, f"{name}: {a.shape} and {b.shape}"
        if name == "labels":
            assert (a == b).all(), f"labels {a.tolist()}, not {b.tolist()}"
            continue
        size = max(np.abs(np.asarray(b, np.float64)).max(initial=0), 1.0)
        size = 1.0 if np.isinf(size) else size
        with np.errstate(invalid="ignore"):
            off = np.abs(np.asarray(a, np.float64) - b)
        limit = 2000 * eps * size * (moved if fitted else 1)
        wrong = ~((a == b) | (off <= limit))
        assert not wrong.any(), f"{name} is off by {off.max()}: {a}, not {b}"
