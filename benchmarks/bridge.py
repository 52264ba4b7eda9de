"""The price of JAX inside torch's autograd: small calls, a large loss, its memory.

    python benchmarks/bridge.py [--quick]

Forward and backward of the same function: natively in torch, in JAX, and in torch by
`jax_to_torch`. All in one run, in turns, in float32; a time is the median over the
rounds, and behind a ratio stands its range. Peaks of memory are of a process of its own
each. Run it on a machine that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import in_child, interleaved, machine, median, peak_growth, ratio, table

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.bridge import jax_to_torch

SMALL = 16
LARGE = 50_000, 64, 64
MEMORY = 200_000, 512, 32
QUICK = 5_000, 64, 64
TEMPERATURE = 2.0
ROUNDS = 15
RIVALS = "torch", "bridge", "jax"


def wave(a: Any) -> Any:
    """A function as small as they come, of either package."""
    module = jnp if isinstance(a, jax.Array) else torch
    return (module.sin(a) * a).sum()


def soft(shape: tuple[int, int, int], rival: str) -> Callable[[], Any]:
    """Value and gradient in points and centroids of the soft loss."""
    n, k, d = shape
    rng = np.random.default_rng(0)
    points = rng.normal(size=(n, d)).astype(np.float32)
    centroids = points[:k].copy()
    loss = {"torch": dt, "jax": dk, "bridge": dk}[rival].soft_kmeans_loss
    return both(partial(loss, temperature=TEMPERATURE), rival, points, centroids)


def both(function: Callable, rival: str, *arrays: np.ndarray) -> Callable[[], Any]:
    """Forward and backward, by a rival."""
    if rival == "jax":
        step = jax.jit(jax.value_and_grad(function, tuple(range(len(arrays)))))
        inputs = list(map(jnp.asarray, arrays))
        return lambda: jax.block_until_ready(step(*inputs))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    called = jax_to_torch(function) if rival == "bridge" else function

    def call() -> Any:
        value = called(*tensors)
        return value, torch.autograd.grad(value, tensors)

    return call


def forward(function: Callable, rival: str, *arrays: np.ndarray) -> Callable[[], Any]:
    """The value alone, by a rival."""
    if rival == "jax":
        step, inputs = jax.jit(function), list(map(jnp.asarray, arrays))
        return lambda: jax.block_until_ready(step(*inputs))
    called = jax_to_torch(function) if rival == "bridge" else function
    tensors = list(map(torch.tensor, arrays))
    return lambda: called(*tensors)


def times(shape: tuple[int, int, int]) -> list[list[str]]:
    """A row for every program, with the rivals side by side."""
    array = np.linspace(0, 1, SMALL, dtype=np.float32)
    programs = {
        f"sin(a) a, {SMALL} numbers, forward": partial(forward, wave),
        f"sin(a) a, {SMALL} numbers, and backward": partial(both, wave),
    }
    found = {
        name: {rival: program(rival, array) for rival in RIVALS}
        for name, program in programs.items()
    }
    found[f"soft_kmeans_loss {shape}, and backward"] = {
        rival: soft(shape, rival) for rival in RIVALS
    }
    rows = []
    for name, calls in found.items():
        samples = interleaved(calls, ROUNDS)
        cells = [median(samples[rival]) for rival in RIVALS]
        cells += [ratio(samples["bridge"], samples[r])[1] for r in ("torch", "jax")]
        rows.append([name, *cells])
    return rows


def peak(shape: tuple[int, int, int], rival: str) -> None:
    """Prints the bytes that one value and gradient adds, after one that is small."""
    soft((1000, *shape[1:]), rival)()
    print(json.dumps(peak_growth(soft(shape, rival))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        rival, *shape = options.peak
        peak(tuple(map(int, shape)), rival)
        return
    print(machine("jax", "torch"))
    large, memory = (QUICK, QUICK) if options.quick else (LARGE, MEMORY)
    head = "forward and backward", *RIVALS, "bridge / torch", "bridge / jax"
    table("What a call through the bridge takes", head, times(large))
    rows = []
    for rival in RIVALS:
        grown = in_child(sys.argv[0], "--peak", rival, *memory)
        rows.append([rival, f"{grown / 1e6:.0f} MB"])
    title = f"Peak memory that soft_kmeans_loss and its gradient add at {memory}"
    table(title, ("by", "peak"), rows)


if __name__ == "__main__":
    main()
