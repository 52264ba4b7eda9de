"""The torch reference beside the loop that one would write in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks import _rival_fits, _rivals
from benchmarks._measure import Contest, Prepared, Side, measure, relative_error
from benchmarks._records import Record, compare

LOOP = "torch, cdist and index_add_"
MIRROR = "diffkm_torch"
SHAPES = (300_000, 3, 16), (100_000, 32, 64), (50_000, 64, 512)
STEPS = 10


def fit(n: int, k: int, d: int) -> Contest:
    """A number of steps from the same start, without a gradient, in one thread."""
    rng = np.random.default_rng(0)
    # So wide that no fit is at rest before its last step.
    points = (
        1.5 * rng.standard_normal((n, d))
        + rng.standard_normal((k, d))[rng.integers(k, size=n)]
    )
    points = points.astype(np.float32)
    steps = {"steps": STEPS}

    def in_torch(name: str) -> Prepared:
        import torch

        x, function = torch.from_numpy(points), getattr(_rival_fits, name)

        def call() -> Any:
            with _rivals.one_torch_thread():
                return function(x, x[:k].clone(), **steps)

        return Prepared(call)

    def agree(results: dict[str, Any]) -> dict[str, dict[str, float]]:
        assert int(results[MIRROR].num_steps) == STEPS, "diffkm_torch stopped early"
        error = relative_error(results[LOOP].centroids, results[MIRROR].centroids)
        # Points that are nearly tied go elsewhere in an expansion that is not centered.
        assert error < 1e-2, f"the centroids differ by {error:.1e}"
        return {LOOP: {"difference": error}}

    sides: dict[str, Callable[[], Prepared]] = {
        MIRROR: partial(in_torch, "diffkm_torch_steps"),
        LOOP: partial(in_torch, "torch_lloyd"),
    }
    return Contest({name: Side(side, "torch") for name, side in sides.items()}, agree)


def fits(size: str) -> Iterator[Record]:
    for n, k, d in [(2000, 16, 8)] if size == "small" else SHAPES:
        done = measure(fit, rounds=3 if size == "small" else 7, burst=0, n=n, k=k, d=d)
        compare(done, MIRROR, LOOP, at_most=1)
        yield done


BENCHMARKS = {"fit": fits}
