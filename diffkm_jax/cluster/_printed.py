"""What a fit prints of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np

import diffkm_jax as dk


def print_fit(model: Any, result: dk.FitResult) -> None:
    """Prints the loss before every step of a fit, and how it ended."""
    steps, flags = int(result.num_steps), result.flags
    what = "inertia" if model.temperature is None else "free energy"
    of = "" if model.batch_size is None else " by its batch"
    print("Initialization complete")
    for i, loss in enumerate(np.asarray(result.history[:steps])):
        print(f"Iteration {i}, {what}{of} {loss}")
    if not flags & (dk.Status.CONVERGED | dk.Status.NOT_AT_REST):
        print(f"Ended at iteration {steps - 1}: {flags}")
    elif model.tol == 0:
        print(f"Converged at iteration {steps - 1}: strict convergence, to rounding")
    else:
        print(
            f"Converged at iteration {steps - 1}: center shift is within tolerance "
            f"{model.tol} of the mean variance; that of one more step is "
            f"{result.residual}"
        )
