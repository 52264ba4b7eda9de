"""Points, and their weights, read from a file and checked."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from diffkm_jax._command_line.columns import Columns, Table, read_arrow, read_text
from diffkm_jax._command_line.output import CommandError
from diffkm_jax._command_line.parser import TABLES, TEXTS
from diffkm_jax.streaming._reading import parts_of

T = TypeVar("T")
KINDS = ".npy", ".npz", *TABLES
# Numbers that are read at once, in their order, and rows, in any.
BLOCK, AT_ONCE = 2**22, 1024


class Data(NamedTuple):
    """What a file has.

    Attributes:
        path: Its name, for messages.
        points: [n, d], real and finite; of a .npy file a memory map.
        weights: [n], finite and not negative, or None.
        names: Of the columns, [d], or none.
    """

    path: Path
    points: np.ndarray
    weights: np.ndarray | None
    names: Sequence[str]


def read(options: Any, dtype: Any) -> Data:
    """The points of FILE, and the weights of them, which are finite in a dtype."""
    weights = options.weights or ""
    is_file = weights.endswith(".npy")
    columns = Columns(options.columns, None if is_file else options.weights)
    how = {"key": options.key, "header": options.header}
    how["delimiter"] = "\t" if options.delimiter == "tab" else options.delimiter
    path = options.file
    points, found, names = read_points(path, dtype, columns, **how)
    if is_file:
        path = Path(weights)
        found = readable(path, lambda: read_npy(path))
    if found is None:
        return Data(options.file, points, None, names)
    if found.shape != points.shape[:1] or found.dtype.kind not in "biuf":
        got = f"got {found.dtype} and shape {found.shape}"
        raise CommandError(f"{path}: weights must be [{len(points)}] and real, {got}")
    found = found.astype(dtype)
    bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(bad):
        raise CommandError(
            f"{path}: weights must be finite and not negative, got {found[bad[0]]} in "
            f"row {bad[0]} (the first is 0)"
        )
    if not found.any():
        raise CommandError(f"{path}: weights must not all be 0")
    return Data(options.file, points, found, names)


def read_points(
    path: Path,
    dtype: Any,
    columns: Columns = Columns(),  # noqa: B008
    *,
    key: str | None = None,
    header: bool = False,
    delimiter: str | None = None,
    default: str = "points",
) -> Table:
    """The points in a file, and the weights, if a column has them."""
    suffix = path.suffix.lower()

    def table() -> Table:
        if suffix not in KINDS:
            raise CommandError(f"{path}: its name must end in {', '.join(KINDS)}")
        if suffix in TEXTS:
            return read_text(path, columns, header, delimiter)
        if suffix in TABLES:
            return read_arrow(path, columns)
        is_one = suffix == ".npy"
        return Table(read_npy(path) if is_one else read_npz(path, key, default))

    found = readable(path, table)
    check_points(path, found.points, dtype)
    return found


def check_file(path: Path) -> None:
    """Raises unless there is such a file."""
    if path.is_dir():
        raise CommandError(f"{path} is a directory")
    if not path.exists():
        raise CommandError(f"{path}: no such file")


def readable(path: Path, reader: Callable[[], T]) -> T:
    """What a reader finds in a file, or one line about why it cannot."""
    check_file(path)
    try:
        return reader()
    except (CommandError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: must be text in UTF-8: {error.reason}") from error
    except Exception as error:  # A damaged file may raise anything in its reader.
        reason, kind = str(error) or type(error).__name__, path.suffix.lower()
        raise CommandError(f"{path}: cannot be read as {kind}: {reason}") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, which is not read yet."""
    return np.lib.format.open_memmap(path, mode="r")


def read_npz(path: Path, key: str | None, default: str) -> np.ndarray:
    """The array named `key` of a .npz file; None is its only one, or the default."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if key is None:
            key = names[0] if len(names) == 1 else default
        if key not in names:
            listed = ", ".join(names) or "none"
            what = f"no array {key!r} for --key; its arrays: {listed}"
            raise CommandError(f"{path}: {what}")
        with archive.open(f"{key}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def check_points(path: Path, points: np.ndarray, dtype: Any) -> None:
    """Raises unless points are [n, d], real, and finite in a dtype."""
    if points.dtype.kind not in "biuf":
        raise CommandError(f"{path}: points must be real numbers, got {points.dtype}")
    if points.ndim != 2:
        raise CommandError(f"{path}: points must be [n, d], got shape {points.shape}")
    if points.size == 0:
        raise CommandError(f"{path}: there are no points, got shape {points.shape}")
    for start, rows in blocks(points, dtype):
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            where = f"row {start + row}, column {column} (the first is 0)"
            found = points[start + row, column]
            beyond = f", beyond {dtype}" if np.isfinite(found) else ""
            raise CommandError(f"{path}: {where} is {found}{beyond}")


def blocks(points: np.ndarray, dtype: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Points in a dtype, some at a time, with the number of the first."""
    size, start = max(1, BLOCK // points.shape[1]), 0
    for rows in parts_of(points, size, points.shape[1])[0]():
        with np.errstate(over="ignore"):
            yield start, rows.astype(dtype, copy=False)
        start += len(rows)


def chosen(points: np.ndarray, rows: np.ndarray, dtype: Any) -> np.ndarray:
    """Rows of the points, in a dtype."""
    found = np.empty((len(rows), points.shape[1]), dtype)
    for start in range(0, len(rows), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        found[some] = points[rows[some]]
        if isinstance(points.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            # Pages of a map stay with the process: in the end it would have all.
            points.base.madvise(mmap.MADV_DONTNEED)
    return found
