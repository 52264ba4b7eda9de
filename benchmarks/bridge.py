"""The price of JAX inside torch's autograd, and of torch inside JAX.

Small calls, a large loss, and its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffkm_jax as dk
from benchmarks._measure import (
    Contest,
    Prepared,
    Side,
    compiled,
    measure,
    normal,
    relative_error,
)
from benchmarks._records import Record, compare

TEMPERATURE = 2.0


def by_all(of_jax: Callable, of_torch: str, arrays: tuple, backward: bool) -> Contest:
    """A function, and its gradient in all arguments, by torch, JAX, and the bridge.

    "bridge" is the JAX function in torch, "callback" the torch function in JAX.
    """

    def in_jax(bridge: bool) -> Prepared:
        function = of_jax
        if bridge:
            from diffkm_torch.bridge import torch_to_jax

            function = torch_to_jax(torch_function(of_torch))
        if backward:
            function = jax.value_and_grad(function, tuple(range(len(arrays))))
        return compiled(function, *arrays)

    def in_torch(bridge: bool) -> Prepared:
        import torch

        from diffkm_torch.bridge import jax_to_torch

        function = jax_to_torch(of_jax) if bridge else torch_function(of_torch)
        tensors = [torch.tensor(a, requires_grad=backward) for a in arrays]

        def call() -> Any:
            value = function(*tensors)
            return (value, torch.autograd.grad(value, tensors)) if backward else value

        return Prepared(call)

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        facts = {}
        for name, result in results.items():
            found, true = (r if backward else (r, ()) for r in (result, results["jax"]))
            np.testing.assert_allclose(float(found[0]), float(true[0]), rtol=1e-4)
            errors = map(relative_error, found[1], true[1])
            facts[name] = {"gradient_error": max(errors)} if backward else {}
            assert max(facts[name].values(), default=0) < 1e-3, f"{name}: {facts[name]}"
        return facts

    sides = {
        "torch": Side(partial(in_torch, bridge=False), "torch"),
        "bridge": Side(partial(in_torch, bridge=True), "torch"),
        "callback": Side(partial(in_jax, bridge=True), "torch"),
        "jax": Side(partial(in_jax, bridge=False)),
    }
    return Contest(sides, agree)


def torch_function(name: str) -> Callable:
    import diffkm_torch as dt

    if name == "wave":
        return lambda a: (a.sin() * a).sum()
    return partial(getattr(dt, name), temperature=TEMPERATURE)


def wave(numbers: int, backward: bool) -> Contest:
    """Of Σ sin(a) a, a function as small as they come."""
    array = np.linspace(0, 1, numbers, dtype=np.float32)
    return by_all(lambda a: (jnp.sin(a) * a).sum(), "wave", (array,), backward)


def soft_kmeans_loss(n: int, k: int, d: int) -> Contest:
    """Value and gradient in points and centroids."""
    loss = partial(dk.soft_kmeans_loss, temperature=TEMPERATURE)
    return by_all(loss, "soft_kmeans_loss", normal(n, k, d), backward=True)


def compared(done: Record) -> Record:
    compare(done, "bridge", "torch")
    compare(done, "bridge", "jax")
    compare(done, "callback", "torch")
    return done


def calls(size: str) -> Iterator[Record]:
    rounds = 5 if size == "small" else 15
    for backward in (False, True):
        yield compared(measure(wave, rounds=rounds, numbers=16, backward=backward))


def losses(size: str) -> Iterator[Record]:
    n, k, d = (2000, 16, 8) if size == "small" else (50_000, 64, 64)
    rounds = 3 if size == "small" else 15
    yield compared(measure(soft_kmeans_loss, rounds=rounds, n=n, k=k, d=d))


def memory(size: str) -> Iterator[Record]:
    """What value and gradient of the loss add to the peak of a process."""
    n, k, d = (2000, 16, 8) if size == "small" else (200_000, 512, 32)
    weighed = ["bridge"] if size == "small" else ["torch", "bridge", "jax"]
    lineup = {"timed": (), "weighed": weighed}
    done = measure(soft_kmeans_loss, rounds=0, **lineup, n=n, k=k, d=d)
    yield done


BENCHMARKS = {"calls": calls, "loss": losses, "memory": memory}
