"""How a fit ended: flags by name, and as the numbers that programs return."""

from __future__ import annotations

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._printed import known


class Status(enum.IntFlag):
    """How a fit ended: flags, as `result.flags` has them.

    Of a batch of fits, `result.flags` is an array of them.

    Attributes:
        CONVERGED: It stopped by the residual rule, and the residual of the centroids
            that it returns is at most its tolerance, plus ε² Σ‖c‖² for the rounding of
            these, ε that of their dtype.
        MAX_STEPS: It used all its steps without meeting that rule.
        NON_FINITE: A loss or a step was NaN or infinite, and the centroids are the last
            that were finite themselves; or the temperature was not positive. A
            derivative need not be finite then.
        EMPTY_CLUSTER: An active cluster of the returned centroids has no weight.
        LINEAR_SOLVE: The implicit derivative of the centroids cannot be trusted: its
            linear system did not get solved, because the Hessian is singular, not
            positive, or too badly conditioned. Found only where the centroids are
            differentiated: read it next to the gradient, as an auxiliary output.
        DOMAIN: A point of positive weight, or an active centroid at the start or the
            end, is where the distance is not defined: a row of zeros under `cosine`
            (as a centroid it has gradient zero), a number below 0 under
            `kl_divergence`, of at most 0 under `itakura_saito`, a φ that is not finite
            under `bregman(phi)`. Or a distance is negative: of a φ that is not convex,
            a precision that is not positive. Set beside the others; a distance of your
            own has none. NumPy's arrays are refused at once.
        NOT_AT_REST: It stopped by the residual rule, which the last step met and the
            centroids after it do not: a point changed its cluster, or momentum or the
            rounding to their dtype took them on. Go on from `state`, or take a smaller
            `tol` or data nearer the origin.
        NO_IMPROVEMENT: It stopped because the smoothed loss of its batches had not
            become smaller for `patience` steps.
        INTERRUPTED: It stopped because its caller did: `callback` said so, or Ctrl-C,
            or reading failed (of `error.result`).
    """

    CONVERGED = 1
    MAX_STEPS = 2
    NON_FINITE = 4
    EMPTY_CLUSTER = 8
    LINEAR_SOLVE = 16
    DOMAIN = 32
    NOT_AT_REST = 64
    NO_IMPROVEMENT = 128
    INTERRUPTED = 256

    def __str__(self) -> str:
        """The names of the flags, as in CONVERGED|EMPTY_CLUSTER."""
        return self.name or "0"


def status_of(**flags: jax.Array | bool) -> jax.Array:
    """The flags that are on, by name, as one number, [], int32."""
    status = sum(jnp.where(on, Status[name].value, 0) for name, on in flags.items())
    return jnp.asarray(status, jnp.int32)


def is_converged(status: Any) -> Any:
    """Whether flags, numbers or traced, have CONVERGED."""
    return (status & Status.CONVERGED.value) != 0


def flags_of(status: Any) -> Any:
    """The flags of a number, or of an array of them; ValueError where there is none."""
    found = known(status)
    if found is None:
        raise ValueError(
            "flags must be of a result that is not traced: use converged in a program, "
            "or return the result from it"
        )
    flags = np.frompyfunc(lambda number: Status(int(number)), 1, 1)
    return flags(found[0])
