"""What a fit is made of: its state, its result, and how it ended."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkm_torch._checks import as_points_and_centroids
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import hinted
from diffkm_torch._printed import known
from diffkm_torch._problem import Problem
from diffkm_torch.distances._forms import form_of
from diffkm_torch.fitting._lines import lines_of_fit, lines_of_state
from diffkm_torch.optimizers import GradientTransformation, newton


class State(NamedTuple):
    """Mirrors `diffkm_jax.State`: centroids [k, d], opt_state, step, remainder."""

    centroids: Tensor
    opt_state: Any
    step: int
    remainder: Tensor | None = None

    def __repr__(self) -> str:
        return lines_of_state(self)


class Status(enum.IntFlag):
    """Mirrors `diffkm_jax.Status`.

    LINEAR_SOLVE is found only where `fit` is called on what requires a gradient.

    Attributes:
        NO_IMPROVEMENT: Of `fit_minibatch` in diffkm_jax: never set here.
        INTERRUPTED: Of `fit_stream` and the like in diffkm_jax: never set here.
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


def flags_of(status: Any) -> Any:
    """The flags of a number, or of numbers; ValueError where there are none to read."""
    found = known(status)
    if found is None:
        raise ValueError(
            "flags must be of a result whose status can be read: use converged under "
            "torch.func.vmap, or return the result from it"
        )

    def named(numbers: Any) -> Any:
        is_list = isinstance(numbers, list)
        return [*map(named, numbers)] if is_list else Status(int(numbers))

    return named(found[0].tolist())


class FitResult(NamedTuple):
    """Mirrors `diffkm_jax.FitResult`; numbers of steps and flags are Python's."""

    centroids: Tensor
    labels: Tensor
    loss: Tensor
    counts: Tensor
    residual: Tensor
    history: Tensor
    num_steps: int
    status: Status
    temperature: float | Tensor | None
    state: State

    @property
    def converged(self) -> Tensor:
        """Whether `status` has CONVERGED, as of a fit that its rule ended, at rest.

        Returns:
            [], bool, where the loss is; of a stack of results a tensor of theirs.

        Example:
            >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
            >>> dt.fit(x, x[:2]).converged
            tensor(True)
        """
        is_on = (self.status & Status.CONVERGED.value) != 0
        return torch.as_tensor(is_on, device=self.loss.device)

    @property
    def flags(self) -> Status:
        """The `Status`, as `status` is one.

        Returns:
            A `Status`; where `status` is a tensor of several, lists of them.

        Raises:
            ValueError: `status` holds no numbers to read.

        Example:
            >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
            >>> print(dt.fit(x, x[:2], max_steps=1).flags)
            MAX_STEPS
        """
        return flags_of(self.status)

    def __repr__(self) -> str:
        return lines_of_fit(self)


@hinted
def init(
    centroids: Tensor, *, optimizer: GradientTransformation | None = None
) -> State:
    """Mirrors `diffkm_jax.init`.

    Example:
        >>> state = dt.init(torch.zeros(2, 3, dtype=torch.bfloat16))
        >>> state.centroids.dtype, state.step
        (torch.float32, 0)
    """
    _, centroids = as_points_and_centroids(centroids, centroids)
    centroids = centroids.to(accumulation_dtype(centroids))
    return initial_state(centroids, newton() if optimizer is None else optimizer)


def initial_state(
    centroids: Tensor, optimizer: GradientTransformation, active: Tensor | None = None
) -> State:
    """The state of step 0; its centroids are a copy."""
    centroids = centroids.clone()
    opt_state = optimizer.init(zero_inactive(centroids, active))
    return State(centroids, opt_state, 0, torch.zeros_like(centroids))


def remainder_of(state: State) -> Tensor:
    """The remainder of a state, [k, d], zeros if it has none."""
    if state.remainder is None:
        return torch.zeros_like(state.centroids)
    return state.remainder


def moved(state: State, updates: Tensor, active: Tensor | None) -> State:
    """The state with the updates [k, d] added, of which rounding loses nothing."""
    c, remainder = state.centroids, remainder_of(state)
    by = remainder + updates
    new = c + by
    with torch.no_grad():
        # Exact (Knuth's two-sum): c + by = new + what is lost.
        part = new - c
        lost = (c - (new - part)) + (by - part)
        # Where a sum is not finite, what is lost of it is NaN.
        lost = torch.where(lost.isfinite(), lost, 0)
    return state._replace(
        centroids=where_active(active, new, c),
        remainder=where_active(active, lost, remainder),
    )


def retracted(problem: Problem, state: State, old: State) -> State:
    """The state with centroids where those of its distance are: on a sphere, if cosine.

    Where they have no direction they are the old ones.
    """
    form = form_of(problem.distance)
    if form is None or not (form.is_curved or form.has_edge):
        return state
    c = form.retract(state.centroids, old.centroids)
    c = where_active(problem.active, c, state.centroids)
    is_kept = (c == state.centroids) & (not form.is_curved)
    remainder = torch.where(is_kept, remainder_of(state), 0)
    return state._replace(centroids=c, remainder=remainder)


def check_state(state: State, optimizer: GradientTransformation) -> None:
    """Raises ValueError unless the state is one of the optimizer."""
    expected = _structure(optimizer.init(state.centroids))
    found = _structure(state.opt_state)
    if expected != found:
        raise ValueError(
            f"state must be of the optimizer given, whose state is {expected}, "
            f"got {found}; to start anew, pass its centroids"
        )


def _structure(opt_state: Any) -> Any:
    parts = opt_state if isinstance(opt_state, tuple) else ()
    return type(opt_state).__name__, *map(_structure, parts)


def zero_inactive(centroids: Tensor, active: Tensor | None) -> Tensor:
    """Centroids as an optimizer sees them: zero where inactive, whatever they hold."""
    return where_active(active, centroids, torch.zeros_like(centroids))


def where_active(active: Tensor | None, rows: Tensor, others: Tensor) -> Tensor:
    """The rows [k, d] of active clusters, and the others of the inactive."""
    return rows if active is None else torch.where(active[:, None], rows, others)


def select(condition: Tensor, tree: Any, other: Any) -> Any:
    """The one where the condition holds, else the other: states, or parts of them."""
    if isinstance(tree, Tensor):
        return torch.where(condition, tree, other)
    if isinstance(tree, tuple):
        values = [select(condition, a, b) for a, b in zip(tree, other, strict=True)]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree


def detached(tree: Any) -> Any:
    """A state, or a part of one, without its graph."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if isinstance(tree, tuple):
        values = map(detached, tree)
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree
