"""Points read from a file, and a result written to one: for the command line."""

from __future__ import annotations

import csv
import os
import sys
import tempfile
import zipfile
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from diffkm_jax._writing import write_whole


class DataError(Exception):
    """What is wrong with a file, in one line."""


def read_points(path: Path, key: str | None, header: bool) -> np.ndarray:
    """The points in a .npy, .npz or .csv file: [n, d], float64, finite."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{path} is a directory")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        if suffix == ".npz":
            points = read_npz(path, key)
        elif suffix == ".csv":
            points = read_csv(path, header)
        elif suffix == ".npy":
            with path.open("rb") as file:
                points = np.lib.format.read_array(file, allow_pickle=False)
        else:
            raise DataError(f"{path}: its name must end in .npy, .npz or .csv")
    except DataError:
        raise
    except Exception as error:  # A damaged file may raise anything in its reader.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as {suffix}: {reason}") from error
    if points.dtype.kind not in "biuf":
        raise DataError(f"{path}: points must be real numbers, got {points.dtype}")
    if points.ndim != 2:
        raise DataError(f"{path}: points must be [n, d], got shape {points.shape}")
    if points.size == 0:
        raise DataError(f"{path}: there are no points, got shape {points.shape}")
    points = points.astype(np.float64)
    bad = np.argwhere(~np.isfinite(points))
    if len(bad):
        row, column = bad[0]
        where = f"row {row}, column {column} (the first is 0)"
        raise DataError(f"{path}: {where} is {points[row, column]}")
    return points


def read_npz(path: Path, key: str | None) -> np.ndarray:
    """The array named `key` of a .npz file; None is its only one, or `points`."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if key is None:
            key = names[0] if len(names) == 1 else "points"
        if key not in names:
            listed = ", ".join(names) or "none"
            raise DataError(f"{path}: no array {key!r} for --key; its arrays: {listed}")
        with archive.open(f"{key}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def read_csv(path: Path, header: bool) -> np.ndarray:
    """The numbers in a .csv file; a first line without any is a header, too."""
    values, width, n = array("d"), 0, 0
    lines = path.read_text("utf-8-sig").rstrip().split("\n")
    for number, fields in enumerate(csv.reader(lines), 1):
        where = f"{path}: row {n} (the first is 0; line {number})"
        if number == 1:
            width = len(fields)
            if header or (any(fields) and not any(map(is_number, fields))):
                continue
        if len(fields) != width:
            expected = f"{width} fields as the first line"
            raise DataError(f"{where} must have {expected}, got {len(fields)}")
        try:
            values.extend([float(field) for field in fields])
        except ValueError:
            column = [is_number(field) for field in fields].index(False)
            field = fields[column]
            what = f"is not a number: {field!r}" if field.strip() else "is empty"
            raise DataError(f"{where}, column {column} {what}") from None
        n += 1
    return np.frombuffer(values, np.float64).reshape(n, width)


def is_number(field: str) -> bool:
    """Whether a field of a .csv file is a number; NaN and infinity are."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def check_out(out: Path, file: Path) -> None:
    """Raises unless the output can be written, and is not the input."""
    if out.is_dir():
        raise DataError(f"{out} is a directory")
    if out.exists() and not out.is_file():
        raise DataError(f"{out} is not a regular file")
    if out.exists() and file.exists() and out.samefile(file):
        raise DataError(f"{out} is the input too")
    try:
        with tempfile.TemporaryFile(dir=out.resolve().parent):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go in a circle.
        raise DataError(f"{out}: cannot write to its folder: {error}") from error


def write_npz(out: Path, arrays: dict[str, Any]) -> None:
    """Writes the arrays of a result, or says why not."""
    try:
        write_whole(out, arrays)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from error


def with_output(run: Callable[[], int]) -> int:
    """The exit status of a command whose output is out; 141 if its reader has gone."""
    try:
        try:
            return run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, AttributeError):
            # Or Python would try it again at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # type: ignore[union-attr]
        if isinstance(error, BrokenPipeError):
            return 141  # As of a process that SIGPIPE ended.
        print(f"diffkm: error: cannot write to stdout: {error}", file=sys.stderr)
        return 1
