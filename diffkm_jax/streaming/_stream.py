"""Fits to data that are read batch by batch: steps by batches, or by whole passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from diffkm_jax._checks import (
    as_centroids,
    as_tree,
    check_callable,
    check_integer,
    check_scalar,
)
from diffkm_jax._given import check_domain
from diffkm_jax._hints import hinted, shown
from diffkm_jax._problem import Plan, Problem
from diffkm_jax._sharding import axis_of, devices_of
from diffkm_jax._statistics import Statistics
from diffkm_jax.distances import Distance, squared_euclidean
from diffkm_jax.fitting._empty import EmptyPolicy
from diffkm_jax.fitting._start import rows_of
from diffkm_jax.fitting._state import State
from diffkm_jax.fitting._step import Algorithm
from diffkm_jax.fitting._update import as_algorithm
from diffkm_jax.optimizers import macqueen, newton
from diffkm_jax.streaming._by_batches import ByBatches
from diffkm_jax.streaming._by_passes import ByPasses
from diffkm_jax.streaming._reading import Batch, Reader, is_read_once
from diffkm_jax.streaming._result import StreamResult
from diffkm_jax.streaming._watch import Watch

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Bool, Float


@hinted
def fit_stream(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    centroids: Float[ArrayLike, "k d"] | State,
    *,
    passes: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 65536,
    weighted: bool = False,
    active: Bool[ArrayLike, " k"] | None = None,
    temperature: ArrayLike | optax.Schedule | None = None,
    distance: Distance = squared_euclidean,
    tol: ArrayLike = 1e-4,
    empty: str | EmptyPolicy = "keep",
    callback: Callable[[State, Statistics], Any] | None = None,
    progress: bool = False,
    sharding: NamedSharding | None = None,
    block_size: int | None = None,
) -> StreamResult:
    """Fits centroids to points that are read batch by batch, of any number.

    Without `passes` every batch is one step, by default MacQueen's, and is read once:
    online k-means. With it a step is by all batches together, whose statistics add:
    with the default optimizer Lloyd's algorithm, the steps of `fit` in the memory of a
    batch, stopped by its rule. That reads all of them for every step, and once more for
    what it returns. The next batch is read by another thread while one is worked on.

    There is no gradient: of the loss of points that are here, `kmeans_loss` has it, and
    gradients of batches add.

    Args:
        batches: An array [n, d] of any library that is sliced like NumPy's, as a
            memory map, which is cut; paths of .npy files, cut too; or an iterable of
            arrays [m, d], in data units, as a generator, a list or a
            `torch.utils.data.DataLoader`, or a function that returns one. Batches of
            fewer rows than an earlier one compile nothing.
        centroids: Start, [k, d], real, in data units; or the `State` of an earlier
            result with the same optimizer, to go on from there with the batches after.
        passes: Limit of steps by all batches, each a pass over them, which must be
            there to be read again; None for a step by every batch.
        optimizer: Any optax transformation, of gradients that are sums over a batch, or
            over all; None is `macqueen()`, or `newton()` with `passes`.
        batch_size: Rows of a batch that is cut from arrays or files.
        weighted: Whether batches are pairs of points and weights [m].
        active: As in `fit`.
        temperature: As in `fit`; a schedule is one of the step.
        distance: As in `fit`.
        tol: As in `fit`, of passes; steps by batches are stopped by no rule.
        empty: As in `fit`; without `passes`, of a cluster without a point in a batch.
        callback: Function of the state after a step and the `Statistics` before it, as
            to save the state; where it returns what is true, the fit stops, one batch
            further on in an iterator than in `state.step`. None is none.
        progress: Whether a bar of `tqdm` shows the steps, on a terminal.
        sharding: Where the rows of batches go: a `NamedSharding` over rows, on whose
            devices a pass over a batch runs; None is the default device.
        block_size: As in `fit`.

    Returns:
        A `StreamResult`; labels are those of `assign`, batch by batch. Ctrl-C returns
        where the fit is (INTERRUPTED). A batch with a row that is not finite ends it
        with the state before that batch, a warning that names batch and row, and
        NON_FINITE. Any other error in reading is raised as it is, with what the fit had
        so far as its attribute `result`. From a `State` no batch at all is a result
        of no step.

    Raises:
        TypeError: As in `fit`, or `batches` is nothing that can be read, or of arrays
            that are not real, `batch_size` or `passes` no integer, or `sharding` no
            NamedSharding.
        ValueError: As in `fit`, but that points outside the domain of a distance are
            said in `status`; `batches` has no row, another width than centroids,
            fewer rows than there are centroids (in the first batch, without `passes`
            or a `State`),
            pairs that are not `weighted`, or can be read once only, or not the same on
            every pass; `passes` is negative or `batch_size` below 1; or `sharding` is
            not over rows alone.
        ImportError: `progress` is true and tqdm is not installed.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [9.0], [10.0]])
        >>> result = dk.fit_stream([x[::2], x[1::2]], x[:2], passes=10)
        >>> result.centroids.tolist(), result.flags.name
        ([[0.5], [9.5]], 'CONVERGED')
        >>> dk.fit_stream([x[::2], x[1::2]], x[::2]).centroids.tolist()
        [[0.5], [9.5]]

    Source: MacQueen 1967, https://projecteuclid.org/euclid.bsmsp/1200512992; Bottou &
        Bengio 1995, https://leon.bottou.org/papers/bottou-bengio-95
    """
    given = rows_of(centroids)
    rows = as_centroids(given)
    check_callable("distance", distance, 2)
    check_domain(as_tree(distance), rows, None, given, active)
    check_scalar("tol", tol, jnp.float32, zero=True)
    check_integer("batch_size", batch_size, minimum=1)
    if callback is not None:
        check_callable("callback", callback)
    if passes is not None:
        check_integer("passes", passes, minimum=0)
        if is_read_once(batches):
            raise ValueError(
                "batches must be there to be read again for passes, got an iterator: "
                "pass a list, an array, or the function that makes it"
            )
    plan = Plan(block_size)
    if sharding is not None:
        if not isinstance(sharding, NamedSharding):
            raise TypeError(f"sharding must be a NamedSharding, got {shown(sharding)}")
        axis = axis_of("sharding", sharding)
        plan = Plan(block_size, axis, sharding.mesh)
    reader = Reader(
        batches,
        size=batch_size,
        width=rows.shape[1],
        weighted=weighted,
        sharding=sharding,
        multiple=devices_of(plan),
    )
    if optimizer is None:
        optimizer = macqueen() if passes is None else newton()

    def problems() -> Iterator[tuple[Batch, Algorithm, Problem]]:
        for batch in reader:
            algorithm, problem, _ = as_algorithm(
                batch.points,
                rows,
                optimizer=optimizer,
                weights=batch.weights,
                active=active,
                temperature=temperature,
                distance=distance,
                empty=empty,
                block_size=block_size,
            )
            yield batch, algorithm, problem

    start = centroids if isinstance(centroids, State) else rows
    with closing(Watch(callback, progress, passes)) as watch:
        fit = ByBatches(start, rows, watch)
        if passes is not None:
            fit = ByPasses(start, rows, watch, passes, tol)
        try:
            fit.run(problems)
        except KeyboardInterrupt:
            if fit.mark is None:
                raise
            fit.interrupted = True
        except Exception as error:
            if fit.mark is not None:
                fit.interrupted = True
                _with_result(error, fit.result())
            raise
    if fit.mark is None:
        raise ValueError("batches must have rows, got none")
    if fit.bad is not None:
        message = f"{fit.bad.fault()}: the fit ends with the state before it"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return fit.result()


def _with_result(error: Any, result: StreamResult) -> None:
    """The error, with what the fit had so far."""
    error.result = result
    error.add_note(f"fit_stream had taken {result.num_steps} steps: see error.result")
