"""Batches from where they are: arrays, files, iterables; read while others are used."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffkm_jax._checks import is_real
from diffkm_jax._hints import shown

KINDS = (
    "an array [n, d], paths of .npy files, an iterable of arrays [m, d], or a function "
    "that returns one"
)


class Batch(NamedTuple):
    """Rows on a device, and what they are there.

    Attributes:
        points: [m, d], with rows of zeros up to the number of the largest batch so far.
        weights: [m], zero in these rows.
        place: Which batch it is, from 0.
        number: Rows that it has itself.
    """

    points: jax.Array
    weights: jax.Array
    place: int
    number: int

    def fault(self) -> str:
        """Which of its rows is not finite, for a message."""
        points, weights = np.asarray(self.points), np.asarray(self.weights)
        bad = ~np.isfinite(points).all(axis=1) & (weights != 0) | ~np.isfinite(weights)
        where = f"batch {self.place}"
        if bad.any():
            return f"row {int(bad.argmax())} of {where} is not finite"
        return f"the loss or the step of {where} is not finite"


class Reader:
    """Batches of a source, which each iteration reads anew, one ahead of what is used.

    Args:
        source: One of `KINDS`.
        size: Rows of a batch that is cut from arrays or files.
        width: d.
        weighted: Whether batches are pairs of points and weights.
        sharding: Where rows go, or None for the default device.
        multiple: What the number of rows has to be a multiple of.
    """

    def __init__(
        self,
        source: Any,
        *,
        size: int,
        width: int,
        weighted: bool,
        sharding: Any,
        multiple: int,
    ) -> None:
        self.parts, self.is_cut = parts_of(source, size, width)
        self.width, self.weighted = width, weighted
        self.sharding, self.multiple = sharding, multiple
        self.rows, self.ones = 0, None

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(1)
        batches = self._batches()
        # Which another thread does not have, where it is on in a context only.
        x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

        def following() -> Batch | None:
            with jax.enable_x64(x64):
                return next(batches, None)

        try:
            coming = pool.submit(following)
            while isinstance(batch := coming.result(), Batch):
                coming = pool.submit(following)
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self) -> Iterator[Batch]:
        for index, part in enumerate(self.parts()):
            points, weights = self._checked(part, index)
            number = len(points)
            if number == 0:
                continue
            wanted = number + -number % self.multiple
            self.rows = max(self.rows, wanted)
            if not self.is_cut or number < self.rows:
                # Copied, as who makes batches may use one buffer for all.
                rows = np.zeros((self.rows, self.width), points.dtype)
                rows[:number] = points
                points = rows
            if number < self.rows or self.weighted:
                weights = np.pad(weights, (0, self.rows - number))
                placed = jax.device_put((points, weights), self.sharding)
            else:
                if self.ones is None or len(self.ones) != number:
                    self.ones = jax.device_put(weights, self.sharding)
                placed = jax.device_put(points, self.sharding), self.ones
            yield Batch(*placed, place=index, number=number)

    def _checked(self, part: Any, index: int) -> tuple[Any, Any]:
        where = f"in batch {index}"
        if isinstance(part, tuple | list):
            wanted = 2 if self.weighted else 1
            if len(part) != wanted:
                meant = "pairs of points and weights" if self.weighted else "arrays"
                more = "" if self.weighted else " (weighted=True takes such pairs)"
                got = f"{len(part)} arrays {where}{more}"
                raise ValueError(f"batches must be {meant}, got {got}")
        elif self.weighted:
            got = f"got {shown(part)} {where}"
            raise ValueError(f"batches must be pairs of points and weights, {got}")
        else:
            part = (part,)
        points, *rest = (_as_numbers(array, where) for array in part)
        shape, d = points.shape, self.width
        if points.ndim != 2 or shape[1] != d:
            wanted = f"[m, {d}] as centroids [k, {d}]"
            raise ValueError(f"batches must be {wanted}, got shape {shape} {where}")
        weights = rest[0] if rest else np.ones(shape[0], np.float32)
        if weights.shape != shape[:1]:
            wanted = f"weights [{shape[0]}] with points {shape}"
            raise ValueError(
                f"batches must have {wanted}, got shape {weights.shape} {where}"
            )
        return points, weights


def _as_numbers(array: Any, where: str) -> np.ndarray:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"batches must be arrays without a mask, got {shown(array)} {where}: fill "
            "it, and give the rows that do not count weight 0 (weighted=True)"
        )
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise ValueError(
            f"batches must be on this process, got an array over several {where}: fit "
            "takes such an array as it is"
        )
    try:
        found = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"batches must be arrays of real numbers, got {shown(array)} {where}"
        ) from error
    if not is_real(found.dtype):
        raise TypeError(f"batches must be real, got dtype {found.dtype} {where}")
    if not found.dtype.isnative:
        found = found.astype(found.dtype.newbyteorder("="))
    if jnp.issubdtype(found.dtype, jnp.floating):
        return found
    return found.astype(jnp.result_type(float))


def parts_of(source: Any, size: int, width: int) -> tuple[Callable[[], Any], bool]:
    """The function that starts to read a source, and whether it cuts it.

    Raises TypeError if it is none.
    """
    source = [source] if isinstance(source, str | Path) else source
    if len(getattr(source, "shape", ())) == 2:
        return lambda: _cut([source], size), True
    paths = source if isinstance(source, list | tuple) else ()
    if paths and all(isinstance(path, str | Path) for path in paths):
        return lambda: _cut((_opened(path, width) for path in paths), size), True
    if callable(source):
        return partial(_made, source), False
    if not isinstance(source, Iterable) or hasattr(source, "shape"):
        raise TypeError(f"batches must be {KINDS}, got {shown(source)}")
    return lambda: source, False


def is_read_once(source: Any) -> bool:
    """Whether a source is an iterator, which cannot be read again."""
    return isinstance(source, Iterator)


def _made(source: Callable[[], Any]) -> Iterable:
    """What a function has made of batches, checked."""
    made = source()
    if not isinstance(made, Iterable) or isinstance(made, str | Path | dict):
        kinds = "arrays [m, d]"
    elif len(getattr(made, "shape", ())) == 2:
        kinds = "arrays [m, d], not one array"
    else:
        return made
    raise TypeError(
        f"batches must be a function that returns an iterable of {kinds}, got "
        f"{shown(made)}"
    )


def _opened(path: str | Path, width: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(getattr(array, "shape", ())) != 2:
            raise ValueError(f"it holds {shown(array)}")
        if array.shape[1] != width:
            raise ValueError(f"it has rows of {array.shape[1]}, centroids of {width}")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"batches must be .npy files of whole arrays [n, d], got {path}: {error}"
        ) from error
    return array


def _cut(arrays: Iterable, size: int) -> Iterator[np.ndarray]:
    """Arrays of so many rows, of the rows of several, one after the other."""
    held, count = [], 0
    for array in arrays:
        start, n = 0, array.shape[0]
        while start < n:
            stop = min(n, start + size - count)
            held.append(_rows(array, start, stop))
            count += stop - start
            start = stop
            if count == size:
                yield np.concatenate(held) if len(held) > 1 else held[0]
                held, count = [], 0
    if held:
        yield np.concatenate(held) if len(held) > 1 else held[0]


def _rows(array: Any, start: int, stop: int) -> np.ndarray:
    """Rows of an array, in memory."""
    is_whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
    if not is_whole or not array.flags.c_contiguous or array.filename is None:
        return np.asarray(array[start:stop])
    # From the file: pages of a map stay in memory, and are slower.
    rows = np.empty((stop - start, array.shape[1]), array.dtype)
    data: Any = rows.view(np.uint8)
    left = memoryview(data).cast("B")
    with open(array.filename, "rb", buffering=0) as file:
        file.seek(array.offset + start * rows.shape[1] * rows.itemsize)
        while left and (number := file.readinto(left)):
            left = left[number:]
    if left:
        raise ValueError(f"batches must be whole files, got a part of {array.filename}")
    return rows
